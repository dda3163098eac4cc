"""The loop: methods, storage of roles, resuming, processes, and what it leaves."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import SMALL_RUN, save_tiny

from align.config.train import TrainConfig
from align.memory import estimate as memory
from align.networks.initial import LORA
from align.networks.lora import LoraConfig, merged
from align.networks.roles import Roles
from align.objectives.distances import DISTANCES
from align.objectives.metrics import Metrics
from align.objectives.weightings import WEIGHTS
from align.training import checkpoints as state
from align.training import loop as module
from align.training import process, setup, validation
from align.training.ema import EMA
from align.training.health import Diverged, Health
from align.training.loop import train
from align.training.result import finish
from align.training.setup import Run
from evaluate import pipelines, weights
from evaluate.diffusion import append_dims
from evaluate.families import UNET_LAYERS
from prompts.io.errors import UserError
from prompts.io.validate import validate


def make(tiny: Path, **changes: Any) -> TrainConfig:
    content = SMALL_RUN | {"reference": str(tiny)} | changes
    return validate(TrainConfig, content, "test")


def run(config: TrainConfig, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train in `folder` and return the network of its checkpoint."""
    folder.mkdir(exist_ok=True)
    assert train(config, folder, show=False, **options)
    return network(folder)


def network(folder: Path) -> dict[str, torch.Tensor]:
    return weights.read(folder / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


REWARDED = {"rewards": [{"scorer": "shapes/clip", "scale": 0.5}]}
METHODS: dict[str, dict[str, Any]] = {
    "di": {},
    "sim": {},
    "di++": REWARDED | {"guidance": {"where": "reward", "scale": 2.0}},
    "di*": REWARDED | {"guidance": {"where": "reference", "scale": 2.0}},
}


@pytest.mark.parametrize("changes", [{"prompts": "/no/captions.txt"}, {"held_out": {"prompts": "/no/captions.txt"}}])
def test_captions_that_cannot_be_read_are_refused_before_a_model_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(setup, "load_pipeline", lambda *_, **__: pytest.fail("gigabytes were fetched"))
    held_out = SMALL_RUN["held_out"] | changes.get("held_out", {})
    with pytest.raises(UserError, match=r"/no/captions\.txt"):
        run(make(tiny, **changes | {"held_out": held_out}), tmp_path / "run")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_logs_and_leaves_a_checkpoint(
    tiny: Path, tmp_path: Path, method: str, tiny_clip: None
) -> None:
    trained = run(make(tiny, method=method, **METHODS[method]), tmp_path / "run")
    before = weights.read(tiny / "unet" / "diffusion_pytorch_model.safetensors")
    assert largest_difference(trained, before) > 1e-6
    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert "divergence" not in lines[0], "the first step is the assistant's warm-up"
    expected = {
        "assistant",
        "divergence",
        "divergence_gradient",
        "student_gradient",
        "images_per_second",
        "held_out/shapes/oracle",
    }
    assert expected <= lines[-1].keys()
    for line in lines:  # in the warm-up too: the critics' update is then the whole step
        assert line["images_per_second"] == pytest.approx(8 / line["seconds"])
    if METHODS[method]:
        assert lines[-1]["reward_ratio"] == pytest.approx(
            lines[-1]["reward_gradient"] / lines[-1]["divergence_gradient"]
        )
        assert "reward/shapes/clip" in lines[-1]
    images = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert {"step-00000.png", "step-00005.png", "step-00005-predictions.png"} <= images


def built(config: TrainConfig, folder: Path) -> Run:
    from align.training import setup
    from align.training.process import Alone

    return setup.build(config, folder, Alone(config, "cpu"), show=False)


def test_the_assistant_learns_to_denoise_what_it_is_told_of(tiny: Path, tmp_path: Path) -> None:
    """DI++ eq. 2.2 on a run's own networks: the prompt's conditioning, the noise level's weight."""
    run = built(make(tiny, precision="fp64", held_out={}), tmp_path)
    (batch,) = run.batches(0)
    with torch.no_grad():
        x0 = run.generator.sample(run.roles.student, batch)
        sigma = append_dims(batch.sigma, x0)
        denoiser = run.preconditioning.denoiser(run.roles.assistant, batch.cond)
        error = denoiser(x0 + sigma * batch.noise("diffusion"), batch.sigma) - x0
    expected = ((sigma**2 + 1) / sigma**2 * error**2).flatten(1).sum(1)
    torch.testing.assert_close(run.critics[0].loss(x0, batch), expected)


@pytest.mark.parametrize("method", ["di", "di++"])
def test_integral_kl_is_what_di_and_dipp_descend(tiny: Path, tmp_path: Path, method: str, tiny_clip: None) -> None:
    """DI++ eq. 3.8 on a run's own networks, with guidance in the reference."""
    rewards = REWARDED if method == "di++" else {}
    guidance = {"where": "reference", "scale": 2.0}
    run = built(make(tiny, method=method, precision="fp64", held_out={}, guidance=guidance, **rewards), tmp_path)
    (batch,) = run.batches(0)
    with torch.no_grad():
        x0 = run.generator.sample(run.roles.student, batch)
        x = x0 + append_dims(batch.sigma, x0) * batch.noise("diffusion")
        score, cond, uncond = (
            run.preconditioning.denoiser(role, told)(x, batch.sigma)
            for role, told in (
                (run.roles.assistant, batch.cond),
                (run.roles.reference, batch.cond),
                (run.roles.reference, batch.uncond),
            )
        )
        target = uncond + 2 * (cond - uncond)
        weight = 1 / (x0 - target).flatten(1).norm(dim=1)
    divergence = run.terms[0].gradient(x0, batch, Metrics())
    assert [term.name for term in run.terms] == ["divergence", *(["reward"] if rewards else [])]
    torch.testing.assert_close(divergence, append_dims(weight, x0) * (score - target) / len(x0))


def test_gradients_are_clipped_and_their_norm_is_noted(tiny: Path, tmp_path: Path) -> None:
    sgd = {"name": "sgd", "learning_rate": 1.0, "max_grad_norm": 10.0}
    run = built(make(tiny, precision="fp64", held_out={}, student=sgd), tmp_path)
    parameters, metrics = list(run.student.parameters.values()), Metrics()
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for parameter, value in zip(parameters, (30.0, 40.0), strict=False):
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = value
    run.student.step(metrics)
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, parameters, strict=True)])
    assert moved.norm().item() == pytest.approx(10) and moved.max().item() == pytest.approx(8)
    assert metrics.values["student_gradient"].item() == pytest.approx(50)


def test_a_weight_and_a_distance_are_one_entry(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "mine", None)
    monkeypatch.setitem(DISTANCES, "mine", lambda u, c: u.abs().sum())
    assert make(tiny, divergence={"weight": "mine", "distance": "mine"}).divergence.weight == "mine"
    for changes, known in (
        ({"divergence": {"weight": "edn"}}, "divergence.weight = edn: unknown; choose from constant, edm"),
        ({"noise_levels": {"name": "normal"}}, "noise_levels.name = normal: unknown; choose from lognormal, uniform"),
    ):
        with pytest.raises(UserError, match=known):
            make(tiny, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"divergence": {"distance": "hubber"}}, r"divergence\.distance = hubber: .*choose from l2, pseudo_huber"),
        ({"lora": {"target_modules": ["nowhere"]}}, r"lora\.target_modules: 'nowhere' is no layer of the network"),
        ({"lora": {"target_modules": ["to_q", "to_z"]}}, r"'to_z' is no layer of the network; did you mean 'to_"),
    ],
)
def test_slips_are_refused_before_prompts_are_encoded(
    tiny: Path, tmp_path: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.training import setup

    monkeypatch.setattr(setup, "prepare", lambda *_, **__: pytest.fail("hours of encoding"))
    with pytest.raises(UserError, match=said):
        built(make(tiny, method="sim", held_out={}, **changes), tmp_path)


def test_a_checkpointed_block_switches_no_adapter_that_is_on(tiny: Path, tmp_path: Path) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    lora = {"lora": {"rank": 2, "alpha": 2.0}, "gradient_checkpointing": True}
    run, switched = built(make(tiny, method="sim", held_out={}, **lora), tmp_path), []
    (batch,) = run.batches(0)
    loss = run.critics[0].loss(run.generator.sample(run.roles.student, batch).detach(), batch).sum()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BaseTunerLayer, "set_adapter", lambda self, names: switched.append(names))
        loss.backward()
    assert not switched
    assert all(p.grad is not None for name, p in run.learners["assistant"].parameters.items() if "lora_B" in name)


CRITIC = """
import torch
from align.networks.optimizers import Optimizer as Options

class Watch:
    name = "watch"

    def __init__(self):
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        torch.nn.init.constant_(self.network[0].weight, 0.5)
        self.network[0].requires_grad_(False)

    def loss(self, x0, batch):
        return self.network(x0.mean((2, 3)).to(torch.float32)).square().flatten()

def build(options, denoisers):
    return Watch()
"""


def test_what_a_critic_counts_is_resumed_and_what_it_froze_stays(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import align.critics

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "watch.py").write_text(CRITIC)
    monkeypatch.setattr(align.critics, "__path__", [*align.critics.__path__, str(tmp_path / "mine")])
    config = make(tiny, method="sim", critics={"watch": {"learning_rate": 1e-2}}, held_out={}, save_every=1)
    run(config, tmp_path / "whole")
    run(config.model_copy(update={"steps": 2}), tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    whole, parts = (state.load_newest(tmp_path / name / "state") for name in ("whole", "parts"))
    assert whole and parts
    assert {"1.running_mean", "1.num_batches_tracked", "2.weight"} <= whole[1]["watch"].keys()
    for name, value in whole[1]["watch"].items():
        torch.testing.assert_close(parts[1]["watch"][name], value, rtol=0, atol=0)
    assert "0.weight" not in whole[1]["watch"], "it is not trained"


def test_the_average_is_exponential() -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    average = EMA({"p": parameter}, 0.9)
    for value in (1.0, 2.0):
        parameter.data.fill_(value)
        average.update()
    assert average.values["p"].item() == pytest.approx(0.9 * 0.1 * 1 + 0.1 * 2)


def test_no_samples_are_drawn_where_none_are_wanted(tiny: Path, tmp_path: Path) -> None:
    config = make(tiny, method="sim", steps=1, sample_every=0, held_out={})
    (tmp_path / "run").mkdir()
    assert train(config, tmp_path / "run", show=False)
    assert (tmp_path / "run" / "checkpoint").exists() and not (tmp_path / "run" / "samples").exists()
    assert not any("samples" in phase for phase in memory.estimate(config, cuda=False).phases)


@pytest.mark.parametrize(("input_scale", "sigma_init"), [("sigma_init", 2.5), ("unit_variance", 1.1606)])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}])
def test_stock_diffusers_draws_the_trainers_image(
    tiny: Path,
    tmp_path: Path,
    input_scale: str,
    sigma_init: float,
    lora: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusers import DiffusionPipeline

    drawn: list[torch.Tensor] = []
    reference = pipelines.load(str(tiny))
    z = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    prompts = ["a small red circle on a white background", "", "nothing of the grammar, at all!"]

    def draw_before_merging(run: Run, step: int) -> None:
        batch: Any = SimpleNamespace(
            cond=run.preconditioning.family.encode(reference, prompts), noise=lambda name: {"z": z}[name]
        )
        with torch.no_grad(), run.average.applied():
            drawn.append(run.generator.sample(run.roles.student, batch))
        finish(run, step)

    monkeypatch.setattr(module, "finish", draw_before_merging)
    run(make(tiny, generator={"input_scale": input_scale, "sigma_init": sigma_init}, lora=lora), tmp_path / "run")

    folder = tmp_path / "run" / "checkpoint"
    stock = DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    latents = stock(prompts, latents=z, output_type="latent", **pipelines.read_recipe(str(folder)).call()).images
    assert (latents - drawn[0]).abs().max().item() < 1e-5
    assert drawn[0].std() > 0.1


def test_resuming_is_bit_identical(tiny: Path, tmp_path: Path, tiny_clip: None) -> None:
    options: dict[str, Any] = {"method": "di*", "save_every": 2, **REWARDED}
    whole = run(make(tiny, **options), tmp_path / "whole")
    run(make(tiny, **options, steps=2), tmp_path / "parts")
    assert largest_difference(whole, network(tmp_path / "parts")) > 0
    parts = run(make(tiny, **options), tmp_path / "parts", resume=True)
    assert largest_difference(whole, parts) == 0
    # The shorter run also looked at the held-out captions when it ended.
    same = [
        [{k: v for k, v in line.items() if "second" not in k and "held_out" not in k} for line in log(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert same[0] == same[1]


def test_a_torn_state_is_skipped(tiny: Path, tmp_path: Path) -> None:
    config = make(tiny, save_every=2)
    whole = run(config, tmp_path / "run")
    newest = max(state.steps(tmp_path / "run" / "state"))
    torn = tmp_path / "run" / "state" / f"step-{newest}" / "student.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="skipping a torn state"):
        again = run(config, tmp_path / "run", resume=True)
    assert largest_difference(whole, again) == 0


EXACT = {
    "precision": "fp64",
    "student": {"name": "sgd", "learning_rate": 1e-3},
    "assistant": {"name": "sgd", "learning_rate": 1e-6, "warmup": 1},
}


def test_micro_batches_equal_one_batch(tiny: Path, tmp_path: Path) -> None:
    one = run(make(tiny, **EXACT), tmp_path / "one")
    four = run(make(tiny, **EXACT, gradient_accumulation_steps=4), tmp_path / "four")
    assert largest_difference(one, four) < 1e-12


@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 2, "alpha": 4.0}, marks=pytest.mark.slow)])
def test_checkpointing_changes_nothing(tiny: Path, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    options = EXACT | {"method": "sim", "lora": lora}
    plain = run(make(tiny, **options), tmp_path / "plain")
    checkpointed = run(make(tiny, **options, gradient_checkpointing=True), tmp_path / "checkpointed")
    assert largest_difference(plain, checkpointed) < 1e-12


@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 2, "alpha": 4.0}, marks=pytest.mark.slow)])
def test_gradient_modes_agree_in_training(tiny: Path, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    options = EXACT | {"method": "sim", "lora": lora}
    results = {
        mode: run(make(tiny, **options, divergence={"gradient": mode}), tmp_path / mode)
        for mode in ("exact", "exact_sequential", "detached")
    }
    assert largest_difference(results["exact"], results["exact_sequential"]) < 1e-12
    assert largest_difference(results["exact"], results["detached"]) > 1e-9


def test_lora_adapters_leave_the_reference_alone(tiny: Path) -> None:
    torch.manual_seed(0)
    base = pipelines.load(str(tiny)).unet
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([3, 500]), torch.randn(2, 24, 16)
    with torch.no_grad():
        expected = base(x, t, encoder_hidden_states=text)[0]
    roles = Roles(
        base, base, same=True, lora=LoraConfig(rank=2, alpha=4.0, target_modules=UNET_LAYERS), checkpointing=False
    )
    student, assistant = roles.trainable(roles.student), roles.trainable(roles.assistant)
    assert student.keys().isdisjoint(assistant.keys())
    assert all(p.requires_grad for p in [*student.values(), *assistant.values()])
    with torch.no_grad():
        for parameter in student.values():
            parameter.normal_(std=0.1)  # as large as a trained one's, so that sums are not lost in rounding
        outputs = [
            role(x, t, encoder_hidden_states=text)[0] for role in (roles.student, roles.assistant, roles.reference)
        ]
        with roles.constant(roles.assistant):
            roles.assistant(x, t, encoder_hidden_states=text)
            assert not any(p.requires_grad for p in assistant.values()), "an adapter that is constant is trained"
            assert all(p.requires_grad for p in student.values())
    assert all(p.requires_grad for p in [*student.values(), *assistant.values()])
    assert (outputs[0] - expected).abs().max() > 1e-3
    torch.testing.assert_close(outputs[1], expected)
    torch.testing.assert_close(outputs[2], expected)
    fresh = pipelines.load(str(tiny)).unet
    fresh.load_state_dict(merged(roles.student))
    with torch.no_grad():
        torch.testing.assert_close(fresh(x, t, encoder_hidden_states=text)[0], outputs[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precisions(tiny: Path, tmp_path: Path, precision: str) -> None:
    run(make(tiny, precision=precision), tmp_path / "run")


def test_divergence_stops_the_run_and_names_step_term_and_batch(tiny: Path, tmp_path: Path) -> None:
    options = {"student": {"learning_rate": 1e30}, "steps": 5}
    with pytest.raises(Diverged, match=r"step \d+: \w+ is (nan|inf)"):
        train(make(tiny, **options), tmp_path, show=False)
    failed = json.loads((tmp_path / "failed-batch.json").read_text())
    assert failed["step"] >= 2
    assert len(failed["prompts"]) == 8


def test_a_reward_that_most_steps_have_no_part_of_is_no_explosion(tiny: Path, tmp_path: Path) -> None:
    few = {"name": "few_step", "sigma_init": 2.5, "levels": [1.2, 0.6, 0.3], "input_scale": "sigma_init", "eta": 0.0}
    run(make(tiny, generator=few, method="di*", steps=40, batch_size=2, **REWARDED), tmp_path)
    gradients = [row["reward_gradient"] for row in log(tmp_path) if "reward_gradient" in row]
    assert gradients.count(0.0) > 20
    assert max(gradients[25:]) > 0


def test_a_jump_of_a_gradient_is_an_explosion_however_seldom_it_is_there(tmp_path: Path) -> None:
    health = Health(tmp_path, writes=True)
    for step in range(1, 81):
        health.check({"reward_gradient": 0.05 if step % 4 == 0 else 0.0}, step, ["a"])
    with pytest.raises(Diverged, match="step 84: reward_gradient is 600"):
        health.check({"reward_gradient": 600.0}, 84, ["a"])


@pytest.mark.parametrize("guard", ["stop", "warn"])
def test_the_guard_names_the_scorer_that_fell(
    tiny: Path,
    tmp_path: Path,
    guard: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_clip: None,
) -> None:
    looks = iter(range(100))

    class Falling:
        def check_meta(self, meta: Any) -> None: ...

        def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            return torch.full((len(images),), 5.0 - next(looks))

    load = validation.scorers.load
    monkeypatch.setattr(
        validation.scorers, "load", lambda name, **kw: Falling() if name == "shapes/oracle" else load(name, **kw)
    )
    # A reward that always rises: minus the scale of a falling one would do; here the baseline is pulled down.
    held = {"scorers": {"shapes/oracle": 1.5}, "prompts": "shapes:test", "images": 4, "every": 1, "guard": guard}
    evaluate = validation.Validation.evaluate

    def with_a_low_baseline(self: Any, student: Any) -> Any:
        result = evaluate(self, student)
        self.baseline["held_out/reward"] = -1e9
        return result

    monkeypatch.setattr(validation.Validation, "evaluate", with_a_low_baseline)
    with pytest.raises(UserError, match="stopped at step 2 by") if guard == "stop" else nullcontext():
        assert train(make(tiny, method="di*", **REWARDED, held_out=held), tmp_path)
    assert "shapes/oracle fell from 5 to 3, more than 1.5" in " ".join(capsys.readouterr().err.split())
    assert len(log(tmp_path)) == (5 if guard == "warn" else 2)
    assert (tmp_path / "checkpoint" / "model_index.json").is_file()


def test_the_guard_trips_without_a_reward_too_but_not_over_a_step_that_is_the_last(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.9, 0.5, 0.4])  # first look, then three steps

    def scored(self: Any, student: Any) -> dict[str, torch.Tensor]:
        return {"held_out/shapes/oracle": torch.tensor([next(scores)])}

    monkeypatch.setattr(validation.Validation, "scores", scored)
    held = {"scorers": {"shapes/oracle": 0.1}, "prompts": "shapes:test", "images": 4, "every": 1, "guard": "stop"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"stopped at step 2 .* \(held-out shapes/oracle fell from 0.9 to 0.5"):
        train(make(tiny, method="sim", steps=3, held_out=held), tmp_path / "one", show=False)
    scores = iter([0.9, 0.9, 0.5])
    assert train(make(tiny, method="sim", steps=1, held_out=held), tmp_path / "two", show=False)  # and one of warm-up


def test_the_guard_lets_a_run_go_on_whose_reward_has_not_risen(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_clip: None
) -> None:
    scores = iter([0.9, 0.7, 0.5, 0.3])

    def scored(self: Any, student: Any) -> dict[str, torch.Tensor]:
        return {"held_out/shapes/oracle": torch.tensor([next(scores)]), "held_out/reward": torch.tensor([2.0])}

    monkeypatch.setattr(validation.Validation, "scores", scored)
    held = {"scorers": {"shapes/oracle": 0.1}, "prompts": "shapes:test", "images": 4, "every": 1, "guard": "stop"}
    assert train(make(tiny, method="di*", steps=2, **REWARDED, held_out=held), tmp_path, show=False)
    assert not list(scores), "it was looked at"


def test_the_guard_measures_a_fall_from_the_first_look_of_all_not_from_a_resumed_runs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0.9

    def scored(self: Any, student: Any) -> dict[str, torch.Tensor]:
        return {"held_out/shapes/oracle": torch.tensor([seen])}

    monkeypatch.setattr(validation.Validation, "scores", scored)
    held = {"scorers": {"shapes/oracle": 0.1}, "prompts": "shapes:test", "images": 4, "every": 1, "guard": "stop"}
    assert train(make(tiny, method="sim", steps=1, held_out=held), tmp_path, show=False)
    seen = 0.5
    with pytest.raises(UserError, match=r"fell from 0\.9 to 0\.5"):
        train(make(tiny, method="sim", steps=3, held_out=held), tmp_path, resume=True, show=False)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ([0.1, float("nan"), 0.1, 0.1], r"fell from 0\.9 to 0\.1"),
        ([0.9, float("nan"), float("nan"), 0.9], "shapes/oracle has no score of 2 of 4 held-out images"),
    ],
)
def test_the_guard_sees_past_an_image_without_a_score(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: list[float], said: str
) -> None:
    scores = iter([[0.9, float("nan"), 0.9, 0.9], later, later])

    def scored(self: Any, student: Any) -> dict[str, torch.Tensor]:
        return {"held_out/shapes/oracle": torch.tensor(next(scores))}

    monkeypatch.setattr(validation.Validation, "scores", scored)
    held = {"scorers": {"shapes/oracle": 0.1}, "prompts": "shapes:test", "images": 4, "every": 1, "guard": "stop"}
    with pytest.raises(UserError, match=said):
        train(make(tiny, method="sim", steps=3, held_out=held), tmp_path, show=False)


def test_trackers_are_told_numbers_and_words_alone(tiny: Path) -> None:
    told = dict(process._flat(make(tiny, method="di*", **REWARDED).model_dump(mode="json")))
    assert told["student.learning_rate"] > 0
    assert json.loads(str(told["rewards"]))[0]["scorer"] == "shapes/clip"
    assert all(isinstance(value, bool | int | float | str) for value in told.values())


def test_a_state_of_more_gpus_is_read_by_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.append)
    state.set_rng_state(state.rng_state() | {"cuda": ["first", "second"]})
    assert given == [["first"]]


# ---- processes -------------------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys, weakref
from pathlib import Path
import torch
torch.set_num_threads(1)
from prompts.io.validate import validate
from align.config.train import TrainConfig
from align.networks import sharding
from align.training import learner, loop, result
from align.memory.tracker import Tracker
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
if sys.argv[3] == "drop" and os.environ["RANK"] == "1":
    # What the equality below must notice: the second process's gradients are thrown away before they are averaged.
    from accelerate import Accelerator
    backward = Accelerator.backward
    Accelerator.backward = lambda self, loss: backward(self, 0 * loss)
original = learner.make_optimizer
def watched(options, parameters):
    assert torch.distributed.get_world_size() == 2
    kinds = {isinstance(parameter, DTensor) for parameter in parameters}
    assert kinds == {'"fsdp2"' in Path(sys.argv[1]).read_text()}, "accelerate falls back to whole copies without a word"
    return original(options, parameters)
learner.make_optimizer = watched
content = json.loads(Path(sys.argv[1]).read_text())
first, peaks, sizes = os.environ["RANK"] == "0", {}, {}
def size(tensor):
    return tensor.numel() * tensor.itemsize
def gathers(name, function):
    def noted(*arguments):
        with Tracker() as tracker:
            result = function(*arguments)
        peaks[name] = max(peaks.get(name, 0), tracker.most)
        if name == "merged":
            sizes.update({key: size(value) for key, value in arguments[0].state_dict().items()})
        kept = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        assert all(leaf.device.type == "cpu" for leaf in kept if leaf.ndim), f"{name} leaves a whole tensor on a device"
        assert first or not kept, f"{name} leaves a whole tensor in the second process"
        return result
    return noted
def like(tensor, parameter, like=sharding.like):
    narrow = tensor.float()  # moving it whole would make another one, on a CPU too
    with Tracker() as tracker:
        tracker.hold("file", [narrow])
        like(narrow, parameter)
    assert len(tensor) == 1 or tracker.most < 2 * size(narrow), "a whole tensor was moved for a part of it"
    return like(tensor, parameter)
gathered = []
def full_tensor(tensor, full_tensor=DTensor.full_tensor):
    whole = full_tensor(tensor)
    if whole.ndim:
        gathered.append(weakref.ref(whole))
        assert first or sum(each() is not None for each in gathered) == 1, "a second whole tensor in the second process"
    return whole
if content["parallel"] == "fsdp2":
    DTensor.full_tensor = full_tensor
    sharding.gathered, sharding.like = gathers("state", sharding.gathered), like
    result.merged, result.adapter = gathers("merged", result.merged), gathers("adapter", result.adapter)
assert loop.train(validate(TrainConfig, content, "test"), Path(sys.argv[2]), show=False, resume=sys.argv[4] == "resume")
if content["parallel"] == "fsdp2":
    assert gathered and peaks.keys() == {"state", "merged", "adapter"}
    # gloo's threads let go of one or two in their own time.
    assert first or max(peaks.values()) < sum(sizes.values()) / 2, peaks
"""


def launch(config: TrainConfig, folder: Path, variant: str = "all", start: str = "anew") -> dict[str, torch.Tensor]:
    """Two processes over gloo, as a user would start them."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER)
    (folder / "content.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    str(folder / "worker.py"),
               str(folder / "content.json"), str(folder), variant, start]  # fmt: skip
    root = str(Path(module.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
    return network(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "sim"},
        pytest.param(
            {
                "method": "di",
                "lora": {"rank": 2, "alpha": 4.0},
                "gradient_accumulation_steps": 2,
                "student": {"name": "sgd", "learning_rate": 1.0},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full", "lora"],
)
def test_two_processes_equal_one(tiny: Path, tmp_path: Path, quick_programs: None, options: dict[str, Any]) -> None:
    config = make(tiny, **EXACT | options)
    one = run(config, tmp_path / "one")
    two = launch(config, tmp_path / "two")
    assert largest_difference(one, two) < 1e-12
    assert largest_difference(one, weights.read(tiny / "unet" / "diffusion_pytorch_model.safetensors")) > 1e-6


@pytest.mark.slow
def test_dropping_one_process_gradients_is_noticed(tiny: Path, tmp_path: Path, quick_programs: None) -> None:
    config = make(tiny, **EXACT, method="sim")
    one = run(config, tmp_path / "one")
    two = launch(config, tmp_path / "two", "drop")
    assert largest_difference(one, two) > 1e-8


SHARDED = EXACT | {"steps": 5, "save_every": 3, "parallel": "fsdp2", "assistant": EXACT["assistant"] | {"name": "adam"}}


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The student's and the assistant's weights at the end in float64; a checkpoint rounds the student's."""
    step, saved = state.load_newest(folder / "state") or (0, {})
    assert step == SHARDED["steps"] + EXACT["assistant"]["warmup"]
    return {f"{name}.{key}": value for name in ("student", "assistant") for key, value in saved[name].items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "storage",
    [{}, {"lora": {"rank": 2, "alpha": 4.0}, "student": {"name": "sgd", "learning_rate": 1.0}, "ema": 0.0}],
    ids=["full", "lora"],
)
def test_two_sharded_processes_equal_one_resumed_or_not(
    tiny: Path, tmp_path: Path, quick_programs: None, storage: dict[str, Any]
) -> None:
    config = make(tiny, **SHARDED | storage, method="sim")
    alone = config.model_copy(update={"parallel": "ddp"})
    run(alone, tmp_path / "one")
    launch(config, tmp_path / "two")
    one = trained(tmp_path / "one")
    assert all(each.dtype == torch.float64 for each in one.values())
    assert largest_difference(one, trained(tmp_path / "two")) < 1e-9
    # In the step after the averages were looked at too.
    losses = [[line["assistant"] for line in log(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    files = [tmp_path / name / "checkpoint" / LORA for name in ("one", "two")]
    assert {file.is_file() for file in files} == {"lora" in storage}
    if "lora" in storage:
        assert largest_difference(*map(weights.read, files)) < 1e-6
    # What two processes saved, two and one can resume.
    for name in ("again", "fewer"):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "two" / "state" / "step-3", folder / "state" / "step-3")
        if name == "again":
            launch(config, folder, start="resume")
        else:
            run(alone, folder, resume=True)
        assert log(folder)[0]["step"] == 4
        assert largest_difference(one, trained(folder)) < 1e-9


@pytest.mark.slow
def test_dropping_one_sharded_process_gradients_is_noticed(tiny: Path, tmp_path: Path, quick_programs: None) -> None:
    config = make(tiny, **SHARDED, method="sim")
    run(config.model_copy(update={"parallel": "ddp"}), tmp_path / "one")
    launch(config, tmp_path / "two", "drop")
    assert largest_difference(trained(tmp_path / "one"), trained(tmp_path / "two")) > 1e-8


def test_sharding_needs_processes(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fsdp2 needs several processes"):
        train(make(tiny, parallel="fsdp2"), tmp_path, show=False)


def test_another_start_than_the_reference(tiny: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    trained = run(
        make(tiny, initial=str(other), student={"name": "sgd", "learning_rate": 1e-12}, ema=0.0), tmp_path / "run"
    )
    assert largest_difference(trained, weights.read(other / "unet" / "diffusion_pytorch_model.safetensors")) < 1e-6


@pytest.mark.slow
def test_compiled_blocks_train_alike(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluate.pipelines import fast

    blocks: list[str] = []
    compiled = torch.nn.Module.compile

    def traced(module: torch.nn.Module) -> None:  # without code generation, which takes a minute on a CPU
        blocks.append(type(module).__name__)
        compiled(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", fast.VARIANTS)
    common: dict[str, Any] = {
        "method": "sim", "steps": 2, "batch_size": 2, "student": {"name": "sgd", "learning_rate": 1e-3},
        "assistant": {"name": "sgd", "learning_rate": 1e-3}, "divergence": {"gradient": "exact"},
    }  # fmt: skip
    plain, traces = (run(make(tiny, **common, compile=on), tmp_path / str(on)) for on in (False, True))
    assert set(blocks) == {"BasicTransformerBlock"}
    assert largest_difference(plain, weights.read(tiny / "unet" / "diffusion_pytorch_model.safetensors")) > 0
    assert largest_difference(plain, traces) < 1e-6


def test_without_an_average_nothing_is_kept_beside_the_student(tiny: Path, tmp_path: Path) -> None:
    from align.training import setup
    from align.training.process import Alone

    for decay in (0.0, 0.5):
        config = make(tiny, ema=decay)
        built = setup.build(config, tmp_path, Alone(config, "cpu"), show=False)
        held = {value.data_ptr() for value in built.average.values.values()}
        assert (held == {value.data_ptr() for value in built.student.parameters.values()}) == (decay == 0)
    # The average of decay almost nothing is the student too, by another way.
    beside, alone = (run(make(tiny, ema=decay), tmp_path / str(decay)) for decay in (1e-12, 0.0))
    assert largest_difference(beside, alone) < 1e-6


def test_the_student_can_share_the_assistants_last_images(tiny: Path, tmp_path: Path) -> None:
    """The student's gradient is that of the assistant's last batch, and its forward is not repeated."""
    from align.objectives.metrics import Metrics
    from align.training import loop, setup
    from align.training.process import Alone

    weights_after, forwards = [], []
    for shares in (True, False):
        config = make(
            tiny,
            assistant={"learning_rate": 1e-3, "updates": 2, "warmup": 1, "shares_images": shares},
            precision="fp64",
        )
        built = setup.build(config, tmp_path, Alone(config, "cpu"), show=False)
        count: list[int] = []
        built.roles.student.register_forward_hook(lambda *_, count=count: count.append(1))
        drawn = loop.update_critics(built, 1, Metrics())
        assert (drawn is not None) == shares
        if not shares:
            # The same batch, drawn anew: number 1 * (2 + 1) + 1 is the last one of the assistant's.
            (batch,) = built.batches(4)
            drawn = (batch, built.generator.sample(built.student.module, batch))
        loop.update_student(built, 1, Metrics(), drawn)
        weights_after.append({k: v.detach().clone() for k, v in built.student.parameters.items()})
        forwards.append(len(count))
    shared, anew = weights_after
    assert max((shared[name] - anew[name]).abs().max().item() for name in shared) < 1e-12
    assert forwards[0] == forwards[1] - 1
    # Warming up, there is no student's update to share with.
    config = make(tiny, assistant={"learning_rate": 1e-3, "warmup": 1, "shares_images": True})
    assert loop.update_critics(setup.build(config, tmp_path, Alone(config, "cpu"), show=False), 0, Metrics()) is None
    with pytest.raises(UserError, match=r"shares_images keeps one batch's activations"):
        make(
            tiny, batch_size=4, gradient_accumulation_steps=2, assistant={"learning_rate": 1e-3, "shares_images": True}
        )
