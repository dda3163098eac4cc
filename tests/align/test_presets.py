"""The papers' presets: each runs on tiny random models that are published as the real ones
are, and what it leaves is stock.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_families
import tiny_scorers
import torch
from hub import Hub

from align import commands
from align.config.train import TRAIN, TrainConfig
from align.data import text_embeddings
from align.options import dump
from align.presets import load
from align.training.compare import beginning
from align.training.loop import train
from evaluate import families, pipelines, weights
from prompts.readers import dataset_id

PAPERS = [name for name, content in load.presets(TRAIN).items() if content.get("family")]
#: One of each family is compared with an uninterrupted run.
UNBROKEN = ["sdxl-distar-24gb", "sd15-dipp", "pixart-dipp", "sdxl-distar-4step", "sd35m-distar-4step"]
#: Of the images of tiny networks that have no size of their own.
SIZE = [64, 64]


@pytest.fixture(scope="module")
def world(published: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The hub with the presets' models, and a folder with what they expect of earlier runs and a file of prompts."""
    folder = tmp_path_factory.mktemp("presets")
    shutil.copytree(published.root, folder / "hub")
    (folder / "prompts.txt").write_text("".join(f"a small circle number {i}\n" for i in range(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "root", folder / "hub")
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        tiny_scorers.shrink(patch, published)
        tiny_families.publish(published, folder / "made")
        for family in ("sd15", "pixart"):
            made = tiny_families.pipeline(family, folder / f"{family}-di", seed=100)
            tiny_families.save(made, folder / "runs" / f"{family}-di" / "checkpoint")
        patch.chdir(folder)
        yield folder


def resolve(preset: str, **changes: Any) -> TrainConfig:
    """A preset with a small batch, few steps and local prompts; nothing else is changed."""
    small = {
        "prompts": "prompts.txt",
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "steps": 3,
        "save_every": 2,
        "sample_every": 3,
    }
    if load.presets(TRAIN)[preset]["family"] in tiny_families.FLOWS:
        small["size"] = SIZE
    sets = [f"{key}={value}" for key, value in (small | changes).items()]
    config = load.resolve(preset, TRAIN, sets=sets)
    assert isinstance(config, TrainConfig)
    return config


def run(config: TrainConfig, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    assert train(config, folder, show=False, **options)
    return network(folder / "checkpoint", config)


def network(folder: Path, config: TrainConfig) -> dict[str, torch.Tensor]:
    return weights.read(folder / families.load(config.family).network / "diffusion_pytorch_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def draw(folder: Path, family: str) -> torch.Tensor:
    """An image by the stock pipeline of a family, called as the recipe says and in no other way."""
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(folder)
    assert type(stock).__name__ in families.load(family).pipelines
    stock.set_progress_bar_config(disable=True)
    arguments = tiny_families.OPTIONS.get(family, {}) | pipelines.read_recipe(str(folder)).call()
    generator = torch.Generator().manual_seed(0)
    image: torch.Tensor = stock(prompt="a circle", generator=generator, output_type="pt", **arguments).images
    return image


@pytest.mark.slow
@pytest.mark.parametrize("preset", PAPERS)
def test_a_preset_runs_saves_resumes_and_leaves_a_stock_pipeline(world: Path, tmp_path: Path, preset: str) -> None:
    config = resolve(preset)
    folder = tmp_path / "run"
    before = run(resolve(preset, steps=2), folder)
    after = run(config, folder, resume=True)
    assert not equal(before, after)
    if preset in UNBROKEN:
        assert equal(after, run(config, tmp_path / "unbroken"))
    image = draw(folder / "checkpoint", config.family)
    assert image.shape == (1, 3, 64, 64)
    # Language models are read in bf16 for training, and exported as they were.
    made, reference = (
        pipelines.load(each) for each in (str(folder / "checkpoint"), config.pipeline or config.reference)
    )
    assert text_embeddings.sha256(made) == text_embeddings.sha256(reference)
    if config.family in tiny_families.FLOWS:
        assert pipelines.read_recipe(str(folder / "checkpoint")).dtype == "bf16"
    if preset == "zimage-turbo-distar":  # a LoRA over a pipeline of the hub, in shards as it is published
        (folder / "config.yaml").write_text(dump(config))
        commands.export(folder, tmp_path / "lora", dtype="fp32", lora=True)
        recipe = pipelines.read_recipe(str(tmp_path / "lora"))
        assert config.initial == f"{recipe.pipeline}@{recipe.revision}"
        assert recipe.unet is None
        assert recipe.dtype == "bf16"
        again = pipelines.load(str(tmp_path / "lora")).transformer.state_dict()
        for key, value in made.transformer.state_dict().items():
            torch.testing.assert_close(again[key], value, rtol=0, atol=8e-3)  # what training saw was in bf16
    assert image.isfinite().all()


@pytest.mark.slow
def test_a_preset_on_its_own_prompts(world: Path, published: Hub, tmp_path: Path) -> None:
    source = load.presets(TRAIN)["sd15-di"]["prompts"]
    where = dataset_id(source)
    assert where
    folder = published.folder(f"datasets/{where.repository}", "main") / "data"
    folder.mkdir()
    table = {
        "URL": [f"https://example.org/{i}.jpg" for i in range(9)],
        "TEXT": [f"a circle, number {i % 5}" for i in range(9)],
    }
    pd.DataFrame(table).to_parquet(folder / "train-00000-of-00001.parquet")
    config = resolve("sd15-di", prompts=source)
    whole = run(config, tmp_path / "whole")
    run(resolve("sd15-di", prompts=source, steps=2), tmp_path / "parts")
    assert equal(whole, run(config, tmp_path / "parts", resume=True))
    assert "a circle, number 0" in (tmp_path / "whole" / "checkpoint" / "README.md").read_text()


@pytest.mark.slow
def test_a_reference_may_be_a_network_alone(world: Path, tmp_path: Path) -> None:
    config = resolve("sdxl-distar-dpo", initial="null", steps=1, sample_every=100)
    started = run(config, tmp_path / "run")
    (file,) = (world / "hub" / "mhdang" / "dpo-sdxl-text2image-v1").rglob("*.safetensors")
    dpo = weights.read(file)
    assert max((started[key] - dpo[key]).abs().max() for key in dpo) < 1e-5


@pytest.mark.slow
def test_the_comparison_starts_from_the_bare_file(world: Path, tmp_path: Path) -> None:
    config = resolve("sdxl-distar", steps=1, sample_every=100)
    run(config, tmp_path / "run")
    pipeline, recipe = beginning(config, str(tmp_path / "run" / "checkpoint"))
    (file,) = (world / "hub" / "tianweiy" / "DMD2").rglob("dmd2_sdxl_1step_unet_fp16.bin")
    assert equal(pipeline.unet.state_dict(), {key: value.float() for key, value in weights.read(file).items()})
    assert recipe.timesteps == (399,)


def test_what_the_papers_say() -> None:
    """The rows of DI* Table 2, of DI++ Table 2 and of DI++ A.3: (method, guidance, its scale, reward, its scale)."""
    rows = {}
    for name in PAPERS:
        config = load.resolve(name, TRAIN)
        assert isinstance(config, TrainConfig)
        if config.generator.name == "few_step":  # which none of them has trained
            continue
        reward = config.rewards[0] if config.rewards else None
        rows[name] = (
            config.method,
            config.guidance.where,
            config.guidance.scale,
            reward and reward.scorer,
            reward and reward.scale,
        )
        sdxl = config.family == "sdxl"
        assert config.generator.input_scale == ("unit_variance" if sdxl else "sigma_init"), name
        assert config.generator.sigma_init == (1.1606 if sdxl else 2.5), name
        if sdxl:
            assert config.initial and config.initial.startswith("tianweiy/DMD2/dmd2_sdxl_1step_unet_fp16.bin@"), name
    distar = ("di*", "reference", 7.5, "pickscore", 100)
    assert rows == {
        "sdxl-di": ("di", "reference", 7.5, None, None),
        "sdxl-sim": ("sim", "reference", 7.5, None, None),
        "sdxl-dipp": ("di++", "reference", 7.5, "pickscore", 100),
        "sdxl-distar": distar,
        "sdxl-distar-out": ("di*", "reward", 8.5, "pickscore", 100),
        "sdxl-distar-dpo": distar,
        "sdxl-distar-80gb": distar,
        "sdxl-distar-48gb": distar,
        "sdxl-distar-24gb": distar,
        "sd15-di": ("di", "reference", 1.5, None, None),
        "sd15-dipp": ("di++", "reference", 1.5, "imagereward", 100),
        "sd15-dipp-rew0-cfg1.5": ("di", "reference", 1.5, None, None),
        "sd15-dipp-rew100-cfg4.5": ("di++", "reference", 4.5, "imagereward", 100),
        "sd15-dipp-rew1000-cfg1.5": ("di++", "reference", 1.5, "imagereward", 1000),
        "pixart-di": ("di", "reference", 4.5, None, None),
        "pixart-dipp": ("di++", "reference", 4.5, "imagereward", 1),
        "pixart-dipp-rew0-cfg1": ("di", "off", 1.0, None, None),
        "pixart-dipp-rew1-cfg1": ("di++", "off", 1.0, "imagereward", 1),
        "pixart-dipp-rew0-cfg4.5": ("di", "reference", 4.5, None, None),
        "pixart-dipp-rew10-cfg4.5": ("di++", "reference", 4.5, "imagereward", 10),
    }


def test_a_preset_is_laid_over_its_base() -> None:
    base, own = load.presets(TRAIN)["sdxl-distar"], load.presets(TRAIN)["sdxl-distar-48gb"]
    assert own["reference"] == base["reference"]
    assert own["divergence"] == base["divergence"] | {"gradient": "exact_sequential"}
    assert own["lora"]["rank"] == 64
    assert "base" not in own
