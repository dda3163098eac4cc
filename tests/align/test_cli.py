"""What users can get wrong ends in one sentence that names the place and the remedy, and loses nothing."""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny import SMALL_RUN

from align import cli, run_folder
from align.ablation.config import SWEEP
from align.config.overrides import difference, merge
from align.config.train import TRAIN, TrainConfig
from align.presets import load
from align.training import checkpoints as state
from align.training import loop
from align.world.config import PRETRAIN, REWARD
from prompts.io.errors import UserError
from prompts.io.validate import validate
from prompts.io.yaml import read_yaml

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def align(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return its exit code and what it wrote to stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["align", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            return code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture
def small(tiny: Path, tmp_path: Path) -> Path:
    """A config file that turns the preset shapes-di into a run of seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump(
            {key: value for key, value in SMALL_RUN.items() if key != "stage"}
            | {"reference": str(tiny), "final_comparison": {"prompts": 0}}
        )
    )
    return path


def refused(result: tuple[int, str], *words: str) -> None:
    code, error = result
    assert code == 2, error
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("align: ")]
    assert len(lines) == 1, error
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shapes-distart"], ["no preset 'shapes-distart'", "did you mean 'shapes-distar'?"]),
        (["shapes-vae"], ["belongs to 'align pretrain'"]),
        (["shapes-di", "--set", "stepz=3"], ["--set stepz=3", "unknown key 'stepz'", "did you mean 'steps'?"]),
        (["shapes-di", "--set", "student.learning_rat=3"], ["'student.learning_rat'", "did you mean 'learning_rate'?"]),
        (["shapes-di", "--set", "steps=-3"], ["steps = -3", "greater than 0"]),
        (["shapes-di", "--set", "ema=1.5"], ["ema = 1.5", "less than 1"]),
        (["shapes-di", "--set", "student.learning_rate=nan"], ["student.learning_rate", "finite"]),
        (["shapes-di", "--set", "steps"], ["not of the form key=value"]),
        (["shapes-di", "--set", "steps=[1"], ["not valid YAML"]),
        (["shapes-di", "--set", "method=di*"], ["needs rewards"]),
        (["shapes-di", "--set", "rewards=[{scorer: shapes/clip, scale: 1}]"], ["takes no rewards"]),
        (["shapes-di", "--set", "guidance.where=off"], ["does nothing with guidance.where off"]),
        (["shapes-distar", "--set", "rewards=[{scorer: shapes/clip, scale: 1}, {scorer: shapes/clip, scale: 2}]"],
         ["rewards: shapes/clip is there twice"]),
        (["shapes-di", "--set", "final_comparison.prompts=1"], ["of one caption there is no interval"]),
        (["shapes-di", "--set", "final_comparison={prompts: 4}", "--set", "held_out={}"],
         ["captions that are not trained on"]),
        (["shapes-di", "--set", "final_comparison={prompts: 4, source: /no/captions.txt}"], ["no such file"]),
        (["shapes-di", "--processes", "2"], ["--gpu-memory and --processes belong to --dry-run"]),
        (["shapes-di", "--set", "gradient_accumulation_steps=5"], ["not a multiple of gradient_accumulation_steps"]),
        (["shapes-di", "--config", "/no/such.yaml"], ["/no/such.yaml: no such file"]),
        (["shapes-di", "--set", "reference=/no/such/model"], ["/no/such/model: no such folder"]),
        (["shapes-di", "--set", "reference=shapes/renderer"],
         ["reference = shapes/renderer: the sampler shapes_renderer makes its images"]),
        (["shapes-di", "--set", "initial=shapes/renderer"], ["initial = shapes/renderer: the sampler shapes_renderer"]),
        (["shapes-di", "--set", "prompts=/no/prompts.txt"], ["/no/prompts.txt: no such file"]),
        (["shapes-di", "--resume"], ["no run to resume there"]),
        (["shapes-di", "--set", "trackers=[clipboard]"], ["trackers: 'clipboard' is not installed"]),
    ],
)  # fmt: skip
def test_bad_arguments(align: Run, tmp_path: Path, tiny: Path, arguments: list[str], words: list[str]) -> None:
    reference = [] if any("reference" in a for a in arguments) else ["--set", f"reference={tiny}"]
    refused(align("train", *arguments, *reference, "--output", tmp_path / "run"), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"steps: [", ["not valid YAML at line"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (b"", ["holds no keys"]),
        (b"- 1\n", ["holds no keys"]),
    ],
)
def test_bad_config_files(align: Run, tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    refused(align("train", "shapes-di", "--config", path, "--output", tmp_path / "run"), str(path), *words)


def test_a_file_of_ones_own_stands_in_a_presets_place(align: Run, tmp_path: Path) -> None:
    """Laid over one by its key `base`, or whole, as a run's own configuration is."""
    mine, run, again = (tmp_path / name for name in ("mine.v2.yaml", "run", "again.yaml"))
    mine.write_text("base: shapes-distar\nsteps: 7\nstudent: {learning_rate: 0.5}\n")
    laid_over = load.resolve(str(mine), TRAIN, sets=["batch_size=8"])
    sets = ["steps=7", "student.learning_rate=0.5", "batch_size=8"]
    assert laid_over == load.resolve("shapes-distar", TRAIN, sets=sets)
    run_folder.open_folder(laid_over, run, resume=False)
    shutil.copy(run / "config.yaml", again)
    assert load.resolve(str(again), TRAIN) == laid_over
    assert load.name_of(str(mine)) == "mine.v2"
    assert [load.origin_of(each) for each in (str(mine), str(again), "shapes-di")] == [
        "shapes-distar",
        None,
        "shapes-di",
    ]
    assert load.name_of("pixart-dipp-rew10-cfg4.5") == "pixart-dipp-rew10-cfg4.5"
    mine.write_text("base: shapes-distar\nstepz: 7\n")
    refused(align("train", mine, "--dry-run"), f"{mine}: unknown key 'stepz'", "did you mean 'steps'?")


def test_a_resumed_run_stays_what_it_was_begun_from(tmp_path: Path) -> None:
    config = load.resolve("shapes-di", TRAIN)
    run_folder.open_folder(config, tmp_path / "run", resume=False, preset="shapes-di")
    run_folder.open_folder(config, tmp_path / "run", resume=True, preset="another")
    assert run_folder.read_run(tmp_path / "run")["preset"] == "shapes-di"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["layout=0"], ["layout_steps = 1200", "set both to 0"]),
        (["mix={one: 1, pairs: 1}"], ["mix", "one, count, pair"]),
        (["mix={one: 0}"], ["mix"]),
        (["seed=-1"], ["seed = -1", "greater than or equal to 0"]),
    ],
)
def test_bad_settings_of_the_worlds_stages(align: Run, tmp_path: Path, sets: list[str], words: list[str]) -> None:
    options = [word for text in sets for word in ("--set", text)]
    refused(align("pretrain", "shapes-teacher", *options, "--output", tmp_path / "run"), *words)


def test_maps_whose_keys_are_the_users_are_replaced_whole() -> None:
    sweep, mine = load.content_of("shapes-methods", SWEEP), {"best": {"model": "shapes/base"}}
    assert merge(SWEEP["sweep"], sweep, {"baselines": mine})["baselines"] == mine
    with pytest.raises(UserError, match=r"unknown key 'baselines.best.modle'; did you mean 'model'\?"):
        validate(SWEEP["sweep"], sweep | {"baselines": {"best": {"model": "shapes/base", "modle": "it"}}}, "test")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("steps: 7\n", ["neither a stage", "add 'base: PRESET'"]),
        ("base: shapes-distart\n", ["no preset that ships", "did you mean 'shapes-distar'?"]),
        ("base: shapes-vae\n", ["of stage 'vae'", "give it to 'align pretrain'"]),
        ("base: shapes-di\nstage: sweep\n", ["its base 'shapes-di' is of stage 'train'", "leave stage out"]),
        ("base: [shapes-di]\n", ["no preset that ships"]),
        ("stage: [train]\n", ["neither a stage"]),
        ("base: shapes-di\nprompts: hf_" + "a" * 34 + "\n", ["holds a token"]),
        (None, ["no such file"]),
    ],
)
def test_bad_files_in_a_presets_place(align: Run, tmp_path: Path, content: str | None, words: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    if content:
        path.write_text(content)
    refused(align("train", path, "--output", tmp_path / "run"), str(path), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["holds no prompt"]),
        (b"\n  \n", ["holds no prompt"]),
        (b"fine\n\xff\xfe\n", ["not UTF-8", "byte 5"]),
        (b"fine\n" + b"word " * 10_000 + b"\n", ["line 2", "10,000 words"]),
    ],
)
def test_bad_prompt_files(align: Run, tmp_path: Path, small: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    result = align("train", "shapes-di", "--config", small, "--set", f"prompts={path}", "--output", tmp_path / "run")
    refused(result, str(path), *words)


def test_a_prompt_file_trains(align: Run, tmp_path: Path, small: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('a "quoted" prompt\nein Würfel, größer als 3 €\n')
    code, error = align(
        "train", "shapes-di", "--config", small, "--set", f"prompts={path}", "--output", tmp_path / "run"
    )
    assert code == 0, error


def test_an_existing_folder_is_left_alone(align: Run, tmp_path: Path, small: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    refused(align("train", "shapes-di", "--config", small, "--output", tmp_path / "run"), "already there", "--resume")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]
    refused(align("train", "shapes-di", "--config", small, "--output", tmp_path / "small.yaml"), "already there")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "shapes-di", "--set", "reference=/no/such/model"],
        ["train", "shapes-di", "--set", "trackers=[clipboard]"],
        ["train", "shapes-distar", "--set", "rewards=[{scorer: shapes/none, scale: 1}]"],
        ["train", "shapes-di", "--set", "prompts=EMPTY"],
        ["pretrain", "shapes-teacher", "--set", "vae=/no/vae"],
        ["reward", "--pairs", "PAIRS", "--set", "initial=/no/clip"],
    ],
)
def test_a_refused_start_leaves_no_folder_of_its_own(
    align: Run, tmp_path: Path, tiny: Path, arguments: list[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    places = {"prompts=EMPTY": f"prompts={tmp_path / 'empty.txt'}", "PAIRS": write_pairs(tmp_path)}
    start = ["--set", f"reference={tiny}"] if "EMPTY" in arguments[-1] else []
    command = [*(places.get(each, each) for each in arguments), *start, "--output"]
    (tmp_path / "mine").mkdir()
    assert align(*command, tmp_path / "runs" / "one")[0] == 2
    assert align(*command, tmp_path / "mine")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["mine"]
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"seed": 1, "student": {"learning_rate": 1e-4}}, {"seed": 1, "student": {"learning_rate": 1e-3}},
         "student.learning_rate was 0.0001 and is now 0.001"),
        ({"rewards": [{"scorer": "a", "scale": 1.0}]}, {"rewards": [{"scorer": "a", "scale": 2.0}]},
         "rewards.0.scale was 1.0 and is now 2.0"),
        ({"rewards": [{"scale": 1.0}]}, {"rewards": [{"scale": 1.0}, {"scale": 3.0}]},
        "rewards.1.scale was not set and is now 3.0"),
        ({"lora": {"alpha": 4.0, "rank": 2}}, {"lora": None}, "lora.alpha was 4.0 and is now not set"),
        ({"held_out": {"scorers": {"a/b": 0.5}}}, {"held_out": {"scorers": {}}},
        "held_out.scorers.a/b was 0.5 and is now not set"),
        ({"a": {"b": []}}, {"a": {"b": None}}, "a.b was [] and is now not set"),
        ({"a": [1, 2]}, {"a": "all"}, "a was [1, 2] and is now 'all'"),
        ({"a": [{"b": None}]}, {"a": [{"b": None}]}, None),
        ({"a": 1}, {"a": 1, "b": None}, None),
        ({"a": 1}, {"a": 1, "b": None, "d": 2}, "d was not set and is now 2"),
    ],
)  # fmt: skip
def test_the_value_that_changed_is_named(old: dict[str, Any], new: dict[str, Any], said: str | None) -> None:
    assert difference(old, new) == said


def test_resuming_names_a_nested_value(tmp_path: Path) -> None:
    config, run = load.resolve("shapes-distar", TRAIN), tmp_path / "run"
    run_folder.open_folder(config, run, resume=False)
    other = load.resolve("shapes-distar", TRAIN, sets=["steps=7", "student.learning_rate=0.5"])
    with pytest.raises(
        UserError, match=r"config.yaml: student.learning_rate was \S+ and is now 0.5; resume with the old value"
    ):
        run_folder.open_folder(other, run, resume=True)


def interrupted(output: Path, file: str, content: str, *, resume: bool = False) -> None:
    """A run that writes one file and is stopped by Ctrl-C."""
    config = load.resolve("shapes-di", TRAIN)
    with pytest.raises(KeyboardInterrupt), run_folder.opened(config, output, resume=resume):
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        (output / file).write_text(content)
        raise KeyboardInterrupt


@pytest.mark.parametrize("file", ["log.jsonl", "state/step-1/student.pt", "failed-batch.json", "anything"])
def test_what_a_run_has_written_is_kept(tmp_path: Path, file: str) -> None:
    run = tmp_path / "runs" / "one"
    for beginning, content in (("log.jsonl", ""), ("samples/step-00000.png", "image")):
        interrupted(run, beginning, content)
        assert not (tmp_path / "runs").exists()
    interrupted(run, file, "{}")
    assert (run / file).is_file()
    assert (run / "config.yaml").is_file()


def test_one_run_at_a_time_is_at_work_in_a_folder(tmp_path: Path) -> None:
    config = load.resolve("shapes-di", TRAIN)
    with run_folder.opened(config, tmp_path / "run", resume=False):
        (tmp_path / "run" / "log.jsonl").write_text("{}\n")
        with (
            pytest.raises(UserError, match="another run is at work there"),
            run_folder.opened(config, tmp_path / "run", resume=True),
        ):
            pass
    with run_folder.opened(config, tmp_path / "run", resume=True):
        pass


def test_a_resumed_run_is_never_removed(tmp_path: Path) -> None:
    run_folder.open_folder(load.resolve("shapes-di", TRAIN), tmp_path / "run", resume=False)
    interrupted(tmp_path / "run", "log.jsonl", "", resume=True)
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_an_unwritable_folder(align: Run, tmp_path: Path, small: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(
        align("train", "shapes-di", "--config", small, "--output", tmp_path / "file" / "run"),
        "cannot be written to",
        "choose another",
    )


def test_resuming_with_a_changed_config_names_the_key(
    align: Run, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["train", "shapes-di", "--config", small, "--output", tmp_path / "run"]
    assert align(*run)[0] == 0
    refused(align(*run), "already there")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    refused(align(*run, "--resume", "--set", "batch_size=4"), "config.yaml", "batch_size was 8 and is now 4")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert align(*run, "--resume", "--set", "steps=5")[0] == 0
    assert max(state.steps(tmp_path / "run" / "state")) == 6
    refused(align(*run, "--resume", "--set", "steps=2"), "is at step 6 of 3 already")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "gather", lambda step, world: [step, step - 1])
        refused(align(*run, "--resume", "--set", "steps=6"), "processes would go on from different steps")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    for folder in (tmp_path / "run" / "state").iterdir():
        (folder / "student.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="skipping a torn state"):
        refused(align(*run, "--resume"), "no state there is whole")
    shutil.rmtree(tmp_path / "run" / "state")
    refused(align(*run, "--resume"), "this run has ended, and its states are gone")
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_while_saving_loses_nothing(
    align: Run, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = ["train", "shapes-di", "--config", small, "--output", tmp_path / "run"]
    assert align(*run, "--set", "steps=2")[0] == 0
    kept = {
        path: path.read_bytes()
        for folder in ("state", "checkpoint")
        for path in (tmp_path / "run" / folder).rglob("*")
        if path.is_file()
    }
    original = state.torch.save

    def full(part: Any, path: Path) -> None:
        if path.stem == "optimizers":
            raise error
        original(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(state.torch, "save", full)
        refused(align(*run, "--resume"), "cannot save the state of step 5", "free some space")
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert not list((tmp_path / "run" / "state").glob(".*"))
    assert align(*run, "--resume")[0] == 0


def test_a_full_disk_while_exporting_keeps_the_old_checkpoint(
    align: Run, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    run = ["train", "shapes-di", "--config", small, "--output", tmp_path / "run"]
    assert align(*run, "--set", "steps=2")[0] == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoint").rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "save_pretrained", full)
        refused(align(*run, "--resume"), "checkpoint: cannot be written", "free some space")
    assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.slow
def test_a_dry_run_prints_what_would_run(
    align: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["align", "train", "shapes-distar", "--dry-run", "--set", "steps=7"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["steps"] == 7
    assert validate(TrainConfig, printed, "printed")


@pytest.mark.parametrize("preset", load.stages())
def test_every_preset_is_valid_and_says_what_it_is(preset: str) -> None:
    models = TRAIN | PRETRAIN | REWARD | SWEEP
    assert load.resolve(preset, models)
    path = next(path for path in load.preset_files() if path.stem == preset)
    assert len(load.describe(path)) > 20


def test_presets_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["align", "presets"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "shapes-distar" in capsys.readouterr().out


# ---- sample, export --------------------------------------------------------------------------------------------------


def test_sampling_draws_a_row_a_prompt(align: Run, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.training import compare

    asked: list[tuple[str, str]] = []
    draw = compare.draw

    def drawn(pipeline: Any, recipe: Any, prompts: list[str], **options: Any) -> torch.Tensor:
        asked.extend(zip(prompts, options["keys"], strict=True))
        return draw(pipeline, recipe, prompts, **options)

    monkeypatch.setattr(compare, "draw", drawn)
    code, error = align("sample", tiny, "--prompt", "a", "--prompt", "b", "--n", 3, "--output", tmp_path / "s.png")
    assert code == 0, error
    assert [text for text, _ in asked] == ["a"] * 3 + ["b"] * 3
    assert len({key for _, key in asked}) == 6, "noise of its own for each"
    with Image.open(tmp_path / "s.png") as image:
        assert image.width > image.height


def test_bad_sampling(align: Run, tmp_path: Path, tiny: Path) -> None:
    refused(align("sample", tmp_path / "none", "--prompt", "a"), "no such folder")
    refused(align("sample", tmp_path, "--prompt", "a", "--output", tmp_path / "s.png"), "no model_index.json")
    refused(align("sample", tiny, "--prompt", "a", "--output", tmp_path / "s.jpg"), "PNG")


def test_exporting(align: Run, tmp_path: Path, small: Path, tiny: Path) -> None:
    assert align("train", "shapes-di", "--config", small, "--output", tmp_path / "run")[0] == 0
    code, error = align("export", tmp_path / "run", "--output", tmp_path / "bare", "--pipeline", tiny)
    assert code == 0, error
    size = sum(path.stat().st_size for path in (tmp_path / "bare").rglob("*") if path.is_file())
    assert size < 0.5 * sum(
        path.stat().st_size for path in (tmp_path / "run" / "checkpoint").rglob("*") if path.is_file()
    )
    assert align("sample", tmp_path / "bare", "--prompt", "a", "--output", tmp_path / "s.png")[0] == 0
    refused(align("export", tmp_path / "run", "--output", tmp_path / "bare"), "already there")
    refused(align("export", tmp_path / "none", "--output", tmp_path / "x"), "no such run")
    refused(align("export", tmp_path / "run", "--output", tmp_path / "x", "--dtype", "int8"), "int8")


# ---- pairs -----------------------------------------------------------------------------------------------------------


def write_pairs(folder: Path, n: int = 12, size: int = 32) -> Path:
    rows = []
    for i in range(n):
        for key, shade in (("preferred", 250), ("rejected", 20)):
            Image.new("RGB", (size, size), (shade, 10, 10)).save(folder / f"{i}-{key}.png")
        rows.append(
            {
                "prompt": f"prompt {i // 2}",
                "source": "ab"[i % 2],
                "preferred": f"{i}-preferred.png",
                "rejected": f"{i}-rejected.png",
            }
        )
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_preference_model_learns_from_pairs(align: Run, tmp_path: Path, clip_folder: Path) -> None:
    options = [
        "--set",
        f"initial={clip_folder}",
        "--set",
        "fit={steps: 30, batch_size: 8, learning_rate: 1e-2, warmup: 2, ema: 0.5}",
    ]
    code, error = align("reward", "--pairs", write_pairs(tmp_path), *options, "--output", tmp_path / "reward")
    assert code == 0, error
    figures = json.loads((tmp_path / "reward" / "metrics.json").read_text())
    assert figures["training_accuracy"] == 1.0
    resumed = ("reward", *options, "--output", tmp_path / "reward", "--resume", "--pairs")
    assert align(*resumed, tmp_path / "pairs.jsonl")[0] == 0
    (tmp_path / "fewer.jsonl").write_text("".join((tmp_path / "pairs.jsonl").read_text().splitlines(True)[2:]))
    refused(align(*resumed, tmp_path / "fewer.jsonl"), "fewer.jsonl: not the pairs that", "was begun with")
    assert figures["held_out_pairs"] + 1 < figures["pairs"] == 12
    assert figures["held_out_accuracy"] == (figures["held_out_accuracy/a"] + figures["held_out_accuracy/b"]) / 2
    from evaluate import scorers

    assert scorers.load("shapes/preference", weights=str(tmp_path / "reward" / "checkpoint"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), ["no such file"]),
        (lambda path: path.write_text(""), ["holds 0 pairs"]),
        (lambda path: path.write_text("{"), ["line 1", "not JSON with the keys"]),
        (lambda path: path.write_text('{"prompt": "a"}\n'), ["line 1", "not JSON with the keys"]),
        (lambda path: path.write_text('\n{"prompt": 3}\n'), ["line 2", "prompt is no text"]),
        (lambda path: path.write_text('{"prompt": "a\u2028b"}\n'), ["line 1", "('preferred')"]),
        (
            lambda path: (path.parent / "3-rejected.png").write_bytes(b"no image"),
            ["line 4", "3-rejected.png", "cannot be read as an image"],
        ),
        (lambda path: (path.parent / "3-rejected.png").unlink(), ["line 4", "3-rejected.png"]),
        (lambda path: Image.new("RGB", (8, 8)).save(path.parent / "3-rejected.png"), ["several sizes"]),
        (lambda path: write_pairs(path.parent, n=2), ["share one prompt"]),
        (lambda path: write_pairs(path.parent, size=16), ["32 x 32"]),
    ],
)
def test_bad_pairs(
    align: Run, tmp_path: Path, clip_folder: Path, spoil: Callable[[Path], Any], words: list[str]
) -> None:
    path = write_pairs(tmp_path)
    spoil(path)
    refused(
        align("reward", "--pairs", path, "--set", f"initial={clip_folder}", "--output", tmp_path / "reward"), *words
    )


def test_another_owner_of_the_name_evaluate_is_named(align: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluate import environment

    monkeypatch.setattr(environment, "packages_distributions", lambda: {"evaluate": ["evaluate", "onestep-align"]})
    refused(align("presets"), "the distribution 'evaluate' installs a package called 'evaluate' as well")


def test_a_folder_opens_once(tmp_path: Path) -> None:
    config = load.resolve("shapes-di", TRAIN)
    run_folder.open_folder(config, tmp_path / "run", resume=False)
    assert validate(TrainConfig, read_yaml(tmp_path / "run" / "config.yaml"), "written") == config
