"""What a run is asked for: a suite, a model, metrics, and how images are drawn."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from evaluate import distribution, environment, scorers
from evaluate.console import console
from evaluate.pipelines import address
from evaluate.precision import drawn_in, dtype_of
from prompts import suites
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.suites import Suite

#: What is measured where neither the command nor the suite names anything.
METRICS = ("hpsv2.1/aa", "imagereward", "aesthetic/v2", "pickscore", "clipscore/vit-g-14-dmd2")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is. `shard` alone may differ between processes that write the same row.

    named: what the suite was asked for by, a file's path or its name; by default its name.
    """

    suite: Suite
    named: str = ""
    model: str
    metrics: tuple[str, ...]
    images: Path | None = None
    seeds: tuple[int, ...] = (0,)
    batch: int = 16
    dtype: str = "fp32"
    device: str = "cpu"
    output: Path = Path("leaderboards")
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    reference: Path | None = None

    @property
    def command(self) -> str:
        """What makes the row again, whatever this process was asked to do of it."""
        words = ["evaluate", "run", "--suite", self.named or self.suite.name, "--model", self.model]
        for metric in self.metrics:
            words += ["--metric", metric]
        options: dict[str, object] = {
            "--images": self.images,
            "--limit": self.limit,
            "--seed": self.seeds[0],
            "--per-prompt": len(self.seeds),
        }
        options |= {"--batch": self.batch, "--dtype": self.dtype}
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        for metric, path in self.weights.items():
            words += ["--weights", f"{metric}={path}"]
        words += ["--reference", str(self.reference)] if self.reference else []
        return hub.redact(shlex.join(words))


def _tell_of_repeats(suite: Suite) -> None:
    """Of a user's own file: a suite's ids are told apart on purpose."""
    n, distinct = len(suite.prompts), len({prompt.text for prompt in suite.prompts})
    if distinct < n and suite.name not in suites.names():
        console.print(
            f"{suite.source}: {n - distinct:,} of {n:,} prompts repeat others word for word, which errors, intervals"
            " and the gate take for independent; give each once, and --per-prompt for several images"
        )


def from_options(
    suite: str,
    models: Sequence[str],
    metrics: Sequence[str],
    *,
    prompts: Path | None,
    images: Path | None,
    limit: int | None,
    seed: int,
    per_prompt: int | None,
    batch: int,
    dtype: str | None,
    device: str | None,
    output: Path,
    shard: str,
    weights: Sequence[str] = (),
    reference: Path | None = None,
) -> list[Settings]:
    """What the command's options mean, a `Settings` per model. Raises UserError for what cannot be meant."""
    whole = suites.load(suite, path=prompts)
    limited = replace(whole, prompts=whole.prompts[:limit])
    _tell_of_repeats(limited)
    if twice := [name for name, count in Counter(map(slug, models)).items() if count > 1]:
        raise UserError(f"--model: two models would both be called {twice[0]!r}; run them into two --output folders")
    if images and len(models) > 1:
        raise UserError("--images belongs to one --model; run the command once for each")
    if dtype is not None:
        dtype_of(dtype)
    device = environment.device_of(device)
    # All of them now: the last one's name is not to be found wrong when the others have been drawn.
    recipes = [None if images else address.runnable(model) for model in models]
    metrics = tuple(dict.fromkeys(map(_metric, metrics or whole.metrics or METRICS)))
    paths = dict(_weights(text, metrics) for text in weights)
    return [
        Settings(
            suite=limited,
            named=suite,
            model=model,
            metrics=metrics,
            images=images,
            seeds=tuple(range(seed, seed + (per_prompt or whole.per_prompt))),
            batch=batch,
            dtype=dtype or drawn_in(recipe.dtype if recipe else None, device),
            device=device,
            output=output,
            shard=_shard(shard),
            limit=limit,
            weights=paths,
            reference=reference,
        )
        for model, recipe in zip(models, recipes, strict=True)
    ]


def _metric(name: str) -> str:
    variant = scorers.resolve(name) or distribution.resolve(name)
    if variant is None:
        known = [*scorers.variants(), *distribution.variants()]
        close = get_close_matches(name, known, 1, 0)[0]
        raise UserError(f"no metric {name!r}; did you mean {close!r}? 'evaluate metrics' lists them")
    return variant


def _weights(text: str, metrics: Sequence[str]) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    name = scorers.resolve(name) or distribution.resolve(name) or name
    if not equals or name not in metrics:
        raise UserError(f"--weights {text}: give METRIC=PATH with one of the metrics asked for ({', '.join(metrics)})")
    return name, path


def _shard(text: str) -> tuple[int, int]:
    """Position from 0, and number of shards: of `I/N`, or of this process among those that `torchrun` started."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--shard {text}: give I/N with 1 <= I <= N, for example 2/8")
    i, n = int(first) - 1, int(last)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return i * world + rank, n * world


def slug(text: str) -> str:
    """A name as part of a folder's or a file's."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.")[-60:]
