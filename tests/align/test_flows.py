"""Families of flow matching against stock diffusers, from the same noise."""

import copy
import math
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny_families
import torch
from stock_latents import SIZE, step_noises, steps_of, unpacked
from tiny import SMALL_RUN, save_tiny
from torch import Tensor

from align.config.train import TrainConfig
from align.generators import UNSHIFTED
from align.generators.few_step import FewStep
from align.generators.one_step import OneStep
from align.networks.lora import Adapted, LoraConfig, adapter, merged
from align.networks.preconditioning import Preconditioning
from align.networks.roles import Roles
from align.objectives.denoisers import guided
from align.objectives.metrics import Metrics
from align.rewards.decoder import Decoder
from align.training import setup
from align.training.loop import update_critics, update_student
from align.training.process import Alone
from evaluate import families, pipelines
from evaluate.diffusion import Denoiser, FlowSchedule, NoiseLevels, Schedule, append_dims, denoise
from evaluate.families.sd15 import StableDiffusion
from evaluate.pipelines import lora
from evaluate.pipelines.recipe import Recipe
from prompts.io.errors import UserError
from prompts.io.validate import validate

PROMPTS = ["a small red circle", "Nothing of the grammar, at all!", ""]
#: The scale that a network of embedded guidance is told.
TOLD = 3.5
#: Noise levels of four steps: t = 1, 0.9, 0.6, 0.2.
FOUR = (math.inf, (9.0, 1.5, 0.25))


def preconditioning_of(family: str, pipeline: Any) -> Preconditioning:
    told = TOLD if getattr(pipeline, families.load(family).network).config.get("guidance_embeds") else None
    return Preconditioning(
        families.load(family), pipeline, nullcontext, source="a/b", size=SIZE, embedded_guidance=told
    )


def make(kind: Any, family: str, pipeline: Any, **options: Any) -> Any:
    generator = {"name": "one_step" if kind is OneStep else "few_step", "input_scale": "unit_variance"} | options
    config = validate(TrainConfig, SMALL_RUN | {"reference": "a/b", "generator": generator}, "test")
    return kind(config.generator, preconditioning_of(family, pipeline), source="a/b")


def noises(pipeline: Any) -> dict[str, Tensor]:
    """What the generator is given: the start, and what stock schedulers draw of `fresh()` between steps."""
    shape = families.of(pipeline).latent_shape(pipeline, *SIZE)
    z = torch.randn(len(PROMPTS), *shape, generator=torch.Generator().manual_seed(3))
    return {"z": z} | step_noises(pipeline, fresh(), 4)


def fresh() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(len(PROMPTS))]


def sample(generator: Any, pipeline: Any, noise: dict[str, Tensor]) -> Tensor:
    family = generator.preconditioning.family
    cond = family.encode(pipeline, PROMPTS)
    batch: Any = SimpleNamespace(cond=cond, noise=noise.__getitem__, number=None, seed=5)
    with torch.no_grad():
        return generator.sample(getattr(pipeline, family.network), batch)


def denoisers(family: str, pipeline: Any) -> tuple[Denoiser, Denoiser]:
    """Of the prompts and of the null prompt."""
    preconditioning, known = preconditioning_of(family, pipeline), families.load(family)
    network, null = getattr(pipeline, known.network), known.null(pipeline)
    null = {key: value.expand(len(PROMPTS), *value.shape[1:]) for key, value in null.items()}
    return preconditioning.denoiser(network, known.encode(pipeline, PROMPTS)), preconditioning.denoiser(network, null)


def draw(pipeline: Any, scheduler: Any, z: Tensor, **call: Any) -> Tensor:
    """Stock diffusers' latents behind the last step."""
    from evaluate.samplers.stock import _noised_by

    family, generators, kept = families.of(pipeline), fresh(), pipeline.scheduler
    arguments = {"height": SIZE[0], "width": SIZE[1]} | dict(family.arguments) | call
    pipeline.scheduler = scheduler
    try:
        with _noised_by(scheduler, generators), steps_of(scheduler) as steps:
            pipeline(
                prompt=list(PROMPTS),  # Z-Image's writes into the list that it is given
                latents=family.pack(z),
                generator=generators,  # SANA's hands it to its scheduler, in place of ours
                output_type="latent",
                **arguments,
            )
    finally:
        pipeline.scheduler = kept
    return unpacked(pipeline, steps[-1][1])


def check_one_step(family: str, pipeline: Any, start: float) -> None:
    generator, noise = make(OneStep, family, pipeline, sigma_init=start), noises(pipeline)
    mine = sample(generator, pipeline, noise)
    scheduler, recipe = generator.export(pipeline.scheduler)
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert recipe["sigmas"] == [pytest.approx(1.0 if start == math.inf else 0.8)]
    theirs = draw(pipeline, scheduler, noise["z"], **Recipe(**recipe).call())
    assert (mine - theirs).abs().max() < 1e-4
    assert (mine - noise["z"]).abs().max() > 0.1


@pytest.mark.parametrize("start", [math.inf, 4.0])
@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_one_step_is_stock_diffusers(stock: dict[str, Any], family: str, start: float) -> None:
    check_one_step(family, stock[family], start)


@pytest.mark.parametrize("odd", ["use_karras_sigmas", "use_beta_sigmas", "stochastic_sampling"])
def test_steps_stay_what_they_are_whatever_the_references_scheduler_does(stock: dict[str, Any], odd: str) -> None:
    pipeline, (first, rest) = stock["sd3"], FOUR
    generator, noise = make(FewStep, "sd3", pipeline, sigma_init=first, levels=rest, eta=0.0), noises(pipeline)
    reference = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **{odd: True})
    scheduler, recipe = generator.export(reference)
    theirs = draw(pipeline, scheduler, noise["z"], **Recipe(**recipe).call())
    assert (sample(generator, pipeline, noise) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["flux", "flux2", "qwenimage"])
def test_the_time_is_told_as_the_pipeline_tells_it(stock: dict[str, Any], family: str) -> None:
    """Which casts it to the latents' precision, of 3 digits in bf16, before it is divided."""
    pipeline, known, seen = stock[family], families.load(family), {}
    cond, x, t = known.encode(pipeline, PROMPTS), noises(pipeline)["z"], torch.full((len(PROMPTS),), 767.19)

    def spy(**arguments: Any) -> Any:
        seen.update(arguments)
        return (arguments["hidden_states"],)

    for precision in (torch.float32, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            known.call(spy, x, t, cond, 0)  # type: ignore[arg-type]
        assert seen["timestep"].equal(t.to(precision) / 1000)
        assert seen["hidden_states"].dtype == precision


def test_a_sana_may_count_time_from_0_to_1(tmp_path: Path) -> None:
    pipeline = tiny_families.pipeline("sana", tmp_path, timestep_scale=0.001)
    check_one_step("sana", pipeline, 4.0)
    assert Adapted(pipeline.transformer, None).config.timestep_scale == 0.001  # with adapters too


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_four_steps_are_stock_diffusers(stock: dict[str, Any], family: str, eta: float) -> None:
    pipeline, (first, rest) = stock[family], FOUR
    generator = make(FewStep, family, pipeline, sigma_init=first, levels=rest, eta=eta)
    noise = noises(pipeline)
    mine = sample(generator, pipeline, noise)
    scheduler, recipe = generator.export(pipeline.scheduler)
    assert type(scheduler).__name__ == ("FlowMatchLCMScheduler" if eta else "FlowMatchEulerDiscreteScheduler")
    assert recipe["sigmas"] == pytest.approx([1.0, 0.9, 0.6, 0.2])
    theirs = draw(pipeline, scheduler, noise["z"], **Recipe(**recipe).call())
    assert (mine - theirs).abs().max() < 1e-4
    other = make(FewStep, family, pipeline, sigma_init=first, levels=rest, eta=1.0 - eta)
    assert (sample(other, pipeline, noise) - theirs).abs().max() > 1e-2


#: Those whose pipelines guide as we do, the scale, and what each calls it: Z-Image's counts from no guidance.
#: Qwen-Image's rescales what is guided, which ours does not: see the next test.
GUIDED = {"sd3": (4.0, 4.0), "flux2": (4.0, 4.0), "zimage": (4.0, 3.0), "sana": (4.0, 4.0), "qwenimage": (1.0, 1.0)}


@pytest.mark.parametrize("family", GUIDED)
def test_twenty_guided_steps_are_stock_diffusers(stock: dict[str, Any], family: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline, z, (scale, told) = stock[family], noises(stock[family])["z"], GUIDED[family]
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **UNSHIFTED)
    times = [1 - i / 20 for i in range(20)]
    theirs = draw(pipeline, scheduler, z, sigmas=times, num_inference_steps=20, guidance_scale=told)
    levels = [FlowSchedule.NOISE, *(t / (1 - t) for t in times[1:]), 0.0]
    denoiser = guided(*denoisers(family, pipeline), scale)
    x = z * (1 + levels[0])
    with torch.no_grad():
        for sigma, following in pairwise(levels):
            level = torch.full((len(x),), sigma)
            x0 = denoiser(x, level)
            x = x0 + following * (x - x0) / append_dims(level, x)
    assert (x - theirs).abs().max() < 1e-4 * max(1.0, theirs.abs().max().item())


def test_qwen_images_pipeline_gives_the_guided_flow_the_norm_of_the_conditional(stock: dict[str, Any]) -> None:
    """In every row of two by two latents. But for that, its guidance is ours."""
    pipeline, known = stock["qwenimage"], families.load("qwenimage")
    generator = make(OneStep, "qwenimage", pipeline, sigma_init=math.inf)
    z = noises(pipeline)["z"]
    scheduler, recipe = generator.export(pipeline.scheduler)
    call = Recipe(**recipe).call() | {"true_cfg_scale": 4.0, "negative_prompt": [" "] * len(z)}
    theirs = draw(pipeline, scheduler, z, **call)
    given, null = denoisers("qwenimage", pipeline)
    with torch.no_grad():
        flow, guided_flow = (
            known.pack(z - denoiser(z * (1 + FlowSchedule.NOISE), torch.full((len(z),), FlowSchedule.NOISE)))
            for denoiser in (given, guided(given, null, 4.0))
        )
    rescaled = guided_flow * flow.norm(dim=-1, keepdim=True) / guided_flow.norm(dim=-1, keepdim=True)
    assert (unpacked(pipeline, known.pack(z) - rescaled) - theirs).abs().max() < 1e-4
    assert (guided_flow - rescaled).abs().max() > 1e-3


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_images_are_those_of_stock_diffusers(stock: dict[str, Any], family: str) -> None:
    """Through what lies between latents and autoencoder."""
    pipeline, known = stock[family], families.load(family)
    generator = make(OneStep, family, pipeline, sigma_init=math.inf)
    z = noises(pipeline)["z"]
    scheduler, recipe = generator.export(pipeline.scheduler)
    latents = draw(pipeline, scheduler, z, **Recipe(**recipe).call())
    kept, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        arguments = Recipe(**recipe).call()
        theirs = pipeline(prompt=list(PROMPTS), latents=known.pack(z), output_type="pt", **arguments).images
    finally:
        pipeline.scheduler = kept
    for checkpointing in (False, True):
        decoder = Decoder(pipeline.vae, family=known, checkpointing=checkpointing)
        with torch.no_grad():
            mine = decoder(latents)
        assert mine.shape == (len(PROMPTS), 3, *SIZE)
        torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=1e-4)


def test_flux2_dev_is_told_its_guidance(tmp_path: Path) -> None:
    """And the chat that its prompts are read from is the pipeline's own."""
    pipeline = tiny_families.pipeline("flux2", tmp_path, dev=True)
    generator, noise = make(OneStep, "flux2", pipeline, sigma_init=math.inf), noises(pipeline)
    mine = sample(generator, pipeline, noise)
    scheduler, recipe = generator.export(pipeline.scheduler)
    theirs, others = (
        draw(pipeline, scheduler, noise["z"], **Recipe(**recipe | changes).call())
        for changes in ({}, {"guidance_scale": TOLD + 1})
    )
    assert (mine - theirs).abs().max() < 1e-4 and (mine - others).abs().max() > 1e-3


def test_zimage_counts_tokens_right_in_half_precision() -> None:
    """A run keeps its mask in its own precision, which has no 301."""
    seen = []

    def network(x: list[Tensor], t: Tensor, text: list[Tensor], return_dict: bool) -> tuple[list[Tensor]]:
        seen.extend(map(len, text))
        return (x,)

    mask = (torch.arange(512) < torch.tensor([[301], [7]])).bfloat16()
    x, cond = torch.zeros(2, 4, 8, 8), {"text": torch.zeros(2, 512, 16), "mask": mask}
    families.load("zimage").call(cast(Any, network), x, torch.zeros(2), cond, 8)
    assert seen == [301, 7]


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_rows_do_not_depend_on_their_neighbours(stock: dict[str, Any], family: str) -> None:
    pipeline, known = stock[family], families.load(family)
    together, alone = known.encode(pipeline, PROMPTS), known.encode(pipeline, PROMPTS[:1])
    for key, rows in together.items():
        torch.testing.assert_close(rows[:1], alone[key], rtol=1e-4, atol=1e-5)
    assert {key: value[0].shape for key, value in known.null(pipeline).items()} == {
        key: value[0].shape for key, value in alone.items()
    }


def test_qwen_images_text_is_its_pipelines(stock: dict[str, Any]) -> None:
    """Cut where the pipeline's call cuts it, braces and all."""
    pipeline, known = stock["qwenimage"], families.load("qwenimage")
    prompts = [*PROMPTS, "{a} long prompt " * 40]
    rows = known.encode(pipeline, prompts)
    with torch.no_grad():
        text, mask = pipeline.encode_prompt(prompts, max_sequence_length=known.arguments["max_sequence_length"])
    torch.testing.assert_close(rows["text"], text, rtol=0, atol=1e-6)
    assert rows["mask"].equal(mask) and mask[3].all() and not mask[0].all()


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_an_image_is_the_same_in_any_batch(stock: dict[str, Any], family: str) -> None:
    """Noise between steps is of the image, though these pipelines hand their scheduler no generator."""
    from evaluate import samplers

    pipeline, (first, rest) = stock[family], FOUR
    generator = make(FewStep, family, pipeline, sigma_init=first, levels=rest, eta=1.0)
    scheduler, recipe = generator.export(pipeline.scheduler)
    drawn = Recipe(**recipe)
    kept, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        whole = samplers.draw(pipeline, drawn, PROMPTS, seed=7)
        again = torch.cat([samplers.draw(pipeline, drawn, [prompt], seed=7) for prompt in reversed(PROMPTS)]).flip(0)
        other = samplers.draw(pipeline, drawn, PROMPTS, seed=8)
    finally:
        pipeline.scheduler = kept
    torch.testing.assert_close(whole, again, rtol=0, atol=1e-4)
    assert (whole - other).abs().max() > 1e-2


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_every_target_of_a_lora_is_there(stock: dict[str, Any], family: str) -> None:
    known = families.load(family)
    layers = [name for name, layer in getattr(stock[family], known.network).named_modules() if hasattr(layer, "weight")]
    for target in known.lora_targets:
        assert any(f".{name}".endswith(f".{target}") for name in layers), target


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_a_lora_is_read_as_it_was_trained(stock: dict[str, Any], family: str) -> None:
    """On every layer that is meant, and on no list of layers."""
    name, targets = families.load(family).network, families.load(family).lora_targets
    base, fresh = (copy.deepcopy(getattr(stock[family], name)) for _ in range(2))
    meant = {
        part for part, layer in base.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        and f".{part}".endswith(tuple(f".{target}" for target in targets))
    }  # fmt: skip
    adapters = LoraConfig(rank=2, alpha=4.0, target_modules=targets)
    student = Roles(base, base, same=True, lora=adapters, checkpointing=False).student
    with torch.no_grad():
        for parameter in Roles.trainable(student).values():
            parameter.normal_(0, 0.1)
    tensors = adapter(student)
    assert {key.partition(".lora_")[0] for key in tensors} == meant
    lora.add(stock[family], name, {f"{name}.{key}": x for key, x in tensors.items()}, "a file", network=fresh)
    expected = merged(student)
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "shift"),
    [
        ("sd3", 3.0),
        ("sana", 3.0),
        ("zimage", 3.0),
        # 4 x 8 tokens, below the line from 256 tokens on.
        ("flux", math.exp(0.5 + (1.15 - 0.5) * (32 - 256) / (4096 - 256))),
        ("flux2", math.exp(0.5 + (1.15 - 0.5) * (32 - 256) / (4096 - 256))),
        ("qwenimage", math.exp(0.5 + (0.9 - 0.5) * (32 - 256) / (8192 - 256))),
    ],
)
def test_noise_levels_are_the_schedulers(stock: dict[str, Any], family: str, shift: float) -> None:
    pipeline = stock[family]
    assert preconditioning_of(family, pipeline).schedule.shift == pytest.approx(shift)  # type: ignore[attr-defined]
    scheduler, _ = make(OneStep, family, pipeline, sigma_init=math.inf).export(pipeline.scheduler)
    assert FlowSchedule.from_scheduler(scheduler, tokens=32).shift == 1.0


@pytest.mark.parametrize(("size", "steps"), [(SIZE, 200), ((1024, 1024), 200), ((1088, 1024), 4), ((2048, 2048), 28)])
def test_flux2s_noise_levels_are_stock_diffusers_of_many_steps_or_tokens(
    stock: dict[str, Any], size: tuple[int, int], steps: int
) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    schedule: Any = families.load("flux2").noise_levels(stock["flux2"], *size)
    mu = compute_empirical_mu(size[0] // 16 * (size[1] // 16), steps)
    assert math.log(schedule.shift) == pytest.approx(mu, abs=1e-4)


def test_a_pipeline_of_another_family_or_scheduler_is_refused(stock: dict[str, Any]) -> None:
    from diffusers import DDIMScheduler

    for name in ("sd15", "sdxl", "sd3", "flux"):
        families.check(name, stock[name], "a/b")
    with pytest.raises(UserError, match="family = sdxl: a/b is a StableDiffusion3Pipeline; set family to sd3"):
        families.check("sdxl", stock["sd3"], "a/b")
    with pytest.raises(UserError, match="family = sd3: a/b is a SimpleNamespace; it can be one of StableDiffusion3Pip"):
        families.check("sd3", SimpleNamespace(), "a/b")
    other = copy.copy(stock["sd3"])
    other.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match="a/b: its scheduler, DDIMScheduler, is not one of flow matching"):
        families.check("sd3", other, "a/b")


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_a_size_is_a_multiple_of_what_the_network_takes_as_one(stock: dict[str, Any], family: str) -> None:
    step = 32 if family == "sana" else 16
    make = partial(Preconditioning, families.load(family), stock[family], nullcontext, source="here")
    options = {"embedded_guidance": 3.5} if family == "flux" else {}
    assert make(size=(3 * step, 2 * step), **options).size == (3 * step, 2 * step)
    with pytest.raises(
        UserError, match=rf"size = \[{3 * step - 8}, {2 * step}\]: here draws multiples of {step} pixels"
    ):
        make(size=(3 * step - 8, 2 * step), **options)


def test_what_does_not_fit_a_flow_is_refused(stock: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"input_scale sigma_init: no stock scheduler draws a flow from scaled noise"):
        make(OneStep, "sd3", stock["sd3"], sigma_init=4.0, input_scale="sigma_init")
    with pytest.raises(UserError, match=r"sigma_init = 0.0001"):
        make(OneStep, "sd3", stock["sd3"], sigma_init=1e-4)
    with pytest.raises(UserError, match=r"is told a guidance scale; set guidance.embedded"):
        Preconditioning(families.load("flux"), stock["flux"], nullcontext, source="a/b")
    with pytest.raises(UserError, match=r"has no embedded guidance; leave guidance.embedded out"):
        Preconditioning(families.load("sd3"), stock["sd3"], nullcontext, source="a/b", embedded_guidance=3.5)


class Twin(StableDiffusion):
    """The same network as one of flow matching: `v(x_t, t) = (x_t - D(x_t / (1 - t), t / (1 - t))) / t`."""

    def noise_levels(self, pipeline: Any, height: int, width: int) -> NoiseLevels:
        self.betas = super().noise_levels(pipeline, height, width)
        return FlowSchedule()

    def call(self, network: Any, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        def epsilon(y: Tensor, time: Tensor) -> Tensor:
            return super(Twin, self).call(network, y, time, cond, pixels)

        t = append_dims(t / 1000, x)
        sigma = (t / (1 - t)).flatten()
        return (x - denoise(epsilon, x / (1 - t), sigma, schedule=self.betas)) / t


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("method", ["sim", "di*"])
def test_a_network_and_its_twin_of_flow_matching_train_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, steps: int
) -> None:
    folder = save_tiny(tmp_path / "tiny", prediction="epsilon")
    betas = Schedule.from_scheduler(pipelines.load(str(folder)).scheduler)
    levels = [betas.snap(sigma) for sigma in (9.0, 4.0, 1.5, 0.5)][:steps]
    rewards = [{"scorer": "shapes/clip", "scale": 0.5}] if method == "di*" else []
    content = SMALL_RUN | {
        "reference": str(folder),
        "method": method,
        "rewards": rewards,
        "guidance": {"where": "reference", "scale": 2.0},
        "generator": {
            "name": "few_step",
            "sigma_init": levels[0],
            "levels": levels[1:],
            "input_scale": "unit_variance",
        },
        "noise_levels": {"name": "lognormal", "parameters": {"mean": 0.0, "std": 0.7}},
        "student": {"name": "sgd", "learning_rate": 0.01},
        "assistant": {"name": "sgd", "learning_rate": 0.01, "updates": 1, "warmup": 0},
        "precision": "fp64",
        "held_out": {"scorers": {}},
        "sample_every": 0,
    }
    config = validate(TrainConfig, content, "test")
    weights = []
    for family in (StableDiffusion(), Twin()):
        monkeypatch.setattr(families, "load", lambda name, family=family: family)
        run = setup.build(config, tmp_path / "run", Alone(config, torch.device("cpu")), show=False)
        before = {name: value.clone() for name, value in run.roles.student.state_dict().items()}
        run.generator.k = 9.0  # type: ignore[attr-defined]
        for step in range(3):
            update_critics(run, step, Metrics())
            update_student(run, step, Metrics())
        after = {
            f"{role}.{k}": v
            for role in ("student", "assistant")
            for k, v in getattr(run.roles, role).state_dict().items()
        }
        weights.append(after)
        assert max((after[f"student.{name}"] - value).abs().max().item() for name, value in before.items()) > 1e-4
    assert (run.preconditioning.schedule.prediction, run.generator.flow) == ("flow_prediction", True)  # type: ignore[attr-defined]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-9)
