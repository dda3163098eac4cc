"""Whether two checkouts compute the same, to the bit, on this machine: `python tests/same_bits.py OLD NEW`.

Four short trainings and one evaluation are run in each; weights, hashes of images and scores are compared. Nothing is
stored: bits are those of one machine. A checkout from before the keys of configs were renamed is given the keys that it
knows, whichever side it is on.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

#: A key -> what it was called before. Columns of records that are compared have kept their names.
FORMERLY = {"final_comparison.prompts": "report", "gradient_accumulation_steps": "accumulate"}

COMMON = (
    "steps=4",
    "batch_size=8",
    "assistant.warmup=2",
    "final_comparison.prompts=0",
    "save_every=100",
    "sample_every=0",
)
TRAININGS: dict[str, tuple[int, tuple[str, ...]]] = {  # processes, further settings
    "full": (1, ()),
    "lora": (1, ("lora={rank: 4, alpha: 4}",)),
    "micro-batches": (1, ("gradient_accumulation_steps=2",)),
    "two-processes": (2, ()),
}


def run(checkout: Path, work: Path, words: list[str]) -> None:
    """A command of a checkout, in a folder and with a cache of its own."""
    settings = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "ALIGN_CACHE": str(work / "cache")}
    work.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(words, cwd=work, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(words)} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def known_key(checkout: Path, key: str) -> str:
    """What a checkout calls a key."""
    config = checkout / "align" / "config" / "train.py"
    renamed = config.is_file() and "final_comparison" in config.read_text(encoding="utf-8")
    return key if renamed else FORMERLY.get(key, key)


def train(checkout: Path, work: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights that a short training leaves."""
    processes, further = TRAININGS[name]
    start = (
        [sys.executable]
        if processes == 1
        else [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    )
    words = [*start, "-m", "align.cli", "train", "shapes-distar", "--output", name]
    for setting in (*COMMON, *further):
        key, _, value = setting.partition("=")
        words += ["--set", f"{known_key(checkout, key)}={value}"]
    run(checkout, work, words)
    return load_file(work / name / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")


def evaluate(checkout: Path, work: Path) -> pd.DataFrame:
    """The records of an evaluation."""
    words = [
        sys.executable,
        "-m",
        "evaluate.cli",
        "run",
        "--suite",
        "shapes",
        "--model",
        "shapes/aligned",
        "--limit",
        "64",
        "--output",
        "out",
    ]
    run(checkout, work, words)
    (path,) = (work / "out").rglob("records*.parquet")
    return pd.read_parquet(path)


def different(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> list[str]:
    """The tensors that are not the same."""
    return sorted(
        key
        for key in old.keys() | new.keys()
        if key not in old or key not in new or not torch.equal(old[key], new[key])
    )


def main() -> int:
    """Print a line for each comparison; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="*", help="trainings, or 'evaluate'")
    options = parser.parse_args()
    sides = {"old": options.old.resolve(), "new": options.new.resolve()}
    work, failed = Path(tempfile.mkdtemp()), False
    wanted = options.only or [*TRAININGS, "evaluate"]
    for name in [name for name in TRAININGS if name in wanted]:
        old, new = (train(checkout, work / side, name) for side, checkout in sides.items())
        wrong = different(old, new)
        failed |= bool(wrong)
        said = f"{len(wrong)} of {len(old)} tensors differ, {wrong[0]} first" if wrong else f"{len(old)} are the same"
        print(f"{name}: {said}")
    if "evaluate" in wanted:
        old_records, new_records = (evaluate(checkout, work / side) for side, checkout in sides.items())
        compared = [
            name for name in old_records.columns if name == "id" or "sha256" in name or name.startswith("score.")
        ]
        missing = [name for name in compared if name not in new_records.columns]
        wrong = missing or [name for name in compared if not old_records[name].equals(new_records[name])]
        failed |= bool(wrong)
        said = f"{wrong} differ" if wrong else f"{len(compared)} columns of {len(old_records)} records are the same"
        print(f"evaluate: {said}")
    shutil.rmtree(work)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
