"""The estimate of memory: against what the loop does on real tensors, against what the process holds,
and against the published sizes.
"""

import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hub import Hub
from tiny import SMALL_RUN
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from align import cli
from align import commands as runs
from align.config.overrides import place
from align.config.train import TrainConfig
from align.memory import estimate as memory
from align.memory import remedies
from align.memory.tracker import ACTIVATIONS, CASTS, GRADIENTS, WEIGHTS, Tracker
from align.networks.lora import LoraConfig
from evaluate import pipelines
from prompts.io.errors import UserError
from prompts.io.validate import validate

MIB = 2**20


def config(folder: Path, **changes: Any) -> TrainConfig:
    return validate(TrainConfig, SMALL_RUN | {"reference": str(folder)} | changes, "test")


def test_tensors_that_are_neither_parameters_nor_buffers_are_fake_too() -> None:
    """As Qwen-Image's places are."""
    with torch.device("meta"):
        module = nn.Linear(2, 3)
        module.__dict__["places"] = torch.arange(4)
    memory._fake([module])
    assert all(isinstance(tensor, FakeTensor) for tensor in (module.weight, module.places))
    assert module.places.shape == (4,) and module.places.device.type == "cpu"


# ---- the tracker -----------------------------------------------------------------------------------------------------


def test_a_storage_counts_once_until_it_is_freed() -> None:
    with Tracker(block=512) as tracker:
        a = torch.ones(1000)
        b = a.view(10, 100)[2:]
        assert tracker.total == 4096  # 4000 bytes in blocks of 512
        del a
        assert tracker.total == 4096
        del b
        assert tracker.total == 0
        torch.ones(10_000)
    assert tracker.most == 40_448
    assert tracker.peak == {ACTIVATIONS: 40_448}


def test_gradients_and_casts_are_told_apart() -> None:
    layer = nn.Linear(100, 100, bias=False)
    with Tracker() as tracker:
        tracker.hold(f"{WEIGHTS}: layer", [layer.weight])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(torch.ones(1, 100)).sum().backward()
            assert layer.weight.grad is not None
            tracker.hold(GRADIENTS, [layer.weight.grad])
    assert tracker.peak[f"{WEIGHTS}: layer"] == tracker.live[GRADIENTS] == 40_000
    assert tracker.peak[CASTS] == 20_000


# ---- the loop on real tensors, and the process -----------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "full, exact, accumulated": {"gradient_accumulation_steps": 2},
    "lora, exact, checkpointing": {"lora": {"rank": 4, "alpha": 4.0}, "gradient_checkpointing": True},
    "lora, sequential": {"lora": {"rank": 4, "alpha": 4.0}, "divergence": {"gradient": "exact_sequential"}},
    "full, bf16": {"precision": "bf16"},
    "lora, bf16, sequential, checkpointing": {
        "precision": "bf16", "lora": {"rank": 4, "alpha": 4.0}, "divergence": {"gradient": "exact_sequential"},
        "gradient_checkpointing": True,
    },
}  # fmt: skip

#: Those whose tensors are large beside what a CPU's kernels take for themselves (some 70 MiB
#: here, of which no tensor knows).
WHOLE = {"full, exact, accumulated"}

#: Parent of the cases' processes, that they start with all imported. Prints, per case, estimated and measured bytes.
SCRIPT = """
import json, os, sys
import diffusers, peft, torch, transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pathlib import Path
from prompts.io.validate import validate
from align.config.train import TrainConfig
from align.memory import estimate as memory
from align.training.loop import train
torch.set_num_threads(1)

def held(field):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(field)]
    return int(line.split()[1]) * 1024

def measure(content, folder):
    config = validate(TrainConfig, content, "test")
    read, write = os.pipe()
    for what in ("estimate", "measure"):
        if os.fork():
            os.wait()
            continue
        if what == "estimate":
            value = memory.estimate(config, cuda=False).total
        else:
            open("/proc/self/clear_refs", "w").write("5")
            before = held("VmRSS")
            train(config, Path(folder), show=False)
            value = held("VmHWM") - before
        os.write(write, f"{int(value)} ".encode())
        os._exit(0)
    os.close(write)
    return [int(each) for each in os.read(read, 100).split()]

first, cases = json.load(sys.stdin)
train(validate(TrainConfig, first, "test"), Path(sys.argv[1]) / "first", show=False)  # what is loaded on first use
for name, content in cases.items():
    print(json.dumps([name, *measure(content, Path(sys.argv[1]) / name.replace(" ", "-"))]), flush=True)
"""


def save(folder: Path, **network: Any) -> Path:
    """The tiny pipeline with another network."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from tiny import tiny_components

    torch.manual_seed(0)
    common = {
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    parts = tiny_components(0) | {"unet": UNet2DConditionModel(**common, **network).eval()}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def medium(folder: Path) -> Path:
    """A pipeline whose network is large beside what a process takes for itself: 13 M
    parameters, images of 256 x 256.
    """
    return save(
        folder,
        sample_size=32,
        block_out_channels=[96, 192, 192],
        norm_num_groups=32,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    )


def small(folder: Path) -> Path:
    """A pipeline whose network is large beside what a step makes besides it: 0.5 M parameters."""
    return save(
        folder,
        sample_size=16,
        block_out_channels=[24, 48],
        norm_num_groups=4,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    )


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_estimate_of_a_few_step_generator_has_its_reward(tiny: Path, seed: int) -> None:
    few = {"name": "few_step", "sigma_init": 2.5, "levels": [1.2, 0.6, 0.3], "input_scale": "sigma_init", "eta": 0.0}
    content = SMALL_RUN | {"reference": str(tiny), "method": "di*", "seed": seed}
    content |= {"rewards": [{"scorer": "shapes/clip", "scale": 0.5}], "held_out": {}, "sample_every": 0}
    one, four = (
        memory.estimate(validate(TrainConfig, content | change, "test"), cuda=False)
        for change in ({}, {"generator": few})
    )
    assert four.phases.keys() == one.phases.keys() and "student's reward" in four.phases
    assert four.phases["student's reward"] == one.phases["student's reward"]
    assert four.total == pytest.approx(one.total, rel=0.01)
    # Three steps go before the last, once for the assistant's update and once for the student's.
    assert four.operations["student's forward"] == pytest.approx(4 * one.operations["student's forward"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_what_the_loop_holds(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tracker on the loop and its true tensors, that of each phase in which any are made."""
    from align.networks.roles import Roles
    from align.training import setup as module
    from align.training.loop import train
    from align.training.setup import make_roles

    (tmp_path / "prompts.txt").write_text("a circle\na square\n")
    changes = {
        "method": "sim",
        "batch_size": 2,
        "steps": 2,
        "held_out": {},
        "prompts": str(tmp_path / "prompts.txt"),
    } | CASES[name]
    made = config(small(tmp_path / "small"), **changes)
    (tmp_path / "run").mkdir()
    tracker = Tracker()

    def counted(*args: Any, **kwargs: Any) -> Roles:
        roles = make_roles(*args, **kwargs)
        # What a parameter is cast to in place goes unseen.
        tracker.hold("weights", [tensor for network in roles.networks() for tensor in network.state_dict().values()])
        return roles

    monkeypatch.setattr(module, "make_roles", counted)
    with tracker:
        train(made, tmp_path / "run", show=False)
    found = memory.estimate(made, cuda=False)
    for phase in ("critics' update", "student's forward", "student's divergence", "student's backward"):
        assert found.phases[phase] == pytest.approx(tracker.peaks[phase], rel=0.05), phase


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_estimate_is_what_the_process_holds(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a circle\na square\n")
    common: dict[str, Any] = {
        "method": "sim", "reference": str(medium(tmp_path / "medium")), "prompts": str(tmp_path / "prompts.txt"),
        "steps": 2,
        "batch_size": 4, "held_out": {}, "assistant": {"learning_rate": 1e-5}, "student": {"learning_rate": 1e-5},
    }  # fmt: skip
    cases = {name: SMALL_RUN | common | changes for name, changes in CASES.items() if name in WHOLE}
    # Freed memory goes back to the system at once, so that what is resident is what is held.
    settings = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    first = SMALL_RUN | common | CASES["lora, sequential"] | {"reference": str(tiny)}
    for name in [*cases, "first"]:
        (tmp_path / name.replace(" ", "-")).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        input=json.dumps([first, cases]),
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(cases)
    for name, estimated, measured in rows:
        print(f"{name}: {estimated / MIB:.0f} MiB estimated, {measured / MIB:.0f} measured")
    for name, estimated, measured in rows:
        assert abs(estimated / measured - 1) < 0.15, (name, estimated / MIB, measured / MIB)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and TEST_ON_GPU=1")
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_what_a_gpu_holds(tmp_path: Path, name: str) -> None:
    from align.training.loop import train

    held = {"method": "sim", "batch_size": 16, "steps": 2, "held_out": {}} | CASES[name]
    made = config(medium(tmp_path / "medium"), **held)
    (tmp_path / "run").mkdir()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(made, tmp_path / "run", show=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    found = memory.estimate(made)
    assert (found.total - found.reserve) / memory.GIB == pytest.approx(lines[-1]["peak_gib"], rel=0.15)


# ---- the published architectures -------------------------------------------------------------------------------------

#: What stabilityai/stable-diffusion-xl-base-1.0's unet/config.json says.
SDXL = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2, "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@pytest.mark.slow
def test_sdxl_is_counted_and_weighed_without_its_weights(tmp_path: Path) -> None:
    import tiny_families

    folder = tmp_path / "sdxl"
    tiny_families.save(tiny_families.pipeline("sdxl", tmp_path / "made"), folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    described = {"text_encoder": {"hidden_size": 768}, "text_encoder_2": {"hidden_size": 1280, "projection_dim": 1280}}
    for part, changes in described.items():
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (folder / "unet" / "config.json").write_text(json.dumps(SDXL))
    made = config(
        folder,
        family="sdxl",
        lora={"rank": 16, "alpha": 2.0},
        precision="bf16",
        gradient_checkpointing=True,
        batch_size=1,
        held_out={},
    )
    found = memory.estimate(made)
    adapter = found.roles["student"].trainable
    assert found.roles["reference"] == (2_567_463_684, 0, "base of the adapters")
    assert found.roles["student"] == (2_567_463_684 + adapter, adapter, "adapter of rank 16 over the reference")
    assert found.parts["weights: reference's base"] == pytest.approx(2 * 2_567_463_684, rel=0.01)
    assert found.parts["optimiser states"] == pytest.approx(2 * 2 * 4 * adapter, rel=0.01)


@pytest.mark.slow
def test_text_encoders_take_memory_only_where_they_stay(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    shutil.copytree(tiny, folder)
    described = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps(described | {"intermediate_size": 4096}))
    for encoding in ("ahead", "live"):
        usual, wide = (
            memory.estimate(config(each, held_out={}, sample_every=0, text_encoding=encoding))
            for each in (tiny, folder)
        )
        assert (wide.total > usual.total) == (encoding == "live")
        assert ("encoding texts" in wide.operations) == (encoding == "live")
        encoder, ahead = pipelines.load(str(tiny)).text_encoder, encoding == "ahead"
        assert usual.encoding == ahead * sum(p.nbytes for p in (*encoder.parameters(), *encoder.buffers()))
        assert usual.row == ahead * 4 * encoder.config.max_position_embeddings * encoder.config.hidden_size
        assert wide.load > usual.load > 0
    more = 4 * (4096 - described["intermediate_size"]) * 2 * 16
    assert wide.parts["text encoders"] - usual.parts["text encoders"] == pytest.approx(more, rel=0.05)


@pytest.mark.slow
def test_memory_beside_a_gpu_has_the_copies_that_are_cut_up_and_the_checkpoint_in_float32(tiny: Path) -> None:
    pipeline = pipelines.load(str(tiny))
    network, encoder = (
        sum(t.nbytes for t in (*m.parameters(), *m.buffers())) for m in (pipeline.unet, pipeline.text_encoder)
    )
    whole = network + encoder + sum(t.nbytes for t in (*pipeline.vae.parameters(), *pipeline.vae.buffers()))
    made = config(tiny, held_out={}, precision="bf16")
    for parallel, processes in (("ddp", 1), ("ddp", 2), ("fsdp2", 2)):
        found = memory.estimate(made.model_copy(update={"parallel": parallel}), processes=processes)
        copies = max(0, 2 * network - encoder) if parallel == "fsdp2" else 0  # the student's and the assistant's
        assert found.load == whole + copies
        assert found.written == whole
    narrow = memory.estimate(config(tiny, held_out={}, precision="bf16", lora={"rank": 2}))
    assert narrow.written == whole  # though the base is kept in bf16


@pytest.mark.slow
def test_saving_what_is_sharded_takes_one_tensor_of_a_gpu_and_the_whole_state_of_a_cpu(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = memory.estimate(config(tiny, held_out={}, parallel="fsdp2"), processes=2)
    # Student, assistant, the average, and two moments of each of the first two.
    assert found.state == pytest.approx((3 + 2 * 2) * 4 * found.roles["student"].trainable, rel=0.02)
    passing = {ACTIVATIONS, GRADIENTS, CASTS, "batch"}
    resident = sum(size for part, size in found.parts.items() if part not in passing)
    largest = max(p.numel() * p.itemsize for p in pipelines.load(str(tiny)).unet.parameters())
    assert resident + largest <= found.phases["saving"] < resident + found.state / 4
    remedies.show(replace(found, state=3 * memory.GIB), processes=2)  # this one's is too small for two decimals
    shown = " ".join(capsys.readouterr().err.split())
    assert "to save a state: the first process's │ 3.00 │" in shown
    assert ", saving " in shown
    alone = memory.estimate(config(tiny, held_out={}))
    assert alone.state == 0
    assert "saving" not in alone.phases


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def dry_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`align train shapes-di --dry-run` on a tiny pipeline: exit code, stdout, stderr."""
    path = tmp_path / "small.yaml"
    changes = {key: value for key, value in SMALL_RUN.items() if key != "stage"} | {
        "reference": str(tiny),
        "final_comparison": {"prompts": 0},
    }
    path.write_text(yaml.safe_dump(changes))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys, "argv", ["align", "train", "shapes-di", "--config", str(path), "--dry-run", *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    return call


def test_a_dry_run_shows_roles_and_memory_beside_the_config(dry_run: Any) -> None:
    code, out, err = dry_run("--gpu-memory", 24, "--processes", 2)
    assert code == 0, err
    assert validate(TrainConfig, yaml.safe_load(out), "printed")
    for word in (
        "student",
        "assistant",
        "reference",
        "full copy",
        "each of 2 GPUs",
        "activations",
        "gradient buckets",
        "reserve",
        "in all",
    ):
        assert word in err


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_remedy(dry_run: Any) -> None:
    found = memory.GIB + 4 * MIB
    code, out, err = dry_run("--gpu-memory", found / memory.GIB)
    assert code == 2
    assert yaml.safe_load(out)["stage"] == "train"
    (line,) = [line for line in err.splitlines() if line.startswith("align: ")]
    assert "--set " in line and "GiB are needed" in line
    code, _, err = dry_run("--gpu-memory", 0.5)
    assert code == 2
    assert "larger GPU" in err


@pytest.mark.slow
def test_a_remedy_is_enough(tiny: Path) -> None:
    made = config(tiny, batch_size=32)
    needed, least = (
        memory.estimate(made).total,
        memory.estimate(remedies.changed(made, [("gradient_accumulation_steps", 32)])).total,
    )
    with pytest.raises(UserError) as refused:
        remedies.check(made, processes=1, available=(needed + least) / 2)
    words = str(refused.value).split()
    sets = [after for before, after in itertools.pairwise(words) if before == "--set"]
    content = made.model_dump(mode="json")
    for each in sets:
        key, _, value = each.rstrip(",;").partition("=")
        content = place(content, key.split("."), yaml.safe_load(value))
    changed = validate(TrainConfig, content, "changed")
    assert memory.estimate(changed).total <= (needed + least) / 2


@pytest.mark.slow
def test_a_hub_that_is_out_of_reach_is_asked_once_however_many_estimates_there_are(
    small_layout: str, published: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(Path(small_layout), family="sdxl", held_out={}, sample_every=0)
    monkeypatch.setattr(remedies, "remedies", lambda *_: [("gradient_checkpointing", True)])
    asked = []
    for available in (math.inf, 0):
        before = len(published.requests)
        with suppress(UserError):
            remedies.check(made, processes=1, available=available)
        asked.append(len(published.requests) - before)
    assert asked[0] == asked[1] > 0


@pytest.mark.slow
def test_an_estimate_changes_nothing_that_follows(tiny: Path, tmp_path: Path) -> None:
    from align.training.loop import train

    made, weights = config(tiny, held_out={}), []
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        train(made, tmp_path / name, show=False)
        weights.append((tmp_path / name / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
        memory.estimate(made)
    assert weights[0] == weights[1]


def test_what_does_not_go_with_a_config_is_no_remedy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is one can be pasted into a shell."""

    def needed(made: TrainConfig, **_: Any) -> Any:
        return SimpleNamespace(total=(2 if made.lora else 3) * memory.GIB, parts={"a": 1.0}, phase="a step")

    monkeypatch.setattr(remedies, "estimate", needed)
    made = config(tiny, student={"name": "adam8bit", "learning_rate": 1e-4}, batch_size=4)
    with pytest.raises(UserError, match=r"memory: about 3\.0 GiB are needed") as caught:
        remedies.check(made, processes=2, available=2 * memory.GIB)
    assert shlex.split(str(caught.value).partition("; add ")[2].partition(", which")[0]) == [
        "--set", 'lora={"rank": 64, "alpha": 64.0}',
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"it is 2\.0 GiB: take a larger GPU"):
        remedies.check(made, processes=2, available=memory.GIB)


def test_a_run_is_refused_for_want_of_memory_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(tiny)
    monkeypatch.setattr(remedies, "remedies", lambda *_: [])
    with pytest.raises(UserError, match="GiB are needed"):
        runs.check_memory(made, processes=1, available=0)

    def unknown(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("no fake kernel")

    monkeypatch.setattr(remedies, "estimate", unknown)
    runs.check_memory(made, processes=1, available=0)
    assert "could not be estimated (NotImplementedError)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_an_estimate_of_shared_images(tiny: Path) -> None:
    options = {"learning_rate": 1e-3, "shares_images": True}
    shared, anew = (
        memory.estimate(config(tiny, method="sim", assistant=options | {"shares_images": on})) for on in (True, False)
    )
    assert shared.operations.get("student's forward", 0) == 0 < anew.operations["student's forward"]


def test_a_smaller_lora_adds_as_much(tiny: Path) -> None:
    made = config(tiny, lora={"rank": 64, "alpha": 8.0})
    for change in remedies.remedies(made, 1):
        lora = remedies.changed(made, [change]).lora
        assert lora is not None and lora.alpha / lora.rank == 1 / 8
    assert validate(LoraConfig, {"rank": 16}, "test").alpha == 16


def test_sharded_parameters_keep_what_their_gradient_would_need(tiny: Path) -> None:
    made = config(tiny, method="sim", batch_size=16, parallel="fsdp2", divergence={"gradient": "exact"})
    whole, sharded = (
        memory.estimate(made.model_copy(update={"parallel": parallel}), processes=2) for parallel in ("ddp", "fsdp2")
    )
    assert sharded.parts["activations"] > whole.parts["activations"]
