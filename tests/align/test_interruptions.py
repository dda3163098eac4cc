"""Kills and signals at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import SMALL_RUN

from align.config.train import TrainConfig
from align.presets.load import resolve
from align.run_folder import open_folder
from align.world.config import PRETRAIN
from evaluate import embedded, weights
from prompts.io.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")

KILLS = 10


def start(folder: Path, output: Path, *, resume: bool) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        "from align.cli import main; main()",
        "train",
        "shapes-di",
        "--config",
        str(folder / "small.yaml"),
        "--output",
        str(output),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *(["--resume"] if resume else [])], stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture
def small(tiny: Path, tmp_path: Path) -> Path:
    content = {key: value for key, value in SMALL_RUN.items() if key != "stage"}
    held_out = {"scorers": {}, "prompts": "shapes:test"}
    changes = {
        "reference": str(tiny),
        "method": "sim",
        "steps": 60,
        "batch_size": 2,
        "save_every": 3,
        "sample_every": 20,
        "held_out": held_out,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content | changes))
    return tmp_path


def test_an_interrupted_stage_of_the_world_is_not_taken_for_a_finished_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has left a checkpoint too."""
    from align.world import build

    resumed: list[bool] = []

    def train(config: TrainConfig, folder: Path, *, resume: bool) -> bool:
        resumed.append(resume)
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "log.jsonl").write_text("{}\n")
        ended = len(resumed) == 2
        step = config.assistant.warmup + config.steps if ended else 3
        (folder / "run.json").write_text(json.dumps({"step": step}))
        return ended

    monkeypatch.setattr(build, "train", train)
    with pytest.raises(KeyboardInterrupt):
        build._train("base", "shapes-base", tmp_path)
    for _ in range(2):  # made to its end, and then there
        assert build._train("base", "shapes-base", tmp_path) == tmp_path / "base" / "checkpoint"
    assert resumed == [False, True]
    with pytest.raises(UserError, match=r"seed was 0 and is now 5"):  # nor is another run
        build._train("base", "shapes-base", tmp_path, "seed=5")
    other = resolve("shapes-clip", PRETRAIN, sets=["fit.steps=10"])  # of another command, which left a checkpoint
    open_folder(other, tmp_path / "shapes-clip", resume=False)
    (tmp_path / "shapes-clip" / "checkpoint").mkdir()
    with pytest.raises(UserError, match=r"fit.steps was 10 and is now"):
        build._pretrain("shapes-clip", tmp_path)
    card = json.loads((embedded.HERE / "shapes" / "card.json").read_text())
    assert set(card["stages"]) == set(build.STAGES)


def result(output: Path) -> bytes:
    tensors = weights.read(output / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
    return b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))


def logged(output: Path) -> int:
    path = output / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_ten_times_it_ends_bit_identical(small: Path) -> None:
    process = start(small, small / "whole", resume=False)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error

    rng, moments = random.Random(0), []
    output = small / "killed"
    for kill in range(KILLS):
        process = start(small, output, resume=kill > 0)
        # Anywhere: while it loads, trains, or saves.
        done, goal, deadline = logged(output), rng.randrange(0, 6), time.monotonic() + 120
        while process.poll() is None and logged(output) < done + goal and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if not (output / "config.yaml").exists():  # before a run folder is there, there is nothing to resume
            while process.poll() is None and not (output / "config.yaml").exists():
                time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        moments.append(logged(output))
    assert process.returncode == -signal.SIGKILL, "the last kill came too late to be one"
    process = start(small, output, resume=True)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert len(set(moments)) > 3
    assert result(output) == result(small / "whole")
    steps = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 62))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_cleanly(small: Path, number: signal.Signals) -> None:
    output = small / "run"
    process = start(small, output, resume=False)
    while logged(output) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "continue with --resume" in " ".join(error.split())
    assert max(int(path.name[5:]) for path in (output / "state").iterdir()) == logged(output)
    assert (output / "checkpoint" / "model_index.json").is_file()
