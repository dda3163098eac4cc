"""What a step costs: the plain implementation that the trainer is measured against,
drawn weights, and what is written.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from tiny import SMALL_RUN

from align.bench import plain as plain_module
from align.bench import step as module
from align.config.overrides import validate
from align.config.train import TrainConfig
from align.memory import estimate as memory
from align.training import checkpoints as state
from align.training.loop import train
from evaluate import weights
from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError

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


def test_a_run_on_drawn_weights_needs_configs_alone(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "run").mkdir()
    config = make(bare, method="sim", steps=2, initial="runs/not-there.safetensors")
    assert train(config, tmp_path / "run", show=False, random_weights=True)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_drawn_weights_are_never_zeros() -> None:
    layer = torch.nn.Conv2d(8, 16, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    weights.RandomWeights().fill(layer, {}, "nothing")
    assert layer.weight.ne(0).all() and layer.bias.ne(0).all()  # type: ignore[union-attr]
    assert layer.weight.std().item() == pytest.approx((8 * 9) ** -0.5, rel=0.1)


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
    with pytest.raises(UserError, match="nothing is left to measure"):
        module.bench(config, "small", rounds=1, plain=False, roles=["none"], gradients=[], output=path, **common)


def test_what_does_not_fit_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_trainer", full)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make(tiny, method="sim").model_dump(mode="json")))
    module._run(path, random_weights=True, plain=False)
    measured = json.loads(capsys.readouterr().out)
    assert set(measured.values()) == {None}
    common = {"implementation": "trainer", "roles": "full", "gradient": "exact", "matrix_tflops": 1.0}
    module.show([measured | common], "a title")
    assert "does not fit" in capsys.readouterr().err
