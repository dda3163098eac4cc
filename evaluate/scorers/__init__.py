"""Scorers: how well an image suits its prompt, or a person's taste. One file here is one family of them.

A family's file declares `VARIANTS`, name -> what it is in a sentence, the first being the family's default, and
`load(name, files)`, which returns a `Scorer`; `files` (`evaluate.weights.Files`) fetches and reads what it needs. The
file's stem is the family's name. Nothing else has to be registered. `VERIFIED_BY`, name -> what the tests verify a
variant against (`hpsv2 1.2.0`, `formula`), leaves out those that are not verified.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from evaluate.preprocess import Prepare, Prepared
from evaluate.weights import Files, RandomWeights
from prompts.extensions import Variants, extended
from prompts.io.errors import UserError

__path__ = extended(__path__, "scorers")

Images = Tensor | Sequence[Tensor]  # [B, 3, H, W], or images [3, H, W] of any sizes
Meta = Sequence[Mapping[str, Any]]  # `Prompt.meta` of each image's prompt

#: Prompts a text tower encodes at once. A block is always filled up to it: how arithmetic rounds depends on a batch's
#: size, and a prompt's features must not depend on which others happened to come with it.
TEXT_BATCH = 8
#: A CPU's caches hold the activations of few images: of so many numbers and more, it is given so many
#: at once, and is a fifth faster.
CPU_LARGE, CPU_BATCH = 3 * 224 * 224, 4
#: Prompts whose features are kept, the newest ones: 256 MiB at 1,024 numbers each.
TEXT_MEMORY = 65_536


class Assessment(NamedTuple):
    """What a scorer says of B images.

    columns: scores `[B]` by column. details: what else there is to say of each image, as JSON, or None; of it, the text
    under `reason` is what reports show beside the image.
    """

    columns: Mapping[str, Tensor]
    details: Sequence[Mapping[str, Any] | None] | None = None


class Scorer(nn.Module):
    """An image and a prompt in, a number out, or several; higher is better.

    A family implements `encode`, what depends on the prompt alone, and `forward`, the rest; or, where its networks do
    not fall into these two (detectors, judges), `assess` itself.

    protocol: name and version of what is computed. Numbers of different protocols are never compared.
    prepare: what is done to an image before the network; scorers with an equal one share its output.
    differentiable: whether float images receive a gradient, so that the scorer can be a reward.
    needs: keys of `Prompt.meta` without which a prompt's images cannot be scored.
    columns: names of its scores, each a protocol of its own in records; the first is the headline, which `score` gives.
    macro: column -> group of prompts, where the score of a run is the mean of the groups' means, not of all images.
    dtype: the precision in which the scores are defined, that of the weights unless another is asked for.
    weights_sha256: of the weights that were loaded; None where there are none.
    """

    differentiable: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    columns: tuple[str, ...]
    macro: ClassVar[Mapping[str, str]] = {}
    dtype: torch.dtype = torch.float32

    def __init__(self, protocol: str, prepare: Prepare, *, weights_sha256: str | None = None) -> None:
        super().__init__()
        self.protocol, self.prepare, self.weights_sha256 = protocol, prepare, weights_sha256
        self.columns = (protocol,)
        self._memory: dict[str, dict[str, Tensor]] = {}

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Rows `[B, ...]` that depend on the prompts alone: features where the text tower is separate, else tokens."""
        raise NotImplementedError

    def length(self, prompt: str) -> int:
        """How many tokens the prompt is padded to; prompts of one length are encoded together."""
        return 0

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """Scores `[B]` of prepared pixels `[B, 3, S, S]` and the rows of `text`."""
        raise NotImplementedError

    def text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`encode`, once per prompt: rows are kept while the weights are frozen, and carry no graph then."""
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self.encode(prompts)
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._memory))
        # Rows made in inference mode could never meet an image that wants a gradient.
        with torch.inference_mode(False), torch.no_grad():
            for block in self._blocks(new):
                rows = self.encode(block + [block[-1]] * (TEXT_BATCH - len(block)))
                self._memory |= {prompt: {key: row[i] for key, row in rows.items()} for i, prompt in enumerate(block)}
        cached = [self._memory[prompt] for prompt in prompts]
        for stale in list(self._memory)[: max(0, len(self._memory) - TEXT_MEMORY)]:
            del self._memory[stale]
        return {key: torch.stack([row[key] for row in cached]) for key in cached[0]} if cached else {}

    def _blocks(self, prompts: Sequence[str]) -> Iterator[list[str]]:
        groups: dict[int, list[str]] = {}
        for prompt in prompts:
            groups.setdefault(self.length(prompt), []).append(prompt)
        for group in groups.values():
            yield from (group[first : first + TEXT_BATCH] for first in range(0, len(group), TEXT_BATCH))

    def score(self, images: Images, prompts: Sequence[str], meta: Meta | None = None) -> Tensor:
        """Scores `[B]`, float32, of images `[B, 3, H, W]`; images of mixed sizes come as a list.

        uint8 is the protocol's path; float in [0, 1] is the differentiable one. meta: as `needs` asks.
        """
        if len(images) != len(prompts):
            raise ValueError(
                f"{self.protocol}: {len(images)} images but {len(prompts)} prompts; give one prompt per image"
            )
        return self.score_prepared(self.prepare(images), prompts, meta)

    def score_prepared(self, prepared: Prepared, prompts: Sequence[str], meta: Meta | None = None) -> Tensor:
        """Scores `[B]`, float32, of what `prepare` made of the images: the first column."""
        self.check_meta(meta)
        return self.assess(prepared, prompts, meta or ()).columns[self.columns[0]]

    def check_meta(self, meta: Meta | None) -> None:
        """Raise UserError for a prompt that lacks something of what the scorer needs to know of it."""
        for i, each in enumerate([{}] if meta is None else meta, 1):
            if lacking := [key for key in self.needs if key not in each]:
                whose = "texts alone do" if meta is None else f"prompt {i} does"
                raise UserError(
                    f"{self.protocol} needs to know {lacking[0]!r} of every prompt, which {whose} not say; use it with"
                    " 'evaluate run' on a suite whose prompts say it"
                )

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """All that the scorer says of what `prepare` made of the images.

        meta: of each prompt, checked; empty where nothing is known. Here `encode` and `forward` say it.
        """
        assert isinstance(prepared, Tensor), "images of several sizes need an `assess` of their own"
        return Assessment({self.protocol: self._scores(prepared, prompts)})

    def _scores(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels, text = pixels.to(next(self.parameters(), pixels)), self.text(prompts)
        few = pixels.device.type == "cpu" and pixels[:1].numel() >= CPU_LARGE
        size = CPU_BATCH if few else max(len(pixels), 1)
        parts = [
            self(part, {key: rows[i * size : (i + 1) * size] for key, rows in text.items()})
            for i, part in enumerate(pixels.split(size))
        ]
        return torch.cat(parts).float()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Another device or precision makes what is kept useless.
        self._memory.clear()
        return super()._apply(fn, recurse)


def prepare_all(scorers: Iterable[Scorer], images: Images) -> dict[Prepare, Prepared]:
    """What each distinct `prepare` of the scorers makes of the images, carried out once."""
    return {prepare: prepare(images) for prepare in dict.fromkeys(scorer.prepare for scorer in scorers)}


def score_all(scorers: Mapping[str, Scorer], images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Every scorer's scores `[B]`, under its key."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts; give one prompt per image")
    prepared = prepare_all(scorers.values(), images)
    return {name: scorer.score_prepared(prepared[scorer.prepare], prompts) for name, scorer in scorers.items()}


@torch.no_grad()
def path_gap(scorer: Scorer, images: Images, prompts: Sequence[str]) -> float:
    """Largest difference, in the scorer's units, between the path of bytes and that of
    floats on the same uint8 images.
    """
    floats = images.float() / 255 if isinstance(images, Tensor) else [image.float() / 255 for image in images]
    return (scorer.score(images, prompts) - scorer.score(floats, prompts)).abs().max().item()


_families = Variants(__name__, what="scorer")
variants, verified, resolve = _families.variants, _families.verified, _families.resolve


def module_of(name: str) -> set[str]:
    """The name of the module that loads the scorer called `name`; nothing where none does."""
    return {_families.find(name)[1].__name__} if resolve(name) else set()


def variant_of(name: str) -> str:
    """The variant that is called `name`, or a family's default. Raises UserError for an unknown name."""
    return _families.find(name)[0]


def load(
    name: str,
    *,
    device: Any = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    random_weights: bool = False,
) -> Scorer:
    """The scorer called `name` (a variant, or a family for its default), frozen and in evaluation mode.

    dtype: by default the one that the scorer is defined in. weights: a local path in place of the scorer's own.
    random_weights: none is read, which measures what a scorer costs. Raises UserError for an unknown name.
    """
    variant, module = _families.find(name)
    with torch.device(device) if random_weights else nullcontext():  # a GPU draws a billion numbers at once
        scorer: Scorer = module.load(variant, RandomWeights(weights) if random_weights else Files(weights))
    return scorer.to(device=device, dtype=dtype or scorer.dtype).eval().requires_grad_(False)
