"""Blocks of a suite's rows, each drawn together and kept under a hash of everything in it.

A block is a run of consecutive rows (prompt, seed) of the suite. Arithmetic differs in its last bits with the size of a
batch, so a block is always one batch, whichever process draws it and in whatever order; a batch that had to be split
says so in its rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from prompts.io.files import text_sha256
from prompts.suites import Prompt


@dataclass(frozen=True)
class PromptSeed:
    """One image that is asked for: a prompt of a suite, and the seed of its noise, which the prompt's id is part of."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Block:
    """`rows` are drawn together."""

    index: int
    rows: tuple[PromptSeed, ...]

    @cached_property
    def key(self) -> str:
        """What its images and scores are kept under: a hash of the rows: ids, texts, seeds and meta."""
        text = json.dumps(
            [
                (row.prompt.id, row.prompt.text, row.seed, *([row.prompt.meta] if row.prompt.meta else []))
                for row in self.rows
            ]
        )
        return f"{self.index:05d}-{text_sha256(text)[:10]}"


def cut_into_blocks(prompts: Sequence[Prompt], seeds: Sequence[int], size: int) -> list[Block]:
    """All rows of a suite, prompt by prompt and seed by seed, cut into blocks of `size`."""
    rows = [PromptSeed(prompt, seed) for prompt in prompts for seed in seeds]
    return [Block(i, tuple(rows[first : first + size])) for i, first in enumerate(range(0, len(rows), size))]
