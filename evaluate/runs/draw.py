"""Images of a suite's prompts: drawn in fixed blocks, kept, and never drawn twice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluate import pipelines, samplers
from evaluate.console import ProgressLog, console
from evaluate.precision import dtype_of
from evaluate.runs.blocks import Block, PromptSeed
from evaluate.runs.images import existing_images
from evaluate.runs.prefetch import prefetch
from evaluate.runs.retry import RetryInHalves
from evaluate.runs.settings import Settings
from evaluate.runs.store import DrawnImage, Store, StoredImage

#: (prompts, prompt ids, seeds) -> images `[B, 3, H, W]` in [0, 1].
DrawImages = Callable[[Sequence[str], Sequence[str], Sequence[int]], Tensor]
#: (model, device=, dtype=) -> what draws from it.
MakeSampler = Callable[..., DrawImages]


def draw_blocks(
    settings: Settings, blocks: Sequence[Block], store: Store, make: MakeSampler, *, show: bool
) -> dict[int, list[StoredImage]]:
    """The images of all `blocks`, by the block's index.

    Blocks that `store` lacks, or holds with errors, are drawn; files are written while the next block is drawn.
    """
    images: dict[int, list[StoredImage]] = {}
    for block in blocks:
        stored = store.read(block)
        if stored is not None and not any(image.error for image in stored):
            images[block.index] = stored
    todo = [block for block in blocks if block.index not in images]
    if not todo:
        return images
    with ProgressLog(f"drawing {settings.model}", sum(len(b.rows) for b in todo), unit="image", show=show) as progress:
        draw = _source(settings, make)
        written = prefetch(lambda pair: store.write(*pair), ((block, draw(block)) for block in todo))
        for block, drawn in zip(todo, written, strict=True):
            images[block.index] = drawn
            progress.advance(len(drawn))
    return images


def _source(settings: Settings, make: MakeSampler) -> Callable[[Block], list[DrawnImage]]:
    if settings.images:
        return existing_images(settings.images, settings.suite.prompts, seeds=len(settings.seeds))
    sample = make(settings.model, device=settings.device, dtype=dtype_of(settings.dtype))
    return block_sampler(sample, name=settings.model, say=console.print)


def make_sampler(model: str, *, device: str, dtype: torch.dtype) -> DrawImages:
    """What draws from a model."""
    pipeline, recipe = pipelines.load(model, dtype=dtype).to(device), pipelines.read_recipe(model)
    sampler = samplers.make(recipe)

    def sample(prompts: Sequence[str], ids: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return sampler.draw(pipeline, recipe, prompts, seeds=seeds, keys=ids)

    return sample


def block_sampler(sample: DrawImages, *, name: str, say: Callable[[str], Any]) -> Callable[[Block], list[DrawnImage]]:
    """What draws a block's rows together, or in halves where it must. name: of the model, for what is said."""

    def sample_rows(rows: Sequence[PromptSeed]) -> list[Tensor | None]:
        texts, ids = [row.prompt.text for row in rows], [row.prompt.id for row in rows]
        images = sample(texts, ids, [row.seed for row in rows])
        finite = images.flatten(1).sum(1).isfinite().tolist()
        return [image if ok else None for image, ok in zip(images, finite, strict=True)]

    in_halves = RetryInHalves(sample_rows, name=name, say=say)

    def sample_block(block: Block) -> list[DrawnImage]:
        return [
            (pixels, error or ("the model drew NaN or infinity" if pixels is None else None), batch)
            for pixels, error, batch in in_halves(block.rows)
        ]

    return sample_block
