"""Every family's denoiser and null prompt against stock diffusers, from the same noise."""

import inspect
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_families
import torch
from tiny import SMALL_RUN
from torch import Tensor

from align.config.train import TrainConfig
from align.generators.one_step import OneStep
from align.networks.preconditioning import Preconditioning
from align.objectives.denoisers import guided
from evaluate import families
from evaluate.diffusion import append_dims
from prompts.io.errors import UserError
from prompts.io.validate import validate

PROMPTS = ["a small red circle", "Nothing of the grammar, at all!", ""]
#: input_scale -> sigma_init, and the timestep it is at in the schedules of Stable Diffusion and of PixArt-alpha.
CONVENTIONS = {"sigma_init": (2.5, 625, 440), "unit_variance": (1.1606, 399, 287)}


def make(family: str, pipeline: Any, input_scale: str = "sigma_init", sigma_init: float | None = None) -> OneStep:
    generator = {"input_scale": input_scale, "sigma_init": sigma_init or CONVENTIONS[input_scale][0]}
    config = validate(TrainConfig, SMALL_RUN | {"reference": "a/b", "generator": generator}, "test")
    preconditioning = Preconditioning(families.load(family), pipeline, nullcontext, source="a/b")
    return OneStep(config.generator, preconditioning, source="a/b")


def sample(generator: OneStep, pipeline: Any, z: Tensor) -> Tensor:
    """The generator's latents of PROMPTS."""
    family = generator.preconditioning.family
    batch: Any = SimpleNamespace(cond=family.encode(pipeline, PROMPTS), noise=lambda name: {"z": z}[name])
    with torch.no_grad():
        return generator.sample(getattr(pipeline, family.network), batch)


def noise(height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(len(PROMPTS), 4, height, width, generator=torch.Generator().manual_seed(3))


def draw(pipeline: Any, scheduler: Any, z: Tensor, family: str, **arguments: Any) -> Tensor:
    """Stock diffusers' latents."""
    kept, pipeline.scheduler = pipeline.scheduler, scheduler
    size = {"height": pipeline.vae_scale_factor * z.shape[2], "width": pipeline.vae_scale_factor * z.shape[3]}
    try:
        return pipeline(
            PROMPTS, latents=z, output_type="latent", **size, **tiny_families.OPTIONS.get(family, {}), **arguments
        ).images
    finally:
        pipeline.scheduler = kept


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


@pytest.mark.parametrize("family", families.names())
def test_a_family_declares_what_it_must(family: str) -> None:
    known = families.load(family)
    assert isinstance(known, families.Family) and known.pipelines and not families.Family.pipelines
    for name, base in inspect.getmembers(families.Family, inspect.isfunction):
        assert inspect.signature(getattr(type(known), name)) == inspect.signature(base), name
    if family not in tiny_families.FAMILIES | tiny_families.FLOWS:
        pytest.skip(f"not tested further: tests/tiny_families.py makes no tiny pipeline of {family}")


def test_families_are_known_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (tiny_families.FAMILIES | tiny_families.FLOWS).keys() <= set(families.names())
    (tmp_path / "sd9.py").write_text("family = None")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    assert "sd9" in families.names()
    with pytest.raises(UserError, match=f"family = sd4: unknown; choose from {', '.join(families.names())}"):
        families.load("sd4")


@pytest.mark.parametrize("sigma", [0.01, 1e9])
def test_a_start_outside_the_schedule_is_refused(stock: dict[str, Any], sigma: float) -> None:
    words = f"generator.sigma_init = {sigma:g}: the noise levels of a/b are 0.02917 to 14.61; choose one between them"
    with pytest.raises(UserError, match=re.escape(words)):
        make("sd15", stock["sd15"], sigma_init=sigma)


@pytest.mark.parametrize("shape", [(8, 8), (8, 16)])
@pytest.mark.parametrize("input_scale", CONVENTIONS)
@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_one_step_is_stock_diffusers(
    stock: dict[str, Any], family: str, input_scale: str, shape: tuple[int, int]
) -> None:
    pipeline, z = stock[family], noise(*shape)
    generator = make(family, pipeline, input_scale)
    mine = sample(generator, pipeline, z)
    wrong = sample(
        make(family, pipeline, "unit_variance" if input_scale == "sigma_init" else "sigma_init"), pipeline, z
    )
    scheduler, recipe = generator.export(pipeline.scheduler)
    assert (
        type(scheduler).__name__
        == {"sigma_init": "EulerDiscreteScheduler", "unit_variance": "LCMScheduler"}[input_scale]
    )
    assert recipe["timesteps"] == [CONVENTIONS[input_scale][2 if family == "pixart" else 1]]
    theirs = draw(
        pipeline, scheduler, z, family, timesteps=recipe["timesteps"], guidance_scale=recipe["guidance_scale"]
    )
    assert largest(mine - theirs) < 1e-4
    assert largest(wrong - theirs) > 0.1


@pytest.mark.parametrize("input_scale", CONVENTIONS)
def test_one_step_stays_what_it_is_whatever_the_references_scheduler_does(
    stock: dict[str, Any], input_scale: str
) -> None:
    from diffusers import DPMSolverMultistepScheduler

    pipeline, z = stock["sd15"], noise()
    odd = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "thresholding": True, "clip_sample": True}
    reference = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **odd)
    reference.register_to_config(**odd)
    generator = make("sd15", pipeline, input_scale)
    scheduler, recipe = generator.export(reference)
    theirs = draw(
        pipeline, scheduler, z, "sd15", timesteps=recipe["timesteps"], guidance_scale=recipe["guidance_scale"]
    )
    assert largest(sample(generator, pipeline, z) - theirs) < 1e-4


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_twenty_guided_steps_are_stock_diffusers(stock: dict[str, Any], family: str) -> None:
    from diffusers import EulerDiscreteScheduler

    pipeline, z = stock[family], noise()
    preconditioning, module = make(family, pipeline).preconditioning, families.load(family)
    network, given = getattr(pipeline, module.network), module.encode(pipeline, PROMPTS)
    null = {key: value.expand(len(z), *value.shape[1:]) for key, value in module.null(pipeline).items()}
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    theirs = draw(pipeline, scheduler, z, family, num_inference_steps=20, guidance_scale=4.0)

    def descended(null: dict[str, Tensor]) -> Tensor:
        denoiser = guided(preconditioning.denoiser(network, given), preconditioning.denoiser(network, null), 4.0)
        x = z * scheduler.sigmas[0]
        for sigma, following in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
            level = sigma.expand(len(x))
            x = x + (following - sigma) * (x - denoiser(x, level)) / append_dims(level, x)
        return x

    with torch.no_grad():
        mine, unguided = descended(null), descended(given)
    assert largest(mine - theirs) < 1e-4 * max(1.0, largest(theirs))
    assert largest(unguided - theirs) > 1e-2 * largest(theirs)


def test_null_prompts(stock: dict[str, Any]) -> None:
    for family, pipeline in stock.items():
        module = families.load(family)
        null, empty = module.null(pipeline), module.encode(pipeline, [" " if family == "qwenimage" else ""])
        if family == "sana":  # the instruction that stands before a prompt does not stand before the null prompt
            assert not null["text"].equal(empty["text"])
            _, _, text, mask = pipeline.encode_prompt([""], negative_prompt="", device=torch.device("cpu"))
            empty = {"text": text, "mask": mask}
        for key in empty:
            expected = torch.zeros_like(empty[key]) if family == "sdxl" else empty[key]
            assert null[key].equal(expected), (family, key)
            assert largest(empty[key].float()) > 0


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_rows_do_not_depend_on_their_neighbours(stock: dict[str, Any], family: str) -> None:
    module, pipeline = families.load(family), stock[family]
    together = module.encode(pipeline, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        for key, value in module.encode(pipeline, [prompt]).items():
            torch.testing.assert_close(value[0], together[key][row], rtol=1e-5, atol=1e-6)


def test_the_transformer_for_1024_pixels_is_told_the_images_size(tmp_path: Path) -> None:
    pipeline = tiny_families.pipeline("pixart", tmp_path, sample_size=128)
    assert pipeline.transformer.use_additional_conditions
    generator = make("pixart", pipeline)
    scheduler, recipe = generator.export(pipeline.scheduler)
    drawn = {}
    for shape in ((8, 8), (8, 16)):
        z = noise(*shape)
        drawn[shape] = sample(generator, pipeline, z)
        theirs = draw(pipeline, scheduler, z, "pixart", timesteps=recipe["timesteps"], guidance_scale=1.0)
        assert largest(drawn[shape] - theirs) < 1e-4


@pytest.mark.parametrize(("family", "options"), [("sdxl", {}), ("pixart", {"sample_size": 128})])
def test_networks_are_told_the_size_that_another_autoencoder_draws(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    pipeline, z = tiny_families.pipeline(family, tmp_path, blocks=2, **options), noise(8, 16)
    assert pipeline.vae_scale_factor == 2
    generator = make(family, pipeline)
    mine = sample(generator, pipeline, z)
    scheduler, recipe = generator.export(pipeline.scheduler)
    theirs = draw(
        pipeline, scheduler, z, family, timesteps=recipe["timesteps"], guidance_scale=recipe["guidance_scale"]
    )
    assert largest(mine - theirs) < 1e-4
