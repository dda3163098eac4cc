"""What a run leaves and what `align export` makes of it: pipelines and LoRAs that stock diffusers loads,
and a card that tells no secrets.
"""

import json
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import tiny_scorers
import torch
import yaml
from hub import Hub
from safetensors.torch import load_file
from tiny import SMALL_RUN, save_tiny
from torch import Tensor

from align import cli
from align import commands as runs
from align.config.train import TrainConfig
from align.export import card as cards
from evaluate import environment, families, pipelines, samplers
from evaluate.results.csv_io import write_csv
from prompts.io import hub, markdown
from prompts.io.errors import UserError
from prompts.io.validate import validate
from prompts.io.yaml import read_yaml

Run = Callable[..., tuple[int, str]]
FAMILIES = sorted(tiny_families.FAMILIES)
#: A prompt that would spoil a page if it were taken for Markdown, HTML, YAML or Python.
NASTY = """```<script>alert("x")</script> `a` | [b](c) ' --- {d} \\"""
TOKEN = "hf_DoNotTellAnybodyWhatThisIsPlease12"
LORA: dict[str, Any] = {"rank": 3, "alpha": 6.0, "target_modules": ["to_q", "to_v", "net.2"]}
#: Of a UNet convolutions have one too.
UNET_LORA = LORA | {"target_modules": [*LORA["target_modules"], "conv1", "proj_in"]}


@pytest.fixture
def align(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return its exit code and all that it wrote."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["align", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "1000")
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    return call


def refused(result: tuple[int, str], *words: str) -> None:
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("align: ")]
    for word in words:
        assert word in line, line


@pytest.fixture(scope="module")
def trained(published: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with LoRA of every family, from another network than the reference, both on the hub."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prompts.txt").write_text(NASTY + "\na small circle\ntwo squares\n", encoding="utf-8")
    (folder / "others.txt").write_text("a circle\na square\na circle\nthree circles\ntwo circles\n")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        tiny_scorers.shrink(patch, published)
        for family in FAMILIES:
            found[family] = train(family, published, folder)
    return found


def train(family: str, published: Hub, folder: Path) -> Path:
    name = families.load(family).network
    for seed, role in enumerate(("reference", "start")):
        made = tiny_families.pipeline(family, folder / family / role, seed=seed)
        place = published.folder(f"tests-of-export/{family}-{role}", str(seed) * 40)
        if role == "reference":
            tiny_families.save(made, place)
        else:
            torch.save(getattr(made, name).state_dict(), place / "bare.bin")
    lora = LORA if family == "pixart" else UNET_LORA
    content = SMALL_RUN | {
        "family": family, "reference": f"tests-of-export/{family}-reference@{'0' * 40}", "batch_size": 4, "steps": 2,
        "initial": f"tests-of-export/{family}-start/bare.bin@{'1' * 40}", "lora": lora, "held_out": {},
        "final_comparison": {"prompts": 9, "source": str(folder / "others.txt")}, "method": "di++",
        "prompts": str(folder / "prompts.txt"), "rewards": [{"scorer": "pickscore", "scale": 100}],
        "generator": {"input_scale": "unit_variance" if family == "sdxl" else "sigma_init"},
        "student": {"learning_rate": 0.03},
    }  # fmt: skip
    config = validate(TrainConfig, content, family)
    assert runs.train(config, folder / family / "run", resume=False, preset="shapes-di")
    return folder / family / "run"


def draw(pipeline: Any, folder: Path) -> Tensor:
    """Images by a stock pipeline, called as the folder's recipe says."""
    pipeline.set_progress_bar_config(disable=True)
    return samplers.draw(pipeline, pipelines.read_recipe(str(folder)), ["a circle", "two squares"], seed=0)


def started(run: Path) -> Any:
    """What the student started from: the reference's pipeline with the bare file's network, and the run's scheduler."""
    from diffusers import DiffusionPipeline

    config = validate(TrainConfig, read_yaml(run / "config.yaml"), "run")
    reference, start = (DiffusionPipeline.from_pretrained(run / "checkpoint") for _ in range(2))
    name = families.load(config.family).network
    from align.networks.initial import load_into

    load_into(start, name, getattr(start, name), str(config.initial))
    assert reference.scheduler.config == start.scheduler.config
    return start


def lay(pipeline: Any, folder: Path) -> Any:
    """Load the folder's LoRA with stock diffusers, or where it has no way for the family, with peft."""
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(folder)
        return pipeline
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    tensors = {
        key.removeprefix("transformer."): value
        for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items()
    }
    targets = sorted({key.partition(".lora_")[0] for key in tensors})
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=3, target_modules=targets), pipeline.transformer)
    outcome = set_peft_model_state_dict(pipeline.transformer, tensors)
    assert not outcome.unexpected_keys
    return pipeline


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lora_over_its_start_draws_what_the_checkpoint_draws(trained: dict[str, Path], family: str) -> None:
    from diffusers import DiffusionPipeline

    checkpoint = trained[family] / "checkpoint"
    merged = draw(DiffusionPipeline.from_pretrained(checkpoint), checkpoint)
    start = started(trained[family])
    assert (draw(start, checkpoint) - merged).abs().max() > 1e-2
    assert (draw(lay(start, checkpoint), checkpoint) - merged).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_lora_is_a_model_of_its_own(
    trained: dict[str, Path], tmp_path: Path, align: Run, family: str
) -> None:
    code, said = align("export", trained[family], "--lora", "--dtype", "fp32", "--output", tmp_path / "lora")
    assert code == 0, said
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "recipe.yaml", "README.md"}
    checkpoint = trained[family] / "checkpoint"
    mine, theirs = (draw(pipelines.load(str(folder)), folder) for folder in (tmp_path / "lora", checkpoint))
    assert (mine - theirs).abs().max() < 1e-5
    assert pipelines.digest(str(tmp_path / "lora"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_network_is_a_model_of_its_own(
    trained: dict[str, Path], tmp_path: Path, align: Run, family: str
) -> None:
    reference = str(read_yaml(trained[family] / "config.yaml")["reference"])
    code, said = align(
        "export", trained[family], "--pipeline", reference, "--dtype", "fp32", "--output", tmp_path / "bare"
    )
    assert code == 0, said
    checkpoint = trained[family] / "checkpoint"
    mine, theirs = (draw(pipelines.load(str(folder)), folder) for folder in (tmp_path / "bare", checkpoint))
    assert mine.equal(theirs)


def test_pixart_is_told_to_leave_captions_as_they_are(trained: dict[str, Path]) -> None:
    for family, run in trained.items():
        arguments = pipelines.read_recipe(str(run / "checkpoint")).arguments
        assert (arguments or {}).get("clean_caption") is (False if family == "pixart" else None), family


def test_a_lora_of_what_a_folder_of_this_machine_was_made_from(tmp_path: Path, tiny: Path, align: Run) -> None:
    """The reference is a folder, and what the student started from one more, of a pipeline or of a network alone."""
    start = save_tiny(tmp_path / "start", seed=3)
    (tmp_path / "prompts.txt").write_text("a circle\n")
    for name, initial in {"whole": start, "network": start / "unet", "none": None}.items():
        sets = {
            "reference": tiny,
            "assistant": {"warmup": 1},
            "prompts": tmp_path / "prompts.txt",
            "initial": initial,
            "lora": LORA,
            "steps": 2,
            "batch_size": 4,
            "held_out": {"scorers": {}},
            "guidance": {"scale": 1.0, "where": "off"},
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(sets, default=str))))
        run = tmp_path / "runs" / name
        assert align("train", "shapes-di", "--config", tmp_path / "c.yaml", "--output", run)[0] == 0
        code, said = align("export", run, "--lora", "--dtype", "fp32", "--output", tmp_path / f"lora-{name}")
        assert code == 0, said
        folders = tmp_path / f"lora-{name}", run / "checkpoint"
        mine, theirs = (draw(pipelines.load(str(folder)), folder) for folder in folders)
        assert (mine - theirs).abs().max() < 1e-5
        assert str(tmp_path) not in "".join((folders[0] / file).read_text() for file in ("recipe.yaml", "README.md"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        refused(
            align("export", run, "--lora", "--push-to-hub", "me/model"),
            "on this machine alone",
            "push the whole checkpoint",
        )


def test_what_cannot_be_exported(trained: dict[str, Path], tmp_path: Path, tiny: Path, align: Run) -> None:
    run = trained["sd15"]
    refused(align("export", run), "nowhere to write to", "--output DIR or --push-to-hub")
    refused(align("export", run, "--output", run), "already there")
    refused(align("export", run, "--output", tmp_path / "x", "--private"), "--private belongs to --push-to-hub")
    refused(align("export", run, "--output", tmp_path / "x", "--lora", "--pipeline", tiny), "choose one")
    refused(align("export", tiny, "--output", tmp_path / "x", "--lora"), "no LoRA of a run there", "leave out --lora")
    (tmp_path / "other.csv").write_text("model,model_sha256\nother,0\n")
    refused(
        align("export", run, "--output", tmp_path / "y", "--scores", tmp_path / "other.csv"), "no row of this model"
    )
    refused(
        align("export", tiny, "--output", tmp_path / "x", "--scores", tmp_path / "other.csv"),
        "not of a run of 'align train'",
    )
    refused(align("export", run, "--output", tmp_path / "x", "--pipeline", tmp_path / "nowhere"), "no such folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.csv"], "nothing is left of what was refused"


def test_a_network_alone_finds_the_rest_from_anywhere(
    trained: dict[str, Path], tmp_path: Path, align: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained["sd15"].resolve()
    monkeypatch.chdir(run)
    code, said = align(
        "export", "checkpoint", "--output", tmp_path / "bare", "--pipeline", "checkpoint", "--dtype", "fp32"
    )
    assert code == 0, said
    assert "written in fp32" in said
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "bare", run / "bare")
    (tmp_path / "elsewhere").mkdir()
    assert align("export", run / "checkpoint", "--output", "elsewhere/bare", "--pipeline", run / "checkpoint")[0] == 0
    monkeypatch.chdir(run)
    mine, theirs = (
        pipelines.load(str(path)).unet.state_dict() for path in (tmp_path / "elsewhere" / "bare", "checkpoint")
    )
    assert all((mine[name] - value).abs().max() < 1e-3 for name, value in theirs.items())
    # A folder's name may look like a revision.
    shutil.copytree(run / "checkpoint", tmp_path / "me@home")
    at = tmp_path / "me@home"
    assert align("export", run / "checkpoint", "--output", tmp_path / "at", "--pipeline", at)[0] == 0
    assert pipelines.read_recipe(str(tmp_path / "at")).pipeline == "../me@home"


# ---- the card --------------------------------------------------------------------------------------------------------


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text."""
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def run_code(text: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Carry out a card's only block of code, in `folder`."""
    (found,) = re.findall(r"^(`{3,})python\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    patch.chdir(folder)
    names: dict[str, Any] = {}
    exec(found[1], names)  # it is what users are told to do
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_tells_how_to_draw(
    trained: dict[str, Path], tmp_path: Path, align: Run, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained[family]
    run_code(card(run / "checkpoint")[1], run, monkeypatch)
    assert (run / "image.png").is_file()
    assert align("export", run, "--lora", "--output", tmp_path / "lora")[0] == 0
    metadata, text = card(tmp_path / "lora")
    assert metadata["base_model_relation"] == "adapter"
    assert run_code(text, tmp_path, monkeypatch)["images"].shape == (1, 3, 64, 64)


def test_a_card_says_how_a_model_was_made(trained: dict[str, Path], tmp_path: Path, align: Run) -> None:
    run = trained["sdxl"]
    metadata, text = card(run / "checkpoint")
    assert metadata["base_model"] == ["tests-of-export/sdxl-reference", "tests-of-export/sdxl-start"]
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "license" not in metadata
    found = json.loads((run / "comparison.json").read_text())
    row = found["rows"][0]
    for said in (
        "Diff-Instruct++ (`di++`)", "https://arxiv.org/abs/2410.18881", "`shapes-di`; changed: `method`, ",
        "2 of the generator, 8 images",
        "3 of the assistant, 12 images", f"`tests-of-export/sdxl-start/bare.bin@{'1' * 40}`",
        "`trained0/prompts.txt`, 3;", "`pickscore` x 100",
        "LoRA of rank 3, alpha 6", f"torch {torch.__version__.partition('+')[0]}", "On 4 held-out captions",
        "pickscore (reward)",
        f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]", environment.processor("cpu"),
        environment.commit() or environment.versions("onestep-align").split()[-1],
    ):  # fmt: skip
        assert said in text, said
    # A leaderboard's row of this very model, whatever it is called there.
    line = {"model": "x", "model_sha256": pipelines.digest(str(run / "checkpoint")), "suite": "parti|<b>", "n": "7"}
    line |= {
        "pickscore": "0.25",
        "pickscore se": "0.01",
        "pickscore n": "7",
        "fid": "9.5",
        "fid low": "9",
        "fid high": "10",
        "fid n": "7",
    }
    write_csv([line, line | {"model_sha256": "0", "pickscore": "0.99"}], tmp_path / "parti.csv")
    assert align("export", run, "--output", tmp_path / "out", "--scores", tmp_path / "parti.csv")[0] == 0
    metadata, text = card(tmp_path / "out")
    assert "On parti\\|\\<b\\>, 7 images" in text
    assert "| pickscore | 0.25 | se 0.01 | 7 |\n| fid | 9.5 | \\[9, 10\\] | 7 |" in text
    assert "0.99" not in text
    (index,) = metadata["model-index"]
    (shown,) = index["results"]
    assert index["name"] == "out" and shown["dataset"]["name"] == "parti|<b>"
    assert [(each["type"], each["value"]) for each in shown["metrics"]] == [("pickscore", 0.25), ("fid", 9.5)]


def test_a_card_and_all_beside_it_tell_nothing_of_this_machine(
    trained: dict[str, Path], align: Run, tmp_path: Path
) -> None:
    for family, run in trained.items():
        for options in ([], ["--lora"], ["--pipeline", "shapes/teacher"]):
            folder = tmp_path / family / (options[0] if options else "whole")
            assert align("export", run, *options, "--output", folder)[0] == 0
        for path in (path for folder in (run / "checkpoint", tmp_path / family) for path in folder.rglob("*")):
            content = path.read_bytes() if path.is_file() else b""
            home = [f"{Path.home()}/"] if Path.home().name else []  # "/" would be in every address
            for word in (str(run.parents[1]), str(tmp_path), *home):
                assert word.encode() not in content, (path, word)
            if path.name in ("README.md", "recipe.yaml"):
                assert not re.search(rf"\b{re.escape(platform.node())}\b", content.decode()), path


def test_what_a_user_wrote_does_nothing_in_a_card(trained: dict[str, Path]) -> None:
    text = card(trained["sd15"] / "checkpoint")[1]
    outside = re.sub(r"^(`{3,})python\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "script" in text
    assert "script" not in outside
    assert markdown.code("a ``b`` <i>") == "```a ``b`` <i>```"
    assert markdown.code("`") == "`` ` ``"
    assert markdown.plain("<img src=x> [a](b) *c* https://d") == r"\<img src=x\> \[a\](b) \*c\* https\://d"


def test_paths_are_told_by_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/alice"))
    for path, said in {
        "/home/alice/prompts.txt": "prompts.txt", "/srv/alice/prompts.txt": "prompts.txt", "/srv/a/b/c": "b/c",
        "../x/y": "x/y",
        "runs/sd15-di/checkpoint": "sd15-di/checkpoint", "shapes:train": "shapes:train", "shapes/base": "shapes/base",
        "a/b/c.bin@main": "a/b/c.bin@main",
    }.items():  # fmt: skip
        assert cards.public(path) == said


def test_a_path_that_could_be_a_hub_id_stays_a_path_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [cards.placed(each) for each in ("models/mine", "a/hub-id", str(tmp_path), None)] == [
        "./models/mine", "a/hub-id", str(tmp_path), None
    ]  # fmt: skip


def test_a_network_that_brings_its_scheduler_is_drawn_with_it(tmp_path: Path) -> None:
    """Not with that of the recipe which says where the rest is."""
    fields = {"pipeline": "sdxl-dmd2-1step-1024", "unet": "unet"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    assert pipelines.scheduler_of(str(tmp_path))[0].name == "LCMScheduler"  # type: ignore[index]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    assert pipelines.scheduler_of(str(tmp_path)) is None


def test_a_revision_that_was_fetched_is_pinned(published: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (published.folder("tests-of-export/moving", "main") / "a.json").write_text("{}")
    assert cards.pinned("tests-of-export/moving") == "tests-of-export/moving"
    fetched = hub.fetch("tests-of-export/moving", "a.json", "main")
    assert cards.pinned("tests-of-export/moving") == f"tests-of-export/moving@{fetched.parent.name}"
    assert cards.pinned("shapes/base") == "shapes/base"
    assert cards.pinned(None) is None


# ---- tokens in configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        ["--set", f"prompts={'hf_' + 'a1B2' * 8}"],
        ["--set", f"{'hf_' + 'a1B2' * 8}=1"],
        ["--set", f"{'hf_' + 'a1B2' * 8}"],
        ["--set", "reference=https://me:a1B2a1B2@huggingface.co/x/y"],
        ["--set", "trackers=[a1B2-the-token-in-use]"],
        ["--config", "c.yaml"],
    ],
)
def test_a_config_with_a_token_is_refused_untold(
    spoil: list[str], align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a1B2-the-token-in-use")
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(f"rewards: [{{scorer: pickscore, scale: 1, weights: {'hf_' + 'a1B2' * 8}}}]")
    for command in (
        ["train", "shapes-di"],
        ["train", "shapes-di", "--dry-run"],
        ["bench", "shapes-di"],
        ["pretrain", "shapes-vae"],
    ):
        if command[0] == "bench" and spoil[0] == "--config":
            continue
        result = align(*command, *spoil)
        refused(result, "holds a token or a password", "hf auth login")
        assert "a1B2" not in result[1]
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_leaderboards_command_has_no_token(tmp_path: Path) -> None:
    from evaluate.bench.timing import TimingSettings

    told = TimingSettings(
        model=f"https://me:a1B2@host/{'hf_' + 'a1B2' * 8}",
        random_weights=True,
        device="cpu",
        dtype="fp32",
        batch=1,
        repeats=1,
    )
    assert "a1B2" not in told.command
    assert "evaluate time --model" in told.command


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def account(published: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub, where TOKEN may write to `me`; with an empty cache."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(published, "tokens", {TOKEN: {"me"}})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    published.commits.clear()
    yield published
    shutil.rmtree(published.root / "me", ignore_errors=True)


# What the hub's client says to its own developers of how it calls httpx.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_what_is_pushed_comes_back_and_draws(
    trained: dict[str, Path], tmp_path: Path, align: Run, account: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    for name, options in {"whole": [], "low-rank": ["--lora", "--private"]}.items():
        code, said = align(
            "export", trained["sdxl"], *options, "--output", tmp_path / name, "--push-to-hub", f"me/{name}"
        )
        assert code == 0, said
        assert f"{account.url}/me/{name}" in said
        assert "NotTell" not in said
        fetched = Path(snapshot_download(f"me/{name}"))
        for kept in (path for path in (tmp_path / name).rglob("*") if path.is_file()):
            assert (fetched / kept.relative_to(tmp_path / name)).read_bytes() == kept.read_bytes()
    assert [name for name, _ in account.commits] == ["me/whole", "me/low-rank"]
    assert account.private == {"me/low-rank"}
    for name in ("whole", "low-rank"):  # as their cards say
        run_code(card(tmp_path / name)[1], tmp_path, monkeypatch)
    stock = DiffusionPipeline.from_pretrained("me/whole", torch_dtype=torch.float32)
    whole = draw(stock, tmp_path / "whole")
    assert pipelines.read_recipe("me/whole") == pipelines.read_recipe(str(tmp_path / "whole"))
    assert pipelines.read_recipe("me/whole").timesteps
    with pytest.raises(UserError, match="holds only part of a model"):
        pipelines.read_recipe("me/low-rank")
    low = Path(snapshot_download("me/low-rank"))
    assert (draw(pipelines.load(str(low)), low) - whole).abs().max() < 0.02
    code, said = align("export", trained["sdxl"], "--push-to-hub", "me/whole")  # once more, without a folder of its own
    assert code == 0, said
    assert len(account.commits) == 3
    for path in (path for folder in (trained["sdxl"], tmp_path, account.root / "me") for path in folder.rglob("*")):
        assert not path.is_file() or b"NotTell" not in path.read_bytes(), path


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_push_that_fails_says_why_and_tells_no_token(
    trained: dict[str, Path],
    tmp_path: Path,
    align: Run,
    account: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own patience

    def fails(*words: str, name: str = "me/model") -> None:
        result = align("export", trained["sd15"], "--lora", "--push-to-hub", name)
        refused(result, name, *words)
        assert "NotTell" not in result[1]

    for name in ("model", "me/mine/model", "datasets/me/model", "me/", "https://huggingface.co/me/model", "me/a b"):
        fails("not of the form OWNER/NAME", name=name)
    fails("may not write", "right to write", name="you/model")
    with monkeypatch.context() as patch:
        patch.setattr(account, "tokens", {})
        fails("does not know the token", "hf auth login")
    with monkeypatch.context() as patch:
        patch.setattr(account, "down", True)
        fails("500", "try again")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        fails("no token", "hf auth login")
    for endpoint in (
        "http://127.0.0.1:1",
        f"http://user:{TOKEN}@127.0.0.1:1",
        f"http://user:{TOKEN}@host:port",
        f"://{TOKEN}",
    ):
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
            fails("not pushed")
    assert not account.commits
    assert "NotTell" not in caplog.text
