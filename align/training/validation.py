"""What is watched while training runs: held-out scorers with a guard, and pictures from fixed noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from align.config import TrainConfig
from align.data.batches import seeded
from align.data.prompts import read_prompts
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Rewards
from evaluate import scorers

if TYPE_CHECKING:
    from align.networks.roles import Roles
    from align.training.loop import Model

GRID = 16  # pictures in a grid of samples
LEVELS = (0.3, 1.0, 3.0)  # sigmas at which predictions are drawn


def load_scorers(config: TrainConfig, *, device: Any, dtype: torch.dtype) -> dict[str, scorers.Scorer]:
    """The held-out scorers of a config."""
    return {name: scorers.load(name, device=device, dtype=dtype) for name in config.held_out.scorers}


class Monitor:
    """Fixed captions and noise, the scorers they are scored with, and the first scores as a baseline."""

    def __init__(
        self,
        config: TrainConfig,
        pipeline: Any,
        model: "Model",
        rewards: Rewards,
        decoder: Decoder,
        held_out: dict[str, scorers.Scorer],
        *,
        device: Any,
        dtype: torch.dtype,
    ):
        self.config, self.model, self.rewards, self.decoder = config, model, rewards, decoder
        self.scorers = held_out
        self.baseline: dict[str, float] = {}
        self.z = self.noise = torch.empty(0)
        self.given: dict[str, Tensor] = {}
        held = config.held_out
        if not held.scorers and not config.sample_every:
            return  # nothing is watched
        prompts = read_prompts(held.prompts or config.prompts)
        n = held.pictures if held.scorers else GRID
        generator = torch.Generator().manual_seed(seeded(config.seed, 3))
        picks = torch.randperm(len(prompts), generator=generator)[torch.arange(n) % len(prompts)]
        self.prompts = [prompts[i] for i in picks]
        network = getattr(pipeline, model.family.network).config
        shape = (n, network.in_channels, network.sample_size, network.sample_size)
        self.z = torch.randn(shape, generator=generator, dtype=dtype).to(device)
        self.noise = torch.randn(shape, generator=generator, dtype=dtype).to(device)
        encoded = model.family.encode(pipeline, self.prompts)
        self.given = {key: value.to(device, dtype) for key, value in encoded.items()}

    @torch.no_grad()
    def evaluate(self, student: nn.Module) -> tuple[str | None, dict[str, float]]:
        """Scores of the student on the held-out captions, and a sentence if the guard trips.

        The guard trips when the training reward has risen since the first look while a held-out scorer has fallen by more
        than `held_out.scorers` allows it.
        """
        if not self.scorers:
            return None, {}
        seen = {name: score.mean().item() for name, score in self.scores(student).items()}
        if not self.baseline:
            self.baseline = dict(seen)
        if self.config.held_out.guard == "off" or seen.get("held_out/reward", 0) <= self.baseline.get("held_out/reward", 0):
            return None, seen
        for name, fall in self.config.held_out.scorers.items():
            before, now = self.baseline[f"held_out/{name}"], seen[f"held_out/{name}"]
            if now < before - fall:
                return f"the reward rose but held-out {name} fell from {before:.4g} to {now:.4g}, more than {fall:g}", seen
        return None, seen

    def _latents(self, student: nn.Module, n: int) -> Tensor:
        """The student's x0 for the first n captions, one at a time where activations are too large to be kept."""
        size = 1 if self.config.gradient_checkpointing else n
        parts = [slice(first, min(first + size, n)) for first in range(0, n, size)]
        each = [
            self.model.generate(student, self.z[rows], {key: value[rows] for key, value in self.given.items()})
            for rows in parts
        ]
        return torch.cat(each)

    @torch.no_grad()
    def scores(self, student: nn.Module) -> dict[str, Tensor]:
        """Every held-out score, and the reward, of the student's pictures, each `[pictures]`."""
        with record_function("held-out pictures"):
            pictures = self.decoder(self._latents(student, len(self.z)))
            seen = {f"held_out/{name}": scorer.score(pictures, self.prompts) for name, scorer in self.scorers.items()}
            if self.rewards:
                seen["held_out/reward"] = self.rewards.of(pictures, self.prompts)[0]
        return seen

    @torch.no_grad()
    @record_function("drawing samples")
    def draw(self, step: int, roles: "Roles", folder: Path, *, keep: bool = True) -> None:
        """Write `step-N.png`, samples of the student, and `step-N-predictions.png`: per picture a row of noisy x, the
        assistant's and the reference's decoded predictions, at each of LEVELS. keep: whether this process writes them.

        Nothing where `sample_every` is 0."""
        if not self.config.sample_every:
            return
        n = min(GRID, len(self.z))
        x0 = self._latents(roles.student, n)
        samples = self.decoder(x0)
        rows, some = [self.decoder(x0[:4])], {key: value[:4] for key, value in self.given.items()}
        for level in LEVELS:
            sigma = torch.full((4,), level, dtype=x0.dtype, device=x0.device)
            x = x0[:4] + level * self.noise[:4]
            rows.append(self.decoder(x))
            rows += [self.decoder(self.model.denoiser(role, some)(x, sigma)) for role in (roles.assistant, roles.reference)]
        if not keep:
            return
        save_grid(samples, folder / f"step-{step:05d}.png", columns=8)
        save_grid(torch.stack(rows, 1).flatten(0, 1), folder / f"step-{step:05d}-predictions.png", columns=len(rows))


def save_grid(pictures: Tensor, path: Path, *, columns: int) -> None:
    """Pictures `[B, 3, H, W]` in [0, 1] as one PNG; small ones are enlarged so that a person can see them."""
    from torchvision.utils import make_grid, save_image

    enlarge = max(1, 96 // pictures.shape[-1])
    shown = pictures.float().cpu().repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(make_grid(shown, nrow=columns, padding=4, pad_value=1.0), path)
