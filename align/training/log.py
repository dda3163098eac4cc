"""A run's `log.jsonl`."""

import json
from pathlib import Path

from prompts.io.files import replace


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of `log.jsonl` after `step`, and a torn last one, before resuming from `step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    text = "".join(f"{line}\n" for line in kept)
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))
