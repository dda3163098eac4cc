"""Encoded prompts on disk: what is in them, who makes them, and who may read them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
from tiny import SMALL_RUN

from align.config.train import TrainConfig
from align.data import text_embeddings as texts
from align.data.text_embeddings import CachedTextEmbeddings, chunk, prepare, release, restore
from align.training.loop import train
from evaluate import families, pipelines, weights
from prompts.io.errors import UserError
from prompts.io.validate import validate
from prompts.readers import Prompts, read_prompts

FAMILIES = ["sd15", "sdxl", "pixart"]
TEXTS = [f"a circle number {i % 30}" for i in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny pipeline of every family."""
    folder = tmp_path_factory.mktemp("families")
    return {family: tiny_families.pipeline(family, folder / family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "ROWS", 8)


def prompts(folder: Path, lines: list[str] = TEXTS) -> Prompts:
    path = folder / "prompts.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_prompts(str(path))


def run_config(family: str, **changes: Any) -> TrainConfig:
    return validate(TrainConfig, SMALL_RUN | {"reference": "r", "family": family} | changes, "test")


class Counted:
    """A family that counts what it encodes."""

    def __init__(self, family: str):
        self.module, self.texts = families.load(family), 0
        self.texts_at_once = 8

    def encode(self, pipeline: Any, some: list[str]) -> dict[str, torch.Tensor]:
        self.texts += len(some)
        encoded: dict[str, torch.Tensor] = self.module.encode(pipeline, some)
        return encoded

    def null(self, pipeline: Any) -> dict[str, torch.Tensor]:
        self.texts += 1
        encoded: dict[str, torch.Tensor] = self.module.null(pipeline)
        return encoded


def ready(
    pipeline: Any,
    given: Prompts,
    folder: Path | None,
    family: str = "sd15",
    *,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> tuple[Any, int]:
    """The texts, and how many were encoded for them."""
    counted = Counted(family)
    config = run_config(family, text_cache=str(folder) if folder else None, **changes)
    made = prepare(
        family,
        counted,
        pipeline,
        given,
        encoding=config.text_encoding,
        folder=config.text_cache,
        device="cpu",
        dtype=dtype,
        show=False,
    )
    return made, counted.texts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_contents(made: dict[str, Any], tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """Both ways give what the family's own functions give; each text is encoded once, and never again."""
    pipeline, module, given = made[family], families.load(family), prompts(tmp_path)
    ahead, encoded = ready(pipeline, given, tmp_path / "cache", family, dtype=dtype)
    assert encoded == 30 + 1
    live, encoded = ready(pipeline, given, None, family, dtype=dtype, text_encoding="live")
    assert encoded == 1
    picks = torch.tensor([39, 0, 7, 8, 30])
    for made_by in (ahead, live):
        rows, null, said = made_by(picks)
        assert said == [TEXTS[i] for i in picks]
        expected = module.encode(pipeline, said)
        assert rows.keys() == null.keys() == expected.keys()
        for key, value in expected.items():
            assert rows[key].dtype == null[key].dtype == dtype
            torch.testing.assert_close(
                rows[key].float(), value.to(dtype).float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
            )
            assert null[key].equal(module.null(pipeline)[key].to(dtype).expand(5, *value.shape[1:]))
    again, encoded = ready(pipeline, given, tmp_path / "cache", family, dtype=dtype)
    assert encoded == 0
    assert all(value.equal(ahead(picks)[0][key]) for key, value in again(picks)[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_changes_no_bit_of_what_networks_make(made: dict[str, Any], tmp_path: Path, family: str) -> None:
    """Under autocast, rows that were rounded when they were stored give what rows of
    float32 give; their gradients too.
    """
    pipeline, module, given = made[family], families.load(family), prompts(tmp_path)
    network = getattr(pipeline, module.network)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        rows, null, _ = ready(pipeline, given, tmp_path / str(dtype), family, dtype=dtype)[0]([0, 1, 2])
        for conditioning in (rows, null):
            network.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = module.call(network, x, torch.tensor([10, 500, 900]), conditioning, 8)
            out.float().square().sum().backward()
            outputs.append([out, *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    for exact, rounded in zip(outputs[:2], outputs[2:], strict=True):
        assert len(exact) == len(rounded) > 10
        assert all(a.equal(b) for a, b in zip(exact, rounded, strict=True))
    assert not outputs[0][0].equal(outputs[1][0])  # the prompt counts


def test_a_run_in_half_precision_is_the_same_to_the_bit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    prompts(tmp_path)
    for stored in (None, torch.float32):
        changes = {
            "reference": str(tiny),
            "prompts": str(tmp_path / "prompts.txt"),
            "text_cache": str(tmp_path / str(stored)),
        }
        config = run_config("sd15", precision="bf16", steps=2, **changes)
        if stored:
            monkeypatch.setattr(
                "align.training.setup.prepare", lambda *a, dtype, **k: prepare(*a, dtype=torch.float32, **k)
            )
        (tmp_path / f"run-{stored}").mkdir()
        assert train(config, tmp_path / f"run-{stored}", show=False)
        results.append(
            weights.read(tmp_path / f"run-{stored}" / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
        )
    assert {json.loads(p.read_text())["dtype"] for p in tmp_path.glob("*/manifest.json")} == {"bfloat16", "float32"}
    assert all(results[0][key].equal(value) for key, value in results[1].items())


def test_other_makers_are_refused(made: dict[str, Any], tmp_path: Path) -> None:
    folder, given, pipeline = tmp_path / "cache", prompts(tmp_path), made["sd15"]
    ready(pipeline, given, folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def refused(why: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(UserError, match=f"text_cache = .*: was made by {why}; name another folder") as error:
            ready(*arguments, **options)
        assert "\n" not in str(error.value)

    refused("another precision", pipeline, given, folder, dtype=torch.bfloat16)
    refused("other prompts", pipeline, prompts(tmp_path, TEXTS[1:]), folder)
    refused("another family", made["sdxl"], given, folder, "sdxl")
    first = next(pipeline.text_encoder.parameters()).data.view(-1)[:1]
    was = first.clone()
    first += 1
    refused("another text encoder or tokenizer", pipeline, given, folder)
    first.copy_(was)
    pipeline.tokenizer.model_max_length -= 1
    refused("another text encoder or tokenizer", pipeline, given, folder)
    pipeline.tokenizer.model_max_length += 1
    assert ready(pipeline, given, folder)[1] == 0
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hash_is_the_parts_own(made: dict[str, Any], tmp_path: Path, family: str) -> None:
    """It is the same wherever the pipeline lies, and before and after a call."""
    a, b = (pipelines.load(str(tiny_families.save(made[family], tmp_path / name))) for name in "ab")
    before = texts.sha256(a)
    assert texts.sha256(b) == before
    families.load(family).encode(a, ["a word"])
    assert texts.sha256(a) == before


def test_the_hash_is_of_a_chat_template_too(stock: dict[str, Any], tmp_path: Path) -> None:
    for pipeline in (stock["zimage"], tiny_families.pipeline("flux2", tmp_path, dev=True)):
        before, template = texts.sha256(pipeline), pipeline.tokenizer.chat_template
        pipeline.tokenizer.chat_template = f"{template}!"
        changed, pipeline.tokenizer.chat_template = texts.sha256(pipeline), template
        assert changed != before == texts.sha256(pipeline)


def test_of_more_prompts_so_many_are_taken_evenly(tmp_path: Path) -> None:
    lines = [f"{'' if i % 5 == 2 else f'number {i}'}" for i in range(25)]  # every fifth is blank
    whole = prompts(tmp_path, lines)
    some = read_prompts(str(tmp_path / "prompts.txt"), at_most=10)
    assert list(some) == [whole[2 * i] for i in range(10)]
    assert some.sha256() != whole.sha256() == read_prompts(str(tmp_path / "prompts.txt"), at_most=20).sha256()
    assert [whole[i] for i in some.distinct()[1]] == list(whole)[:10]


def test_too_small_a_disk(made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    row = sum(value[0].nbytes for value in families.load("sd15").null(made["sd15"]).values())
    given = prompts(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 30 * row - 1))
    with pytest.raises(UserError, match=r"30 prompts .* GB .*text_cache, .*, or set text_encoding to live"):
        ready(made["sd15"], given, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 30 * row))
    ready(made["sd15"], given, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    ready(made["sd15"], given, tmp_path / "cache")


def test_a_folder_that_cannot_be_written(made: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be kept there .*text_cache"):
        ready(made["sd15"], prompts(tmp_path), tmp_path / "file" / "cache")


@pytest.mark.parametrize("damage", ["torn", "empty", "gone"])
def test_a_damaged_file_is_made_again(made: dict[str, Any], tmp_path: Path, damage: str) -> None:
    folder, given = tmp_path / "cache", prompts(tmp_path)
    ready(made["sd15"], given, folder)
    path = chunk(folder, 1)
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(whole[:-1] if damage == "torn" else b"")
    assert ready(made["sd15"], given, folder)[1] == 8
    assert path.read_bytes() == whole


def test_where_it_is(made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "ours"))
    given = prompts(tmp_path)
    a = ready(made["sd15"], given, None)[0].folder
    assert a.parent == tmp_path / "ours" / "texts"
    assert ready(made["sd15"], given, None, dtype=torch.bfloat16)[0].folder != a
    monkeypatch.delenv("ALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
    assert ready(made["sd15"], given, None)[0].folder == tmp_path / "theirs" / "onestep-align" / "texts" / a.name


# ---- other processes -------------------------------------------------------------------------------------------------

WORKER = """
import sys, time, torch
from align.data import text_embeddings as texts
from evaluate import families
from prompts.readers import read_prompts
from evaluate import pipelines

model, prompts, folder, pause = sys.argv[1:]
texts.ROWS = 8
torch.set_num_threads(1)
family, plain = families.load("sd15"), texts._write

def slowly(path, rows):
    plain(path, rows)
    time.sleep(float(pause))
    print(path.name, flush=True)

texts._write = slowly
pipeline, given = pipelines.load(model), read_prompts(prompts)
made_by = texts.manifest("sd15", pipeline, given, torch.float32)
print("ready", flush=True)
sys.stdin.readline()
texts.fill(texts.Path(folder), made_by, family, pipeline, given, dtype=torch.float32, show=False)
"""


def worker(tiny: Path, given: Path, folder: Path, pause: float) -> Any:
    arguments = [sys.executable, "-c", WORKER, str(tiny), str(given), str(folder), str(pause)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kills_and_company(tiny: Path, tmp_path: Path, quick_programs: None) -> None:
    """A killed process loses at most the file it was making; two make each file once,
    and make the same bytes as one.
    """
    prompts(tmp_path, [f"a circle number {i}" for i in range(64)])
    given, alone, folder = tmp_path / "prompts.txt", tmp_path / "alone", tmp_path / "together"
    workers = [worker(tiny, given, where, 0.3) for where in (alone, folder, folder)]
    assert [each.stdout.readline() for each in workers] == ["ready\n"] * 3

    killed = workers[0]
    killed.stdin.write("\n")
    killed.stdin.flush()
    while len(list(alone.glob("0*.safetensors"))) < 3:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in alone.glob("*.safetensors")}
    assert 3 <= len(kept) - 1 < 8

    pipeline, prompts_again = pipelines.load(str(tiny)), read_prompts(str(given))
    _, encoded = ready(pipeline, prompts_again, alone)
    assert encoded == 64 - 8 * (len(kept) - 1)
    assert all((alone / name).stat().st_mtime_ns == when for name, when in kept.items())

    for each in workers[1:]:
        each.stdin.write("\n")
        each.stdin.flush()
    said = [each.communicate(timeout=60)[0].split() for each in workers[1:]]
    assert [each.returncode for each in workers[1:]] == [0, 0]
    assert sorted(said[0] + said[1]) == sorted(path.name for path in alone.glob("*.safetensors"))
    assert min(map(len, said)) >= 3
    for path in alone.glob("*.safetensors"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    """Rows come from memory maps: those that are read, and not the files they are in."""
    from safetensors.torch import save_file

    files, rows, width = 8, texts.ROWS, 2**19
    save_file({"text": torch.zeros(1, width)}, tmp_path / "null.safetensors")
    for i in range(files):  # 16 MB each
        save_file({"text": torch.full((rows, width), float(i))}, chunk(tmp_path, i))
    np.save(tmp_path / "rows.npy", np.arange(files * rows))
    made = CachedTextEmbeddings(
        prompts(tmp_path, [f"{i}" for i in range(files * rows)]), tmp_path, device="cpu", dtype=torch.float32
    )

    def resident() -> int:
        return next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if "VmRSS" in line
        )

    made([0])
    before = resident()
    for i in range(files):
        given, _, _ = made([i * rows + 3])
        assert given["text"].eq(float(i)).all()
    assert resident() - before < 8 * 2**20 * 6  # of 128 MB: eight rows of 2 MB, twice, and what the kernel reads ahead


# ---- training --------------------------------------------------------------------------------------------------------


def test_text_encoders_leave_and_come_back(tiny: Path) -> None:
    import gc
    import weakref

    pipeline = pipelines.load(str(tiny))
    before, gone = texts.sha256(pipeline), weakref.ref(pipeline.text_encoder)
    release(pipeline)
    gc.collect()
    assert pipeline.text_encoder is None and pipeline.tokenizer is None
    assert gone() is None
    unet = pipeline.unet
    restore(pipeline, str(tiny), network="unet")
    assert texts.sha256(pipeline) == before
    assert pipeline.unet is unet


def test_training_holds_no_text_encoder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a resumed run encodes none of the training prompts again."""
    import gc

    from transformers import CLIPTextModel

    alive, counted = [], []
    from align.training import loop as module

    plain, encode = module.update_student, texts.encode

    def text_models() -> int:
        return sum(type(thing) is CLIPTextModel for thing in gc.get_objects())

    def watched(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        alive.append(text_models())
        return plain(*arguments, **options)

    def counting(*arguments: Any) -> Any:
        counted.append(len(arguments[2]))
        return encode(*arguments)

    monkeypatch.setattr(module, "update_student", watched)
    monkeypatch.setattr(texts, "encode", counting)
    prompts(tmp_path)
    changes = {"reference": str(tiny), "prompts": str(tmp_path / "prompts.txt"), "text_cache": str(tmp_path / "cache")}
    gc.collect()
    others = text_models()
    assert train(run_config("sd15", steps=1, **changes), tmp_path, show=False)
    assert sum(counted) == 30
    assert train(run_config("sd15", steps=2, **changes), tmp_path, resume=True, show=False)
    assert sum(counted) == 30
    assert alive == [others] * 2
    assert pipelines.load(str(tmp_path / "checkpoint")).text_encoder is not None


def test_live_and_ahead_train_alike(tiny: Path, tmp_path: Path) -> None:
    results = []
    prompts(tmp_path)
    plain = {"learning_rate": 1e-3, "name": "sgd"}
    changes = {
        "reference": str(tiny),
        "prompts": str(tmp_path / "prompts.txt"),
        "student": plain,
        "assistant": plain,
        "steps": 2,
    }
    for encoding in ("ahead", "live"):
        folder = tmp_path / encoding
        folder.mkdir()
        assert train(run_config("sd15", precision="fp64", text_encoding=encoding, **changes), folder, show=False)
        results.append(weights.read(folder / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert max((results[0][key] - value).abs().max().item() for key, value in results[1].items()) < 1e-9
