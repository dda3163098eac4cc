"""What a step costs: the plain implementation that the trainer is measured against,
drawn weights, and what is written.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from tiny import SMALL_RUN
from torch.profiler import record_function

from align import cli
from align.bench import count as counting
from align.bench import plain as plain_module
from align.bench import step as module
from align.config.train import TRAIN, TrainConfig
from align.memory import estimate as memory
from align.memory.tracker import FAKE, Tracker
from align.presets.load import resolve
from align.training import checkpoints as state
from align.training.loop import train
from evaluate import layouts, scorers, weights
from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError
from prompts.io.validate import validate

EXACT = {"precision": "fp64", "ema": 0.0, "steps": 3, "student": {"name": "sgd", "learning_rate": 1e-3}}
REWARDED = {"method": "di*", "rewards": [{"scorer": "shapes/clip", "scale": 0.5}]}


def make(reference: Path, **changes: Any) -> TrainConfig:
    assistant = {"name": "sgd", "learning_rate": 1e-3, "warmup": 0, "updates": 2}
    content = SMALL_RUN | {"reference": str(reference), "assistant": assistant, "held_out": {}} | changes
    return validate(TrainConfig, content, "test")


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "sim"},
        {"method": "sim", "divergence": {"gradient": "detached", "weight": "dmd"}, "gradient_accumulation_steps": 2},
        REWARDED | {"guidance": {"where": "reference", "scale": 2.0}, "lora": None},
        REWARDED | {"guidance": {"where": "reward", "scale": 3.0}, "divergence": {"distance": "l2", "weight": "edm"}},
    ],
    ids=["sim", "detached, accumulated", "guidance in", "guidance out"],
)
def test_the_plain_implementation_trains_the_same(
    tiny: Path, tmp_path: Path, changes: dict[str, Any], tiny_clip: None
) -> None:
    """Weights after three steps, in float64: what is compared in time and memory does the same work."""
    config = make(tiny, **EXACT | changes)
    train(config, tmp_path, show=False)
    saved = state.load_newest(tmp_path / "state")
    assert saved is not None
    ours = saved[1]["student"]
    plain = plain_module.build(config, device=torch.device("cpu"))
    start = {name: value.clone() for name, value in plain.roles.student.state_dict().items()}
    for k in range(config.steps):
        plain_module.step(plain, k)
    for name, value in plain.roles.student.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)
    assert any(not value.equal(start[name]) for name, value in plain.roles.student.state_dict().items())


@pytest.mark.slow
def test_a_run_on_drawn_weights_needs_configs_alone(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "run").mkdir()
    config = make(bare, method="sim", steps=3, initial="runs/not-there.safetensors")
    seconds, peak, flops = module._trainer(config, torch.device("cpu"), tmp_path / "run", random_weights=True)
    assert len(seconds) == config.steps - module.UNTIMED and peak > 100 and flops() > 1e6
    assert not list((tmp_path / "run").iterdir()), "what is measured is not kept"


def test_of_a_few_step_generator_the_step_that_is_counted_is_timed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one: which a batch with a number trains is drawn."""
    monkeypatch.setattr(module, "_seconds", lambda *_: [1.0])
    monkeypatch.setattr("align.training.process.Launched", lambda *_: None)
    for measured, builder in ((module._trainer, "align.training.setup"), (module._plain, "align.bench.plain")):
        run = SimpleNamespace(batches=SimpleNamespace(numbered=True))
        monkeypatch.setattr(f"{builder}.build", lambda *_, run=run, **__: run)
        measured(make(tiny), torch.device("cpu"), tmp_path, random_weights=True)
        assert not run.batches.numbered


def test_drawn_weights_are_never_zeros() -> None:
    layer = torch.nn.Conv2d(8, 16, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    weights.RandomWeights().fill(layer, {}, "nothing")
    assert layer.weight.ne(0).all() and layer.bias.ne(0).all()  # type: ignore[union-attr]
    assert layer.weight.std().item() == pytest.approx((8 * 9) ** -0.5, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "exact_sequential", "detached"])
def test_a_steps_operations_are_those_that_torch_counts(tiny: Path, tmp_path: Path, gradient: str) -> None:
    """The estimate's, on fake tensors, against torch's counter on the loop with its true ones."""
    from torch.utils.flop_counter import FlopCounterMode

    (tmp_path / "prompts.txt").write_text("a circle\na square\n")
    counts = []
    for steps in (1, 2):
        config = make(
            tiny,
            method="sim",
            steps=steps,
            divergence={"gradient": gradient},
            gradient_accumulation_steps=2,
            prompts=str(tmp_path / "prompts.txt"),
            text_cache=str(tmp_path / f"texts-{steps}"),
        )
        (tmp_path / str(steps)).mkdir()
        with FlopCounterMode(display=False) as counter:
            train(config, tmp_path / str(steps), show=False)
        counts.append(counter.get_total_flops())
    assert memory.estimate(config, cuda=False).flops == counts[1] - counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_a_plain_steps_operations_and_memory_are_those_on_true_tensors(
    tiny: Path, tmp_path: Path, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts, which it encodes as batches are drawn, included."""
    from torch.utils.flop_counter import FlopCounterMode

    (tmp_path / "prompts.txt").write_text("a circle\na square\n")
    config = make(
        tiny,
        method="sim",
        divergence={"gradient": gradient},
        gradient_accumulation_steps=2,
        prompts=str(tmp_path / "prompts.txt"),
    )
    found = memory.estimate(plain_module.as_plain(config), cuda=False, implementation=plain_module.PLAIN)
    tracker, copies = Tracker(), plain_module._full_copies

    def counted(*args: Any, **options: Any) -> Any:
        roles = copies(*args, **options)
        tracker.hold("weights", [tensor for network in roles.networks() for tensor in network.state_dict().values()])
        return roles

    monkeypatch.setattr(plain_module, "_full_copies", counted)
    with tracker:
        run = plain_module.build(config, device=torch.device("cpu"))
        # What is read from files goes unseen too.
        modules = [part for part in run.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        tracker.hold("pipeline", [t for part in modules for t in part.state_dict().values() if not tracker.part(t)])
        plain_module.step(run, 0)
        plain_module.step(run, 1)
    for phase in ("critics' update", "student's divergence", "student's backward"):
        assert found.phases[phase] == pytest.approx(tracker.peaks[phase], rel=0.05), phase
    with FlopCounterMode(display=False) as counter:
        plain_module.step(run, 2)
    assert found.flops == counter.get_total_flops()
    assert set(found.operations) == {
        "encoding texts", "critics' update", "student's forward", "student's divergence", "student's backward",
    }  # fmt: skip


@pytest.mark.slow
def test_modes_are_counted_beside_the_plain_implementation(
    tiny: Path, tmp_path: Path, tiny_clip: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(tiny, **REWARDED | {"guidance": {"where": "reference", "scale": 2.0}, "batch_size": 2})
    modes: dict[str, Any] = {"roles": ["full"], "gradients": ["exact", "exact_sequential"]}
    counting.count(config, "small", sets=["seed=1"], output=tmp_path / "count.json", **modes)
    rows = json.loads((tmp_path / "count.json").read_text())["rows"]
    by_mode = {(row["implementation"], row["roles"], row["gradient"]): row for row in rows}
    assert list(by_mode) == [*module.MODES[:2], module.PLAIN[0]]
    options = "--set seed=1 --roles full --gradient exact --gradient exact_sequential"
    for row in rows:
        assert row["command"] == f"align bench small --count {options}"
        assert sum(row["tflop_per_image"].values()) == pytest.approx(row["tflop_per_image_in_all"])
        assert (
            max(row["peak_gib"].values())
            == row["peak_gib_in_all"]
            == pytest.approx(sum(row["peak_parts_gib"].values()))
        )
        assert row["peak_gib"][row["peak_phase"]] == row["peak_gib_in_all"]
        assert ("encoding texts" in row["tflop_per_image"]) == (row["implementation"] == "plain")
    ours = by_mode["trainer", "full", "exact"]
    made = memory.estimate(validate(TrainConfig, module.alone(config, "full", "exact", 1), "test"))
    assert ours["tflop_per_image_in_all"] == made.flops / 2 / 1e12
    plain = by_mode["plain", "full", "exact"]
    without_texts = plain["tflop_per_image_in_all"] - plain["tflop_per_image"]["encoding texts"]
    assert ours["tflop_per_image_in_all"] == pytest.approx(without_texts, rel=1e-3)
    sequential = by_mode["trainer", "full", "exact_sequential"]
    assert sequential["tflop_per_image_in_all"] > 1.05 * ours["tflop_per_image_in_all"]
    assert sequential["peak_gib_in_all"] < ours["peak_gib_in_all"] < plain["peak_gib_in_all"]
    shown = " ".join(capsys.readouterr().err.split())
    for word in (
        "Tflop / image",
        "GiB at most by phase",
        "assistant",
        "texts",
        "exact_sequential",
        "plain's",
        "1.000",
    ):
        assert word in shown


def test_operations_are_those_that_others_count() -> None:
    """ViT-H/14's Gflop in docs/model_profile.csv of github.com/mlfoundations/open_clip."""
    with layouts.first(), torch.device("meta"):
        clip = scorers.load("pickscore", device="meta", random_weights=True).clip
    memory._fake([clip])
    with Tracker() as tracker, FAKE, torch.no_grad():
        for name, inputs in (
            ("image", {"pixel_values": torch.zeros(1, 3, 224, 224)}),
            ("text", {"input_ids": torch.zeros(1, 77, dtype=torch.long)}),
        ):
            with record_function(name):
                getattr(clip, f"get_{name}_features")(**inputs)
    assert {name: count / 1e9 for name, count in tracker.flops.items()} == pytest.approx(
        {"image": 334.59, "text": 47.09}, abs=0.005
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sdxl_costs_no_more_than_plain_and_half_its_memory() -> None:
    """Nothing recomputed, so that both do the same work."""
    sets = ["batch_size=2", "gradient_accumulation_steps=1", "gradient_checkpointing=false"]
    config: Any = resolve("sdxl-distar", TRAIN, sets=sets)
    modes = [("trainer", "full", "exact"), ("trainer", "lora", "exact_sequential"), ("plain", "full", "exact")]
    exact, sequential, plain = (counting.counted(config, mode) for mode in modes)
    assert exact["tflop_per_image_in_all"] <= 1.02 * plain["tflop_per_image_in_all"]
    assert sequential["peak_gib_in_all"] <= plain["peak_gib_in_all"] / 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "--plain"], "--plain: --count times nothing"),
        (["--count", "--steps", "9"], "--steps: --count times nothing"),
        (["--roles", "full", "--roles", "lroa"], "--roles are full and lora"),
        (["--output", "."], ".: is a folder; name a file"),
    ],
)
def test_slips_are_refused_before_anything_is_measured(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(module, "matrix_rate", lambda *_: 1.0)
    monkeypatch.setattr("sys.argv", ["align", "bench", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_count_is_of_all_that_changes_operations() -> None:
    config = resolve("shapes-distar", TRAIN)
    assert isinstance(config, TrainConfig)
    others = [
        config.model_copy(update={"terms": {"pull": {}}}),
        config.model_copy(update={"critics": {"gan": {}}}),
        config.model_copy(update={"assistant": config.assistant.model_copy(update={"shares_images": True})}),
        config.model_copy(update={"method": "di++"}),
    ]
    assert len({module.counted_for(each)["config"] for each in (config, *others)}) == 5
    assert module.counted_for(config) == module.counted_for(config.model_copy(update={"seed": 1}))


@pytest.mark.slow
def test_counting_writes_no_row_and_needs_gradient_modes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["method=sim", "rewards=[]", "held_out={}", f"reference={tiny}", "initial=null", "batch_size=2"]
    words = [*module.repeated("--set", sets), "--roles", "lora", "--gradient", "exact_sequential"]

    def call(preset: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["align", "bench", preset, "--count", *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    code, out, err = call("shapes-distar", *words)
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert (row["roles"], row["gradient"], row["preset"]) == ("lora", "exact_sequential", "shapes-distar")
    assert not list(tmp_path.rglob("training.csv"))
    code, _, err = call("shapes-distar", "--leaderboards", str(tmp_path))
    assert code == 2 and "--count times nothing" in err
    code, _, err = call("shapes-di")
    assert code == 2 and "has no gradient modes" in err


def test_the_rate_of_a_matrix_product_is_its_operations_over_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Call(NamedTuple):
        least: float

    def timed(call: Any, *, device: str) -> Call:
        assert call().shape == (64, 64) and call().dtype == torch.bfloat16
        return Call(least=0.5)

    monkeypatch.setattr(module.timing, "time_call", timed)
    assert module.matrix_rate("cpu", "bf16", size=64) == 2 * 64**3 / 0.5


@pytest.mark.slow
def test_what_is_measured_is_written(
    tiny: Path,
    tmp_path: Path,
    quick_programs: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "MODES", [("trainer", "full", "exact")])
    monkeypatch.setattr(module, "PLAIN", [("plain", "full", "exact")])
    monkeypatch.setattr(module, "matrix_rate", lambda *_: 1e9)
    config = make(tiny, method="sim", batch_size=2, precision="bf16")
    module.bench(
        config,
        "small",
        sets=["seed=1"],
        steps=1,
        rounds=2,
        random_weights=True,
        plain=True,
        roles=["full"],
        gradients=[],
        output=None,
        leaderboards=tmp_path,
    )
    rows = read_csv(tmp_path / "training.csv")
    assert [(row["implementation"], row["roles"], row["gradient"]) for row in rows] == [
        ("trainer", "full", "exact"),
        ("plain", "full", "exact"),
    ]
    for row in rows:
        assert (
            row["command"]
            == "align bench small --set seed=1 --steps 1 --roles full --rounds 2 --random-weights --plain"
        )
        assert row["weights"] == "random" and row["hardware"]
        assert float(row["images_per_second"]) == pytest.approx(2 / float(row["step_s"]))
        assert float(row["peak_mib"]) > max(100, float(row["held_mib"])) and float(row["held_mib"]) > 1
        share = float(row["tflops"]) / float(row["step_s"]) / float(row["matrix_tflops"])
        assert float(row["share"]) == pytest.approx(share) and share > 0
    trainer, plain = (float(row["tflops"]) for row in rows)
    assert plain == pytest.approx(trainer, rel=0.05)
    assert "of the plain implementation's time" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_implementations_take_turns_and_medians_are_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([1.0, 7.0, 9.0, 2.0, 3.0, 8.0])
    order = []

    def measured(content: dict[str, Any], *, random_weights: bool, plain: bool, count: bool) -> dict[str, Any]:
        order.append("plain" if plain else "trainer")
        assert count == (len(order) <= 2), "operations are counted once"
        assert content["sample_every"] == 0 and content["divergence"]["gradient"] == "exact" and content["lora"] is None
        return {"step_s": next(seconds), "peak_mib": 2.0, "held_mib": 1.0, "tflops": 1.0 if count else None}

    monkeypatch.setattr(module, "_measure", measured)
    monkeypatch.setattr(module, "matrix_rate", lambda *_: 1e12)
    config, path = make(tiny, method="sim"), tmp_path / "bench.json"
    common: dict[str, Any] = {"sets": [], "steps": 1, "random_weights": False, "leaderboards": None}
    module.bench(config, "small", rounds=3, plain=True, roles=["full"], gradients=["exact"], output=path, **common)
    assert order == ["trainer", "plain", "plain", "trainer", "trainer", "plain"]
    assert {row["implementation"]: row["step_s"] for row in json.loads(path.read_text())["rows"]} == {
        "trainer": 2.0,
        "plain": 8.0,
    }
    assert "0.250 of the plain implementation's time, 1.000 of its memory" in " ".join(capsys.readouterr().err.split())
    more = {"rounds": 1, "plain": True, "roles": ["full"], "gradients": ["exact"], "output": path} | common
    counted = tmp_path / "count.json"
    counting.count(config, "small", sets=[], roles=["full"], gradients=["exact"], output=counted)
    operations = [row["tflop_per_image_in_all"] for row in json.loads(counted.read_text())["rows"]]
    order.extend(["", ""])
    seconds = iter([1.0, 1.0])
    module.bench(config, "small", counted=counted, **more)
    rows = json.loads(path.read_text())["rows"]
    assert [row["tflops"] for row in rows] == [each * config.batch_size for each in operations]
    with pytest.raises(UserError, match="counted for preset small, and here it is large; count it again"):
        module.bench(config, "large", counted=counted, **more)
    with pytest.raises(UserError, match="not what 'align bench --count --output' writes"):
        module.bench(config, "small", counted=path.with_name("config.yaml"), **more)
    with pytest.raises(UserError, match="nothing is left to measure"):
        module.bench(config, "small", rounds=1, plain=False, roles=["none"], gradients=[], output=path, **common)


def test_what_does_not_fit_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_trainer", full)
    monkeypatch.setattr(module.layouts, "used", set())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make(tiny, method="sim").model_dump(mode="json")))
    module._run(path, random_weights=True, plain=False)
    measured = json.loads(capsys.readouterr().out)
    assert measured.pop("layouts") == [] and set(measured.values()) == {None}
    common = {"implementation": "trainer", "roles": "full", "gradient": "exact", "matrix_tflops": 1.0}
    module.show([measured | common], "a title")
    assert "does not fit" in capsys.readouterr().err
