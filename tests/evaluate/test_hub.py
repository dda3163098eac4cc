"""Weights through the real hub client from a loopback hub, from local paths, and what goes wrong on the way."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub import Hub
from tiny_scorers import DETECTOR_FILE, MMDETECTION
from upstream import seeded

from evaluate import scorers, weights
from evaluate.scorers import _judge, aesthetic, clipscore, hpsv2, hpsv3, imagereward, mps, pickscore, vqascore
from prompts.io import hub
from prompts.io.errors import UserError

IMAGE = torch.from_numpy(seeded.pictures()["small"]).permute(2, 0, 1)[None]
#: What suites tell scorers that need to know more than a prompt's text.
META = [
    {
        "vqa_list": [["How many cats are in the image?", "one"], ["Is the cat red?", "Yes"]],
        "tag": "single_object",
        "include": [{"class": "cat", "count": 1}],
    }
]
#: What each variant asks a hub for: repository, revision, file.
OPENAI = [(clipscore.OPENAI, clipscore.OPENAI_REVISION, name) for name in ("config.json", "model.safetensors")]
PICKSCORE = [
    *((pickscore.REPOSITORY, pickscore.REVISION, name) for name in ("config.json", "model.safetensors")),
    *((pickscore.WORDS, pickscore.WORDS_REVISION, name) for name in ("vocab.json", "merges.txt")),
]
HPSV3 = [
    (hpsv3.REPOSITORY, hpsv3.REVISION, hpsv3.FILE),
    *((hpsv3.BASE, hpsv3.BASE_REVISION, name) for name in ("config.json", "tokenizer.json")),
]
MPS = [
    (mps.REPOSITORY, mps.REVISION, mps.FILE),
    *((mps.BASE, mps.BASE_REVISION, name) for name in ("config.json", "vocab.json", "merges.txt")),
]
FILES = {
    **{name: [(hpsv2.REPOSITORY, hpsv2.REVISION, "HPS_v2.1_compressed.pt")] for name in ("hpsv2.1/aa", "hpsv2.1/noaa")},
    **{name: [(hpsv2.REPOSITORY, hpsv2.REVISION, "HPS_v2_compressed.pt")] for name in ("hpsv2.0/aa", "hpsv2.0/noaa")},
    "imagereward": [
        (imagereward.REPOSITORY, imagereward.REVISION, "ImageReward.pt"),
        (imagereward.WORDS, imagereward.WORDS_REVISION, "vocab.txt"),
    ],
    **dict.fromkeys(("pickscore", "pickscore/scaled"), PICKSCORE),
    "geneval2": [
        (_judge.REPOSITORY, _judge.REVISION, name)
        for name in (
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        )
    ],
    "aesthetic/v2": [(aesthetic.HEAD, aesthetic.HEAD_REVISION, aesthetic.HEAD_FILE), *OPENAI],
    **dict.fromkeys(("hpsv3", "hpsv3/mrope"), HPSV3),
    **dict.fromkeys(("mps", "mps/forward"), MPS),
    "aesthetic/v2.5": [
        ("discus0434", "models", "aesthetic_predictor_v2_5.pth"),  # in GitHub's place
        *((aesthetic.SIGLIP, aesthetic.SIGLIP_REVISION, name) for name in ("config.json", "model.safetensors")),
    ],
    "clipscore/vit-g-14-dmd2": [(clipscore.LAION, clipscore.LAION_REVISION, "open_clip_pytorch_model.bin")],
    "clipscore/vit-l-14-torchmetrics": [
        *OPENAI,
        *((clipscore.OPENAI, clipscore.OPENAI_REVISION, name) for name in ("vocab.json", "merges.txt")),
    ],
    "geneval": [
        (*MMDETECTION, DETECTOR_FILE),  # in MMDetection's place
        *OPENAI,
        *((clipscore.OPENAI, clipscore.OPENAI_REVISION, name) for name in ("vocab.json", "merges.txt")),
    ],
    "vqascore/clip-flant5-xl": [
        (*vqascore.REPOSITORIES["clip-flant5-xl"], "config.json"),
        (*vqascore.WORDS["clip-flant5-xl"], "tokenizer.json"),
        (*vqascore.REPOSITORIES["clip-flant5-xl"], "pytorch_model.bin"),
    ],
    "vqascore/clip-flant5-xxl": [
        (*vqascore.REPOSITORIES["clip-flant5-xxl"], "config.json"),
        (*vqascore.WORDS["clip-flant5-xxl"], "tokenizer.json"),
        (*vqascore.REPOSITORIES["clip-flant5-xxl"], "pytorch_model.bin.index.json"),
        *((*vqascore.REPOSITORIES["clip-flant5-xxl"], f"pytorch_model-0000{number}-of-00002.bin") for number in (1, 2)),
    ],
}


def test_every_verified_scorer_that_fetches_weights_is_named(real_scorers: Hub) -> None:
    claims = {name for name in scorers.verified() if not name.startswith("shapes/")}
    assert FILES.keys() == {name for name in claims if scorers.load(name).weights_sha256}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", list(FILES))
def test_exactly_the_pinned_files_are_fetched(name: str, real_scorers: Hub, empty_cache: Path) -> None:
    real_scorers.requests.clear()
    scorer = scorers.load(name)
    asked = list(dict.fromkeys(real_scorers.requests))
    assert asked == [f"/{repository}/resolve/{revision}/{file}" for repository, revision, file in FILES[name]]
    assert scorer.score(IMAGE, ["a cat"], META).isfinite().all()


@pytest.mark.parametrize("name", list(FILES))
def test_once_fetched_no_network_is_needed(name: str, real_scorers: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scorers.load(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    real_scorers.requests.clear()
    after = scorers.load(name)
    assert not real_scorers.requests
    assert torch.equal(before.score(IMAGE, ["a cat"], META), after.score(IMAGE, ["a cat"], META))


@pytest.mark.parametrize("name", list(FILES))
def test_a_local_folder_serves_as_well(name: str, real_scorers: Hub, tmp_path: Path) -> None:
    fetched = scorers.load(name)
    for repository, revision, file in FILES[name]:
        shutil.copy(real_scorers.folder(repository, revision) / file, tmp_path)
    real_scorers.requests.clear()
    local = scorers.load(name, weights=str(tmp_path))
    assert not real_scorers.requests
    assert local.weights_sha256 == fetched.weights_sha256
    assert torch.equal(local.score(IMAGE, ["a cat"], META), fetched.score(IMAGE, ["a cat"], META))


def test_a_local_file_serves_as_well(real_scorers: Hub) -> None:
    path = real_scorers.folder(hpsv2.REPOSITORY, hpsv2.REVISION) / "HPS_v2.1_compressed.pt"
    scorer = scorers.load("hpsv2.1/noaa", weights=str(path))
    assert scorer.weights_sha256 == weights.sha256(path)
    assert scorer.weights_sha256 != scorers.load("hpsv2.0/noaa").weights_sha256


def test_offline_and_never_fetched(real_scorers: Hub, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"xswu/HPSv2: HPS_v2\.1_compressed\.pt cannot be fetched.*path of a local copy"
    ) as caught:
        scorers.load("hpsv2.1/aa")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("repository", "revision", "file"),
    [
        ("nobody/nothing", "main", "a.pt"),
        (hpsv2.REPOSITORY, "0" * 40, "HPS_v2_compressed.pt"),
        (hpsv2.REPOSITORY, hpsv2.REVISION, "none.pt"),
        ("not a name", "main", "a.pt"),
    ],
)
def test_what_the_hub_does_not_have(real_scorers: Hub, repository: str, revision: str, file: str) -> None:
    with pytest.raises(UserError, match=f"{repository}: {file} cannot be fetched") as caught:
        hub.fetch(repository, file, revision)
    assert "\n" not in str(caught.value)


def test_a_line_that_breaks(real_scorers: Hub, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_scorers.requests.clear()
    monkeypatch.setattr(real_scorers, "broken", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own patience
    with pytest.raises(UserError, match=r"vocab\.txt cannot be fetched") as caught:
        hub.fetch(imagereward.WORDS, "vocab.txt", imagereward.WORDS_REVISION)
    assert "\n" not in str(caught.value)
    assert sum("resolve" in path for path in real_scorers.requests) > 1
    monkeypatch.setattr(real_scorers, "broken", False)
    assert hub.fetch(imagereward.WORDS, "vocab.txt", imagereward.WORDS_REVISION).read_text().startswith("[PAD]")


def test_a_local_path_that_is_not_there(real_scorers: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"HPS_v2\.1_compressed\.pt: no such file"):
        scorers.load("hpsv2.1/aa", weights=str(tmp_path))
    with pytest.raises(UserError, match=r"other\.pt: no such file"):
        scorers.load("hpsv2.1/aa", weights=str(tmp_path / "other.pt"))


@pytest.mark.parametrize("name", list(FILES))
def test_weights_of_another_model_are_refused(name: str, real_scorers: Hub, tmp_path: Path) -> None:
    """A key too few, a key too many: never drawn at random, never dropped."""
    for repository, revision, file in FILES[name]:
        shutil.copy(real_scorers.folder(repository, revision) / file, tmp_path)
    path = next(file for file in sorted(tmp_path.iterdir()) if file.suffix in (".pt", ".bin", ".pth", ".safetensors"))
    tensors = weights.read(path)

    def write(changed: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(changed, path) if path.suffix == ".safetensors" else torch.save(changed, path)

    # "text_": by Aesthetic alone.
    unused = ("blip.vision_proj", "blip.text_proj", "text_", "lm_head")
    victim = next(key for key in tensors if key.endswith("weight") and not key.startswith(unused))
    write({key: value for key, value in tensors.items() if key != victim})
    with pytest.raises(UserError, match=r"is missing .* another model"):
        scorers.load(name, weights=str(tmp_path))
    prefix = "vision_model." if name == "aesthetic/v2" and path.suffix == ".safetensors" else ""
    write(tensors | {f"{prefix}surprise": torch.ones(1)})
    with pytest.raises(UserError, match=r"is not known .* another model"):
        scorers.load(name, weights=str(tmp_path))


def test_a_head_with_another_hash_is_refused(real_scorers: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aesthetic, "HEAD_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"sha256 .* expected 0000"):
        scorers.load("aesthetic")


@pytest.mark.parametrize("content", ["{", "[]", '{"text_config": 3}', '{"vision_config": {"hidden_size": "wide"}}'])
def test_a_damaged_config_is_named(real_scorers: Hub, tmp_path: Path, content: str) -> None:
    for repository, revision, file in PICKSCORE:
        shutil.copy(real_scorers.folder(repository, revision) / file, tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        scorers.load("pickscore", weights=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": "b"}'])
def test_damaged_words_are_named(real_scorers: Hub, tmp_path: Path, content: str) -> None:
    for repository, revision, file in PICKSCORE:
        shutil.copy(real_scorers.folder(repository, revision) / file, tmp_path)
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(UserError, match=r"vocab\.json"):
        scorers.load("pickscore", weights=str(tmp_path))


def test_a_whole_repository_can_be_listed_and_fetched(published: Hub, empty_cache: Path) -> None:
    folder = huggingface_hub.snapshot_download(clipscore.OPENAI, revision=clipscore.OPENAI_REVISION)
    assert {path.name for path in Path(folder).iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
    }
