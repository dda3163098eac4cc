"""GenEval's prompts (Ghosh et al. 2023, arXiv:2310.11513): what is to be seen, how often, in which colour and where.

Six tasks: one object, two, how many (2 to 4), a colour, a position, two colours. The published score is the mean of the
tasks' means, of four images a prompt. The file is the authors' own, shipped with their licence.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

N = 553
SOURCE = "https://github.com/djghosh13/geneval"
LICENCE = "MIT (Copyright (c) 2023 Dhruba Ghosh; prompts/suites/data/geneval/LICENSE)"
PER_PROMPT = 4
METRICS = ("geneval",)

#: `prompts/evaluation_metadata.jsonl` at commit af4902f.
FILE = Path(__file__).parent / "data" / "geneval" / "evaluation_metadata.jsonl"


def prompts() -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """In the file's order; a prompt's group is its `tag`, the task, and all else that its row says is meta."""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row.pop("prompt"), {"tag": row["tag"]}, row
