"""Aesthetic v2.5 against the package aesthetic-predictor-v2-5 (`tests/upstream/make_aesthetic.py`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import compares
from hub import Hub
from PIL import Image
from safetensors.torch import save_file
from tiny_scorers import upstream, write_aesthetic
from torchvision import transforms
from upstream import seeded

from evaluate import layouts, scorers, weights
from evaluate.images import read_image
from evaluate.scorers import aesthetic
from prompts.io.errors import UserError

UPSTREAM = Path(seeded.__file__).parent
REFERENCE = json.loads((UPSTREAM / "aesthetic.json").read_text(encoding="utf-8"))
#: Largest difference: 1e-5 of the range of the originals' scores, which is over 0.5.
WITHIN = 5e-6


def test_both_sides_saw_the_same() -> None:
    assert REFERENCE["make_sha256"] == weights.sha256(UPSTREAM / "make_aesthetic.py")
    for prefix, result in REFERENCE["prefixes"].items():
        arrays = seeded.weights(f"{prefix}aesthetic-v2.5", result["layout"])
        assert seeded.sha256(arrays) == result["weights_sha256"]
    package = f"aesthetic-predictor-v2-5 {REFERENCE['versions']['aesthetic-predictor-v2-5']}"
    assert aesthetic.VERIFIED_BY["aesthetic/v2.5"] == package


@pytest.mark.parametrize("prefix", seeded.PREFIXES)
@compares("aesthetic/v2.5")
def test_scores_are_the_originals(name: str, prefix: str, tmp_path: Path) -> None:
    write_aesthetic(tmp_path, tmp_path, prefix)
    scorer = scorers.load(name, weights=str(tmp_path))
    images = []
    for image, array in seeded.pictures(prefix).items():
        Image.fromarray(array).save(tmp_path / f"{image}.png")
        images.append(read_image(tmp_path / f"{image}.png"))
    theirs = torch.tensor([*upstream("aesthetic", prefix)["scores"].values()])
    assert theirs.max() - theirs.min() > WITHIN / 1e-5
    torch.testing.assert_close(scorer.score(images, [""] * len(images)), theirs, atol=WITHIN, rtol=0)


def test_images_are_squashed() -> None:
    array = seeded.pictures()["tall"]
    stock = transforms.Compose(
        [
            transforms.Resize((384, 384), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    found = aesthetic.SIGLIP_384(torch.from_numpy(array).permute(2, 0, 1)[None])[0]
    assert torch.equal(found, stock(Image.fromarray(array)))


def test_at_full_size_it_has_the_published_number_of_parameters() -> None:
    with layouts.first(), torch.device("meta"):
        ours: Any = scorers.load("aesthetic/v2.5", device="meta", random_weights=True)
    # SigLIP SO400M's image tower at 384 pixels, as many have counted it.
    assert sum(parameter.numel() for parameter in ours.tower.parameters()) == 428_225_600
    # Those of the author's file, whose hash is pinned.
    assert [list(tensor.shape) for name, tensor in ours.head.state_dict().items() if name.endswith("weight")] == [
        [1024, 1152], [128, 1024], [64, 128], [16, 64], [1, 16],
    ]  # fmt: skip


def test_another_head_than_the_authors_is_refused(
    real_scorers: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(aesthetic, "SIGLIP_HEAD_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"aesthetic_predictor_v2_5\.pth: sent another file") as caught:
        scorers.load("aesthetic/v2.5")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(aesthetic, "SIGLIP_HEAD_URL", aesthetic.SIGLIP_HEAD_URL.replace("models", "nowhere"))
    with pytest.raises(UserError, match=r"cannot be fetched .*; run it again, or give a local copy of"):
        scorers.load("aesthetic/v2.5")


def test_the_head_is_fetched_once(real_scorers: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    for times in (1, 0):
        real_scorers.requests.clear()
        scorers.load("aesthetic/v2.5")
        assert sum(path.endswith("aesthetic_predictor_v2_5.pth") for path in real_scorers.requests) == times


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_aesthetic(tmp_path, tmp_path)
    save_file({"vision_model.head.probe": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is missing"):
        scorers.load("aesthetic/v2.5", weights=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not the config of a SigLIP"):
        scorers.load("aesthetic/v2.5", weights=str(tmp_path))
