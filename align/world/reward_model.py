"""Stage 2 of the papers' workflow: a preference model from pairs of images of one prompt."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from align.data.batches import seeded
from align.world.config import RewardConfig
from align.world.pretrain import fit, save_half
from evaluate.console import console
from evaluate.scorers.shapes import DualEncoder, load
from evaluate.weights import Files
from prompts.io.errors import UserError
from prompts.io.files import write_json

CHUNK = 256  # pairs scored at a time


@dataclass(frozen=True)
class Pairs:
    """prompts: N texts; preferred and rejected: images [N, 3, H, W], uint8; sources: what each pair is
    told apart by, "" for nothing.
    """

    prompts: list[str]
    preferred: Tensor
    rejected: Tensor
    sources: list[str]

    def sha256(self) -> str:
        """What tells these pairs from others."""
        digest = hashlib.sha256(json.dumps([self.prompts, self.sources]).encode())
        for images in (self.preferred, self.rejected):
            digest.update(images.numpy().tobytes())
        return digest.hexdigest()

    def pick(self, rows: Tensor) -> "Pairs":
        """The pairs at `rows`."""
        picked = rows.tolist()
        texts, sources = ([each[i] for i in picked] for each in (self.prompts, self.sources))
        return Pairs(texts, self.preferred[rows], self.rejected[rows], sources)


def read_pairs(path: Path) -> Pairs:
    """Read JSON lines `{"prompt": ..., "preferred": FILE, "rejected": FILE}`, files relative to `path`; a name under
    `"source"` has its own accuracy.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold what splitlines takes for an end
    except FileNotFoundError:
        raise UserError(f"--pairs {path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pairs {path}: cannot be read as UTF-8 text ({error}); check it") from None
    prompts: list[str] = []
    sources: list[str] = []
    images: dict[str, list[Tensor]] = {"preferred": [], "rejected": []}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row["prompt"], str):
                raise TypeError("prompt is no text")
            prompts.append(row["prompt"])
            files = {key: path.parent / row[key] for key in images}
            sources.append(str(row.get("source", "")))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not JSON with the keys prompt, preferred and rejected ({error}); fix it"
            ) from None
        for key, file in files.items():
            try:
                with Image.open(file) as image:
                    pixels = np.array(image.convert("RGB"))
            except (OSError, SyntaxError, ValueError, EOFError) as error:  # any of which a torn file makes Pillow raise
                raise UserError(
                    f"{path}, line {number}: {key} = {file} cannot be read as an image ({error}); replace it"
                ) from None
            images[key].append(torch.from_numpy(pixels).permute(2, 0, 1))
    if len(prompts) < 2:
        raise UserError(f"{path}: holds {len(prompts)} pairs; give at least 2")
    sizes = {tuple(image.shape) for each in images.values() for image in each}
    if len(sizes) > 1:
        raise UserError(
            f"{path}: images of several sizes ({', '.join(f'{s[2]}x{s[1]}' for s in sorted(sizes)[:3])}); make them one"
            " size"
        )
    return Pairs(prompts, torch.stack(images["preferred"]), torch.stack(images["rejected"]), sources)


@torch.no_grad()
def ranked(scorer: DualEncoder, pairs: Pairs) -> Tensor:
    """Of each pair, 1 where the preferred image scores higher, else 0: `[N]`, float64."""
    some = (pairs.pick(rows) for rows in torch.arange(len(pairs.prompts)).split(CHUNK))
    return torch.cat(
        [scorer.score(p.preferred, p.prompts) > scorer.score(p.rejected, p.prompts) for p in some]
    ).double()


def train(config: RewardConfig, pairs: Pairs, output: Path, *, resume: bool) -> bool:
    """Fit `-log sigmoid(r(preferred) - r(rejected))` (Bradley and Terry 1952; DI++ section 5, reward modelling stage).

    Accuracy is measured on prompts that no training pair has. Leaves `output/checkpoint`;
    returns whether it ran to its end.
    """
    scorer = load("shapes/preference", Files(config.initial))
    assert isinstance(scorer, DualEncoder)
    size = scorer.prepare.size
    if pairs.preferred.shape[-2:] != (size, size):
        raise UserError(
            f"--pairs: images of {tuple(pairs.preferred.shape[2:])}, but the model takes {size} x {size}; resize them"
        )
    unique = sorted(set(pairs.prompts))
    random.Random(config.seed).shuffle(unique)
    held = set(unique[: max(1, round(config.held_out * len(unique)))])
    mask = torch.tensor([prompt in held for prompt in pairs.prompts])
    if mask.all():
        raise UserError("--pairs: all pairs share one prompt, so none is left to train on; add pairs of other prompts")
    test, data = pairs.pick(torch.nonzero(mask)[:, 0]), pairs.pick(torch.nonzero(~mask)[:, 0])
    torch.manual_seed(config.seed)
    before = ranked(scorer, test).mean().item()

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeded(config.seed, 4, step))
        batch = data.pick(torch.randint(len(data.prompts), (config.fit.batch_size,), generator=generator))
        margin = scorer.score(batch.preferred, batch.prompts) - scorer.score(batch.rejected, batch.prompts)
        return -nn.functional.logsigmoid(margin).mean()

    scorer.train().requires_grad_(True)
    if fit("preference model", scorer.clip, loss, config.fit, output, resume=resume) is None:
        return False
    right = ranked(scorer.eval(), test)
    metrics = {
        "pairs": len(pairs.prompts),
        "held_out_pairs": len(test.prompts),
        "held_out_accuracy": right.mean().item(),
        "held_out_accuracy_before": before,
        "training_accuracy": ranked(scorer, data).mean().item(),
    }
    for source in sorted(set(filter(None, test.sources))):
        of_it = torch.tensor([each == source for each in test.sources])
        metrics[f"held_out_accuracy/{source}"] = right[of_it].mean().item()
    save_half(scorer.clip, output / "checkpoint")
    scorer.tokenizer.save_pretrained(output / "checkpoint")
    write_json(output / "metrics.json", metrics)
    console.print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    return True
