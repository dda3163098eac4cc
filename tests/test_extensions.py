"""Each kind of thing that people add, written as one file in a folder outside the
tree, and run by the real commands.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import SMALL_RUN, save_tiny

from evaluate import weights
from prompts.extensions import VARIABLE

pytestmark = pytest.mark.usefixtures("quick_programs")

SCORER = '''
"""How red an image is."""

import torch

from evaluate.preprocess import Preprocess
from evaluate.scorers import Scorer

VARIANTS = {"redness": "mean of red less that of green, -1 to 1; the prompt is not read"}


class Redness(Scorer):
    """Red less green."""

    def encode(self, prompts):
        """Nothing, `[B, 0]`."""
        return {"none": torch.empty(len(prompts), 0)}

    def forward(self, pixels, text):
        """`[B]`."""
        return (pixels[:, 0] - pixels[:, 1]).mean((1, 2))


def load(name, files):
    """There are no weights."""
    return Redness(name, Preprocess(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
'''
DISTRIBUTION = '''
"""How much images differ from their mean."""

import torch

from evaluate.distribution import DistributionMetric, Estimate

VARIANTS = {"spread": "mean square distance to the mean image"}


class Spread(DistributionMetric):
    """state: the images."""

    protocol, weights_sha256, state = "spread", "", ()

    def update(self, images, prompts):
        """Keep them."""
        images = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
        self.state = (*self.state, *(images / 255.0 if images.dtype == torch.uint8 else images).double())

    def merge(self, other):
        """Keep the other's."""
        self.state = (*self.state, *other.state)

    def compute(self):
        """The metric."""
        images = torch.stack(self.state)
        return Estimate((images - images.mean(0)).square().mean().item(), float("nan"), float("nan"), len(images))


def load(name, device, weights, reference):
    """There are no weights."""
    return Spread()
'''
TERM = '''
"""A pull of latents to nought."""

from align.options import Config
from align.objectives.term import ByAutograd


class Options(Config):
    """How strong."""

    strength: float = 1.0


def build(options, context):
    """Half the square norm."""
    return ByAutograd("pull", lambda x0, batch, metrics: options.strength * x0.square().flatten(1).sum(1) / 2)
'''
CRITIC = '''
"""A linear guess of the mean of each channel from noise of its own."""

import torch

from align.networks.optimizers import Optimizer


class Options(Optimizer):
    """Its width."""

    width: int = 4


class Guess:
    """Square error of the guess."""

    name = "guess"

    def __init__(self, options):
        self.network = torch.nn.Linear(4, options.width)

    def loss(self, x0, batch):
        """`[B]`."""
        error = self.network(x0.mean((2, 3)) + batch.noise("guess").mean((2, 3))).mean(1) - x0.mean((1, 2, 3))
        return error.square()


def build(options, denoisers):
    """The critic."""
    return Guess(options)
'''
GENERATOR = '''
"""One step from noise that is made smaller first."""

from align.generators import GeneratorOptions
from align.generators.one_step import OneStep


class Options(GeneratorOptions):
    """By how much."""

    shrink: float = 0.5


class Shrunk(OneStep):
    """As one step, with less noise."""

    def __init__(self, options, preconditioning, *, source):
        super().__init__(options, preconditioning, source=source)
        self.k *= options.shrink


build = Shrunk
'''
FAMILY = '''
"""Stable Diffusion 1.x under another name, its text turned down."""

from evaluate.families.sd15 import StableDiffusion


class Quiet(StableDiffusion):
    """Half of the text."""

    pipelines = ()

    def encode(self, pipeline, prompts):
        """Half of what it was."""
        return {key: value / 2 for key, value in super().encode(pipeline, prompts).items()}


family = Quiet()
'''
SAMPLER = '''
"""What another sampler draws, mirrored."""

from pydantic import BaseModel

from evaluate.samplers import stock


class Options(BaseModel):
    """axis: -1 mirrors left and right, -2 top and bottom."""

    axis: int = -1


class Mirrored(stock.Stock):
    """Stock diffusers, mirrored."""

    def draw(self, pipeline, recipe, prompts, **rest):
        """Images `[B, 3, H, W]`."""
        return super().draw(pipeline, recipe, prompts, **rest).flip(self.options.axis)


build = Mirrored
'''
FILES = {
    "scorers/redness.py": SCORER, "distribution/spread.py": DISTRIBUTION, "objectives/pull.py": TERM,
    "critics/guess.py": CRITIC,
    "generators/shrunk.py": GENERATOR, "families/quiet.py": FAMILY, "samplers/mirrored.py": SAMPLER,
}  # fmt: skip


def command(folder: Path, *words: str, files: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command in `folder`, with these of FILES beside it."""
    for name in files:
        path = folder / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES[name])
    root = str(Path(__file__).parents[1])
    settings = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", VARIABLE: str(folder / "mine")}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=settings, capture_output=True, text=True, check=False
    )


def start(
    tiny: Path, folder: Path, name: str, files: tuple[str, ...], **changes: Any
) -> subprocess.CompletedProcess[str]:
    """A short run's command."""
    content = {key: value for key, value in SMALL_RUN.items() if key != "stage"} | {
        "reference": str(tiny),
        "final_comparison": {"prompts": 0},
    }
    content |= {"initial": None, "guidance": {"where": "off", "scale": 1.0}}
    (folder / "run.yaml").write_text(yaml.safe_dump(content | changes))
    return command(folder, "align.cli", "train", "shapes-di", "--config", "run.yaml", "--output", name, files=files)


def train(
    tiny: Path, folder: Path, name: str, *files: str, **changes: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The network and the log of a short run."""
    done = start(tiny, folder, name, files, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    log = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    return weights.read(folder / name / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"), log


@pytest.mark.slow
def test_a_scorer_and_a_distribution_metric(tiny: Path, tmp_path: Path) -> None:
    words = ["evaluate.cli", "run", "--suite", "shapes", "--model", "shapes/base", "--limit", "4", "--output", "out"]
    words += ["--metric", "redness", "--metric", "spread"]
    done = command(tmp_path, *words, files=("scorers/redness.py", "distribution/spread.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    header, _row = (tmp_path / "out" / "shapes.csv").read_text().splitlines()
    assert {"redness", "spread"} <= set(header.split(","))
    listed = command(tmp_path, "evaluate.cli", "metrics")
    assert "not verified" in next(line for line in (listed.stdout + listed.stderr).splitlines() if "redness" in line)
    # And as a reward.
    _, log = train(tiny, tmp_path, "run", method="di++", rewards=[{"scorer": "redness", "scale": 1.0}])
    assert "reward/redness" in log[-1]


@pytest.mark.slow
def test_a_term(tiny: Path, tmp_path: Path) -> None:
    without, _ = train(tiny, tmp_path, "without")
    nothing, log = train(tiny, tmp_path, "nothing", "objectives/pull.py", terms={"pull": {"strength": 0.0}})
    assert log[-1]["pull_gradient"] == 0
    assert all(nothing[key].equal(without[key]) for key in without), "a term moves nobody else's bits"
    pulled, log = train(tiny, tmp_path, "pulled", terms={"pull": {"strength": 3.0}})
    assert log[-1]["pull_gradient"] > 0
    assert any(not pulled[key].equal(without[key]) for key in without)


@pytest.mark.slow
def test_a_critic(tiny: Path, tmp_path: Path) -> None:
    without, _ = train(tiny, tmp_path, "without")
    beside, log = train(
        tiny, tmp_path, "beside", "critics/guess.py", critics={"guess": {"learning_rate": 1e-2, "width": 3}}
    )
    assert log[0]["guess"] > 0 and log[0]["guess_gradient"] > 0
    assert all(beside[key].equal(without[key]) for key in without), "its noise moves nobody else's bits"
    (state,) = (tmp_path / "beside" / "state").iterdir()
    assert torch.load(state / "guess.pt", weights_only=True)["weight"].shape == (3, 4)


@pytest.mark.slow
def test_a_critic_of_two_sharded_processes_is_that_of_one(tiny: Path, tmp_path: Path) -> None:
    words = ["--set", 'critics={"guess": {"learning_rate": 0.01}}', "--set", "final_comparison.prompts=0"]
    words += ["--set", "steps=3", "--set", "held_out={}", "--set", "batch_size=4", "--set", "assistant.warmup=1"]
    trained = []
    for name, start in {
        "one": [],
        "two": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
    }.items():
        parallel = ["--set", "parallel=fsdp2"] if start else []
        done = command(
            tmp_path, *start, "align.cli", "train", "shapes-di", *words, *parallel, "--output", name,
            files=("critics/guess.py",),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (state,) = (tmp_path / name / "state").iterdir()
        trained.append(torch.load(state / "guess.pt", weights_only=True)["weight"])
    torch.testing.assert_close(*trained, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_generator(tiny: Path, tmp_path: Path) -> None:
    usual, _ = train(tiny, tmp_path, "usual")
    whole, _ = train(tiny, tmp_path, "whole", "generators/shrunk.py", generator={"name": "shrunk", "shrink": 1.0})
    half, _ = train(tiny, tmp_path, "half", generator={"name": "shrunk", "shrink": 0.5})
    assert all(whole[key].equal(usual[key]) for key in usual)
    assert any(not half[key].equal(usual[key]) for key in usual)
    assert yaml.safe_load((tmp_path / "half" / "config.yaml").read_text())["generator"]["shrink"] == 0.5


def test_a_family(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    usual, _ = train(tiny, tmp_path, "usual")
    quiet, _ = train(tiny, tmp_path, "quiet", "families/quiet.py", family="quiet")
    assert any(not quiet[key].equal(usual[key]) for key in usual)


#: How `shapes/base` is drawn.
BASE = {"pipeline": "shapes/base", "steps": 1, "timesteps": [625], "guidance_scale": 1.0}


def test_a_sampler(tmp_path: Path) -> None:
    for name, options in {"across": {"name": "mirrored"}, "down": {"name": "mirrored", "axis": -2}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(BASE | {"sampler": options}))
    words = ["evaluate.cli", "run", "--suite", "shapes", "--limit", "4", "--output", "out", "--metric", "shapes/oracle"]
    words += [word for model in ("shapes/base", "across.yaml", "down.yaml") for word in ("--model", model)]
    done = command(tmp_path, *words, files=("samplers/mirrored.py",))
    assert done.returncode == 0, done.stderr[-3000:]

    def drawn(model: str) -> list[np.ndarray]:
        (run,) = (tmp_path / "out" / "runs").glob(f"{model}-*")
        return [np.array(Image.open(path)) for path in sorted(run.rglob("*.png"))]

    usual = drawn("shapes-base")
    assert len(usual) == 4
    for model, axis in (("across.yaml", 1), ("down.yaml", 0)):
        assert all(np.array_equal(a, np.flip(b, axis)) for a, b in zip(drawn(model), usual, strict=True))
    (tmp_path / "across.yaml").write_text(yaml.safe_dump(BASE | {"sampler": {"name": "mirrord"}}))
    done = command(tmp_path, *words)
    assert done.returncode == 2
    told = "sampler.name = mirrord: unknown; choose from best_of, shapes_renderer, stock, mirrored"
    assert told in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terms": {"pul": {}}}, "terms = pul: unknown; choose from pull"),
        ({"terms": {"pull": {"strenth": 1}}}, "unknown key 'strenth'; did you mean 'strength'?"),
        ({"critics": {"gues": {}}}, "critics = gues: unknown; choose from guess"),
        ({"critics": {"guess": {}}}, "'learning_rate' is missing"),
        ({"critics": {"assistant": {"learning_rate": 1e-3}}}, "critics = assistant: unknown; choose from guess"),
        ({"terms": {"kl": {}}}, "terms = kl: unknown; choose from pull"),
        ({"generator": {"name": "shrnk"}}, "generator.name = shrnk: unknown; choose from few_step, one_step, shrunk"),
        ({"family": "quit"}, "family = quit: unknown; choose from"),
    ],
)
def test_a_slip_is_told(tiny: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    done = start(tiny, tmp_path, "run", tuple(FILES), **changes)
    assert done.returncode == 2, done.stderr[-3000:]
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_ships_cannot_be_replaced(tiny: Path, tmp_path: Path) -> None:
    usual, _ = train(tiny, tmp_path, "usual")
    (tmp_path / "mine" / "objectives").mkdir(parents=True)
    (tmp_path / "mine" / "objectives" / "kl.py").write_text("raise RuntimeError('not this one')")
    again, _ = train(tiny, tmp_path, "again")
    assert all(again[key].equal(usual[key]) for key in usual)
