"""What a training step costs: time, pictures a second and peak memory, by gradient mode and storage of roles."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from align import config as configs
from align.config import TrainConfig
from evaluate import environment
from evaluate.console import console
from prompts.errors import UserError

GRADIENTS = ("exact", "exact_sequential", "detached")
STORAGES: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"rank": 8, "alpha": 8.0}}
UNTIMED = 2  # first steps, in which memory is claimed and kernels are chosen


def bench(config: TrainConfig, preset: str, *, steps: int, output: Path | None) -> None:
    """Measure each combination in a process of its own, print a table, and write JSON."""
    if config.method not in ("sim", "di*"):
        raise UserError(
            f"preset {preset}: its method {config.method} has no gradient modes to compare; choose a preset of sim or di*"
        )
    rows: list[dict[str, Any]] = []
    for storage, lora in STORAGES.items():
        for gradient in GRADIENTS:
            content = config.model_dump(mode="json") | {"lora": lora, "steps": steps + UNTIMED, "report": 0}
            content["divergence"]["gradient"] = gradient
            content["assistant"]["warmup"] = 0
            content |= {"save_every": 10**6, "sample_every": 10**6, "held_out": {"scorers": {}}}
            console.print(f"{storage}, {gradient} ...")
            rows.append({"storage": storage, "gradient": gradient} | _measure(content))
    result = {"preset": preset, "hardware": environment.hardware("cuda" if torch.cuda.is_available() else "cpu"), "torch": torch.__version__, "batch_size": config.batch_size, "precision": config.precision,
              "timed_steps": steps, "assistant_updates": config.assistant.updates, "rows": rows}  # fmt: skip
    table = Table(title=f"{preset}, batch {config.batch_size}, {config.precision}: {result['hardware']}")
    for column in ("roles", "gradient", "s / step", "pictures / s", "peak MiB"):
        table.add_column(column, justify="left" if column in ("roles", "gradient") else "right")
    for row in rows:
        table.add_row(
            row["storage"], row["gradient"], f"{row['step_s']:.3f}", f"{row['pictures_per_s']:.1f}", f"{row['peak_mib']:.0f}"
        )
    console.print(table)
    text = json.dumps(result, indent=1)
    if output:
        output.write_text(text + "\n")
    else:
        print(text)


def _measure(content: dict[str, Any]) -> dict[str, float]:
    """One run in a fresh process, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        done = subprocess.run([sys.executable, "-m", "align.bench", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"bench: a run failed ({(done.stderr.strip().splitlines() or ['no output'])[-1]}); try a smaller batch_size with --set"
            )
        measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return measured


def _run(path: Path) -> None:
    import resource
    import statistics

    from align.train import train

    config = configs.validate(TrainConfig, configs.read_yaml(path), str(path))
    train(config, path.parent, show=False)
    lines = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
    seconds = statistics.median(line["seconds"] for line in lines[UNTIMED:])
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:  # of the whole process, Python and libraries included
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"step_s": seconds, "pictures_per_s": config.batch_size / seconds, "peak_mib": peak}))


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
