"""What is watched while training runs: held-out scorers with a guard, and images of fixed noise."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from align.config.train import TrainConfig
from align.data.batches import Batch, seeded
from align.data.text_embeddings import encode
from align.generators import Generator
from align.networks.preconditioning import Preconditioning
from align.networks.roles import Roles
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Rewards
from evaluate import scorers
from prompts.io.errors import UserError
from prompts.io.files import replace
from prompts.readers import Prompts, read_prompts

GRID = 16  # images in a grid of samples
LEVELS = (0.3, 1.0, 3.0)  # sigmas at which predictions are drawn


def compared_captions(config: TrainConfig) -> list[str]:
    """The captions of the final comparison, each once; none where nothing is compared.

    Raises UserError where they cannot be read, or are one.
    """
    wanted = config.final_comparison.prompts
    if not wanted or config.compared_on is None:
        return []
    captions: dict[str, None] = {}
    for prompt in read_prompts(config.compared_on):
        captions[prompt] = None
        if len(captions) == wanted:
            break
    if len(captions) < 2:
        raise UserError(
            f"final_comparison: {config.compared_on} has one caption; name more, or set final_comparison.prompts=0"
        )
    return list(captions)


def load_scorers(config: TrainConfig, **options: Any) -> dict[str, scorers.Scorer]:
    """The held-out scorers of a config. options: of `scorers.load`."""
    loaded = {name: scorers.load(name, **options) for name in config.held_out.scorers}
    for scorer in loaded.values():
        scorer.check_meta(None)
    return loaded


def watched_captions(config: TrainConfig) -> Prompts | None:
    """What the captions that are looked at are drawn from; None where nothing is looked at."""
    held = config.held_out
    return read_prompts(held.prompts or config.prompts) if held.scorers or config.sample_every else None


def fixed_batch(
    config: TrainConfig,
    preconditioning: Preconditioning,
    pipeline: Any,
    *,
    device: Any,
    dtype: torch.dtype,
    limit: int | None = None,
) -> Batch | None:
    """The captions and noise that are looked at again and again; None where nothing is. limit: of images."""
    held, prompts = config.held_out, watched_captions(config)
    if prompts is None:
        return None
    n = held.images if held.scorers else GRID
    n = n if limit is None else min(n, limit)
    generator = torch.Generator().manual_seed(seeded(config.seed, 3))
    picks = torch.randperm(len(prompts), generator=generator)[torch.arange(n) % len(prompts)]
    texts = [prompts[i] for i in picks]
    cond = {key: value.to(device) for key, value in encode(preconditioning.family, pipeline, texts, dtype).items()}
    return Batch(
        prompts=texts,
        cond=cond,
        uncond={},
        sigma=torch.zeros(n, device=device, dtype=dtype),
        seed=config.seed,
        keys=tuple(f"validation/{row}" for row in range(n)),
        shape=preconditioning.latent_shape,
    )


class Sampler:
    """Draws a fixed batch with the student, one image at a time where activations are too large to be kept."""

    def __init__(self, generator: Generator, decoder: Decoder, batch: Batch | None, *, at_a_time: int | None):
        self.generator, self.decoder, self.batch, self.at_a_time = generator, decoder, batch, at_a_time

    def latents(self, student: nn.Module, n: int) -> Tensor:
        """The student's x0 for the first n captions."""
        assert self.batch is not None
        size = self.at_a_time or n
        parts = [self.batch.part(slice(first, min(first + size, n))) for first in range(0, n, size)]
        return torch.cat([self.generator.sample(student, part) for part in parts])


class Validation:
    """Held-out scores of the student, against the first ones."""

    def __init__(self, config: TrainConfig, sampler: Sampler, rewards: Rewards, held_out: dict[str, scorers.Scorer]):
        self.held, self.sampler, self.rewards, self.scorers = config.held_out, sampler, rewards, held_out
        self.baseline: dict[str, float] = {}

    @torch.no_grad()
    def evaluate(self, student: nn.Module) -> tuple[str | None, dict[str, float]]:
        """Scores of the student on the held-out captions, and a sentence if the guard trips.

        The guard trips when the training reward has risen since the first look, or there is none, while a held-out
        scorer has fallen by more than `held_out.scorers` allows it; and when a scorer has nothing to say of half of the
        images, of which means are not.
        """
        if not self.scorers:
            return None, {}
        scores = self.scores(student)
        seen = {name: score[score.isfinite()].mean().item() for name, score in scores.items()}
        if not self.baseline:
            self.baseline = dict(seen)
        if self.held.guard == "off":
            return None, seen
        for name, score in scores.items():
            missing = int((~score.isfinite()).sum())
            if 2 * missing >= len(score):
                return f"{name.partition('/')[2]} has no score of {missing} of {len(score)} held-out images", seen
        if self.rewards and seen["held_out/reward"] <= self.baseline["held_out/reward"]:
            return None, seen
        rose = "the reward rose but " if self.rewards else ""
        for name, fall in self.held.scorers.items():
            before, now = self.baseline[f"held_out/{name}"], seen[f"held_out/{name}"]
            if now < before - fall:
                return f"{rose}held-out {name} fell from {before:.4g} to {now:.4g}, more than {fall:g}", seen
        return None, seen

    @torch.no_grad()
    def scores(self, student: nn.Module) -> dict[str, Tensor]:
        """Every held-out score, and the reward, of the student's images, each `[images]`."""
        batch = self.sampler.batch
        assert batch is not None
        with record_function("held-out images"):
            images = self.sampler.decoder(self.sampler.latents(student, len(batch.prompts)))
            seen = {f"held_out/{name}": scorer.score(images, batch.prompts) for name, scorer in self.scorers.items()}
            if self.rewards:
                seen["held_out/reward"] = self.rewards.of(images, batch.prompts)[0]
        return seen


class SampleGrid:
    """Images of fixed captions and noise, and what assistant and reference predict of them."""

    def __init__(self, config: TrainConfig, sampler: Sampler, preconditioning: Preconditioning):
        self.every, self.sampler, self.preconditioning = config.sample_every, sampler, preconditioning

    @torch.no_grad()
    @record_function("drawing samples")
    def draw(self, step: int, roles: Roles, folder: Path, *, keep: bool = True) -> None:
        """Write `step-N.png`, samples of the student, and `step-N-predictions.png`: per image a row of noisy x, the
        assistant's and the reference's decoded predictions, at each of LEVELS. keep: whether this process writes them.

        Nothing where `sample_every` is 0.
        """
        batch, decoder = self.sampler.batch, self.sampler.decoder
        if not self.every or batch is None:
            return
        n = min(GRID, len(batch.prompts))
        x0 = self.sampler.latents(roles.student, n)
        samples = decoder(x0)
        few = batch.part(slice(0, 4))
        rows = [decoder(x0[:4])]
        for level in LEVELS:
            sigma = torch.full((len(few.prompts),), level, dtype=x0.dtype, device=x0.device)
            x = x0[:4] + level * few.noise("diffusion")
            rows.append(decoder(x))
            for role in (roles.assistant, roles.reference):
                rows.append(decoder(self.preconditioning.denoiser(role, few.cond)(x, sigma)))
        if not keep:
            return
        save_grid(samples, folder / f"step-{step:05d}.png", columns=8)
        save_grid(torch.stack(rows, 1).flatten(0, 1), folder / f"step-{step:05d}-predictions.png", columns=len(rows))


def save_grid(images: Tensor, path: Path, *, columns: int) -> None:
    """Images `[B, 3, H, W]` in [0, 1] as one PNG; small ones are enlarged so that a person can see them."""
    from torchvision.utils import make_grid, save_image

    enlarge = max(1, 96 // images.shape[-1])
    shown = images.float().cpu().repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    grid = make_grid(shown, nrow=columns, padding=4, pad_value=1.0)
    replace(path, lambda draft: save_image(grid, draft, format="png"))
