"""Every family of flow matching through the trainer, and what it leaves against what stock diffusers draws with it."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_families
import torch
import yaml
from stock_latents import SIZE, step_noises
from tiny import SMALL_RUN
from torch import Tensor

from align.config.train import TrainConfig
from align.memory import estimate as memory
from align.rewards.decoder import Decoder
from align.training import loop
from align.training.result import finish
from align.training.setup import Run
from evaluate import families, pipelines, samplers, weights
from evaluate.families.zimage import TOKENS, ZImage
from evaluate.keyed import generator, noise
from prompts.io.validate import validate

PROMPTS = ["a small red circle", "Nothing of the grammar, at all!", ""]
SEED, KEYS = 7, ["one", "two", "three"]
#: Two steps, from noise alone and from t = 1/2.
TWO_STEPS = {"name": "few_step", "sigma_init": math.inf, "levels": [1.0], "input_scale": "unit_variance"}


def make(stock: Any, family: str, folder: Path, **changes: Any) -> TrainConfig:
    """A run from a tiny pipeline, saved as the published ones are."""
    folder.mkdir()
    (folder / "prompts.txt").write_text("".join(f"a circle, number {i}\n" for i in range(6)))
    index = tiny_families.save(stock, folder / "reference") / "model_index.json"
    index.write_text(index.read_text().replace('"is_distilled": false', '"is_distilled": true'))
    network = getattr(stock, families.load(family).network)
    content = SMALL_RUN | {
        "method": "sim", "family": family, "reference": str(folder / "reference"), "size": SIZE,
        "prompts": str(folder / "prompts.txt"), "text_cache": str(folder / "texts"), "steps": 3, "batch_size": 2,
        "generator": TWO_STEPS, "noise_levels": {"name": "logit_normal"}, "ema": 0.0,
        "guidance": {"embedded": 3.5} if network.config.get("guidance_embeds") else {}, "held_out": {},
        "sample_every": 0,
    }  # fmt: skip
    return validate(TrainConfig, content | changes, "test")


def trained(config: TrainConfig, folder: Path, batch: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The trainer's images of a batch, of the student as it is exported."""
    images = []

    def draw_before_the_export(run: Run, step: int) -> None:
        with torch.no_grad(), run.average.applied():
            latents = run.generator.sample(run.roles.student, batch)
            images.append(Decoder(run.pipeline.vae, family=run.preconditioning.family)(latents))
        finish(run, step)

    monkeypatch.setattr(loop, "finish", draw_before_the_export)
    assert loop.train(config, folder, show=False)
    return images[0]


@pytest.mark.parametrize("family", tiny_families.FLOWS)
def test_stock_diffusers_draws_the_trainers_images(
    stock: dict[str, Any], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, known = make(stock[family], family, tmp_path / "given"), families.load(family)
    shape = known.latent_shape(stock[family], *SIZE)
    noises = {"z": torch.stack([noise(shape, seed=SEED, key=key) for key in KEYS])}
    noises |= step_noises(stock[family], [generator(SEED, f"{key}\0steps") for key in KEYS], 2)
    batch = SimpleNamespace(cond=known.encode(stock[family], PROMPTS), noise=noises.__getitem__, number=None, seed=0)
    (tmp_path / "run").mkdir()
    mine = trained(config, tmp_path / "run", batch, monkeypatch)

    checkpoint = str(tmp_path / "run" / "checkpoint")
    recipe = pipelines.read_recipe(checkpoint)
    assert recipe.sigmas == pytest.approx((1.0, 0.5)) and (recipe.height, recipe.width) == SIZE
    result, reference = pipelines.load(checkpoint), pipelines.load(config.reference)
    theirs = samplers.draw(result, recipe, PROMPTS, seed=SEED, keys=KEYS)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert result.config.get("is_distilled") == reference.config.get("is_distilled")
    assert reference.config.get("is_distilled") is (True if family == "flux2" else None)
    reference.scheduler = result.scheduler
    untrained = samplers.draw(reference, recipe, PROMPTS, seed=SEED, keys=KEYS)
    assert (theirs - untrained).abs().max() > 1e-3


#: Trains every config of a folder, in one of two processes.
WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from prompts.io.validate import validate
from align.config.train import TrainConfig
from align.training import learner, loop
from prompts.io.yaml import read_yaml
def watched(options, parameters, make=learner.make_optimizer):
    assert torch.distributed.get_world_size() == 2
    return make(options, parameters)
learner.make_optimizer = watched
for content in sorted(Path(sys.argv[1]).glob("*/config.yaml")):
    config = validate(TrainConfig, read_yaml(content), "test")
    assert loop.train(config, content.parent / sys.argv[2], show=False)
"""


@pytest.mark.slow
def test_two_processes_equal_one(stock: dict[str, Any], tmp_path: Path, quick_programs: None) -> None:
    """In two steps with an adapter, in every family. Plain descent in float64: sums differ by their order alone.

    SANA's text encoder, a Gemma, answers NaN in float64, so that it trains in float32.
    """
    plain = {"name": "sgd", "learning_rate": 0.1}
    changes: dict[str, Any] = {
        "student": plain, "assistant": plain, "batch_size": 4, "lora": {"rank": 2, "alpha": 4.0},
        "gradient_accumulation_steps": 2,
    }  # fmt: skip
    for family in tiny_families.FLOWS:
        precision = "fp32" if family == "sana" else "fp64"
        config = make(stock[family], family, tmp_path / family, precision=precision, **changes)
        (tmp_path / family / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        (tmp_path / family / "one").mkdir()
        (tmp_path / family / "two").mkdir()
        assert loop.train(config, tmp_path / family / "one", show=False)
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(loop.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    words = [*command, str(tmp_path / "worker.py"), str(tmp_path), "two"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
    for family in tiny_families.FLOWS:
        file = Path("checkpoint") / families.load(family).network / "diffusion_pytorch_model.safetensors"
        one, two = (weights.read(tmp_path / family / run / file) for run in ("one", "two"))
        given = weights.read(tmp_path / family / "reference" / file.relative_to("checkpoint"))
        bound = 1e-5 if family == "sana" else 1e-9
        assert max((one[key] - two[key]).abs().max() for key in one) < bound, family
        assert max((one[key] - given[key]).abs().max() for key in one) > 1e-4, family


@pytest.mark.slow
def test_the_estimate_of_memory_counts_the_longest_prompts(
    stock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, call = set(), ZImage.call

    def noted(self: ZImage, network: Any, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        lengths.update(cond["mask"].sum(1).tolist())
        return call(self, network, x, t, cond, pixels)

    monkeypatch.setattr(ZImage, "call", noted)
    estimate = memory.estimate(make(stock["zimage"], "zimage", tmp_path / "given"), cuda=False)
    assert lengths == {TOKENS} and estimate.total > 0


def test_a_chat_template_is_part_of_a_model(stock: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_families.save(stock["zimage"], tmp_path / "model")
    before, file = pipelines.digest(str(folder)), folder / "tokenizer" / "chat_template.jinja"
    file.write_text(f"{file.read_text()}!")
    assert pipelines.digest(str(folder)) != before
