"""The contract of every scorer there is; a new file is tested without being named here."""

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hub import Hub
from upstream import seeded

from align.rewards.decoder import Decoder
from align.rewards.differentiable import Reward, Rewards
from evaluate import pipelines, scorers
from evaluate.preprocess import Preprocess
from prompts.extensions import names
from prompts.io.errors import UserError
from prompts.shapes import render, sample_captions

CAPTIONS = sample_captions(6, split="test", seed=0)
IMAGES = torch.from_numpy(render(CAPTIONS, seed=0))
BYTES = (IMAGES * 255).round().byte()
NAMES = list(scorers.variants())
#: Those that ask a judge or a detector, and where they are tested.
OF_THEIR_OWN = {
    "dpg/qwen3-vl-8b": "test_dpg.py",
    "dpg/qwen3-vl-8b-strict": "test_dpg.py",
    "geneval": "test_geneval.py",
    "geneval2": "test_judges.py",
    "unifiedreward/2.0-qwen3vl-2b": "test_judges.py",
    "unifiedreward/2.0-qwen3vl-4b": "test_judges.py",
    "unifiedreward/2.0-qwen3vl-8b": "test_judges.py",
    "unifiedreward/2.0-qwen3vl-32b": "test_judges.py",
    "vqascore/qwen3-vl-8b": "test_judges.py",
}


def encodes(scorer: scorers.Scorer) -> None:
    """Those that have no texts apart from images see to themselves in tests of their own."""
    if type(scorer).encode is scorers.Scorer.encode:
        pytest.skip("reads a prompt with its image alone")


@pytest.fixture(params=NAMES)
def scorer(request: pytest.FixtureRequest, tiny_clip: None, clip_folder: Path, real_scorers: Hub) -> scorers.Scorer:
    given = (
        str(clip_folder) if request.param in ("shapes/clip", "shapes/preference", "shapes/preference-weak") else None
    )
    if request.param in OF_THEIR_OWN:
        pytest.skip(f"held by tests of its own: tests/evaluate/{OF_THEIR_OWN[request.param]}")
    try:
        return scorers.load(request.param, weights=given)
    except UserError as error:
        if request.param in scorers.verified():
            raise
        pytest.skip(f"not tested: {request.param} has no small weights in tests/tiny_scorers.py ({error})")


@pytest.mark.parametrize(("name", "file"), OF_THEIR_OWN.items())
def test_those_with_tests_of_their_own_have_them(name: str, file: str) -> None:
    assert name.partition("/")[0] in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_a_score_an_image(scorer: scorers.Scorer) -> None:
    score = scorer.score(IMAGES, CAPTIONS)
    assert score.shape == (len(CAPTIONS),)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


def test_a_score_depends_on_its_own_image(scorer: scorers.Scorer) -> None:
    if not scorer.differentiable:
        pytest.skip("read off the pixels: a yes or no, a count")
    assert scorer.score(BYTES, CAPTIONS).unique().numel() == len(CAPTIONS)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        scorer.score(BYTES[order], [CAPTIONS[i] for i in order]),
        scorer.score(BYTES, CAPTIONS)[order],
        atol=1e-4,
        rtol=1e-4,
    )


def test_bytes_and_floats_agree(scorer: scorers.Scorer) -> None:
    """Exactly where nothing is rounded on the way; else to what Pillow's rounding to 8 bits makes of a score."""
    scores = scorer.score(BYTES, CAPTIONS)
    gap = scorers.path_gap(scorer, BYTES, CAPTIONS)
    prepare = scorer.prepare
    if isinstance(prepare, Preprocess) and (prepare.library == "torch" or not prepare.resize):
        assert gap == 0
    else:
        assert 0 < gap < 0.02 * scores.std()


def test_a_list_of_images_scores_as_a_batch(scorer: scorers.Scorer) -> None:
    torch.testing.assert_close(
        scorer.score(list(IMAGES), CAPTIONS), scorer.score(IMAGES, CAPTIONS), atol=1e-4, rtol=1e-4
    )


def test_gradients_pass_exactly_where_promised(scorer: scorers.Scorer) -> None:
    images = IMAGES.clone().requires_grad_()
    score = scorer.score(images, CAPTIONS).sum()
    assert score.requires_grad == scorer.differentiable
    if scorer.differentiable:
        score.backward()
        assert images.grad is not None
        assert images.grad.flatten(1).norm(dim=1).gt(0).all()
    assert all(p.grad is None and not p.requires_grad for p in scorer.parameters())


def test_the_gradient_is_that_of_the_score(scorer: scorers.Scorer) -> None:
    """In float64, along a random direction, against a central difference."""
    if not scorer.differentiable:
        pytest.skip("passes no gradient, as it says")
    encodes(scorer)
    scorer = scorer.double()
    generator = torch.Generator().manual_seed(0)
    # Away from 0 and 1, where the resampling clamps and the derivative is one-sided.
    images = (0.3 + 0.4 * IMAGES[:2]).double().requires_grad_()
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return scorer(scorer.prepare(x), scorer.text(CAPTIONS[:2])).sum()

    (gradient,) = torch.autograd.grad(exact(images), images)
    step = 1e-5
    with torch.no_grad():
        difference = (exact(images + step * direction) - exact(images - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)


def test_a_prompt_too_few_is_refused(scorer: scorers.Scorer) -> None:
    with pytest.raises(ValueError, match="one prompt per image"):
        scorer.score(IMAGES, CAPTIONS[:-1])
    with pytest.raises(ValueError, match="one prompt per image"):
        scorers.score_all({"a": scorer}, IMAGES, CAPTIONS[:-1])


def test_each_prompt_is_encoded_once_and_apart_from_the_others(
    scorer: scorers.Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encodes(scorer)
    seen: list[str] = []
    encode = type(scorer).encode

    def counted(self: scorers.Scorer, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        assert len(prompts) == scorers.TEXT_BATCH
        seen.extend(dict.fromkeys(prompts))
        return encode(self, prompts)

    monkeypatch.setattr(type(scorer), "encode", counted)
    first = scorer.text(CAPTIONS[:4])
    again = scorer.text([CAPTIONS[2], CAPTIONS[5], CAPTIONS[2]])
    assert sorted(seen) == sorted([*CAPTIONS[:4], CAPTIONS[5]])
    scorer.float()  # forgets
    alone = scorer.text([CAPTIONS[2]])
    for key, row in alone.items():
        assert torch.equal(row[0], first[key][2])
        assert torch.equal(row[0], again[key][0])
        assert torch.equal(row[0], again[key][2])
        assert not row.requires_grad


def test_what_inference_mode_encoded_serves_a_gradient(scorer: scorers.Scorer) -> None:
    encodes(scorer)
    with torch.inference_mode():
        scorer.text(CAPTIONS)
    images = IMAGES.clone().requires_grad_()
    assert scorer.score(images, CAPTIONS).requires_grad == scorer.differentiable


def test_weights_are_hashed(scorer: scorers.Scorer) -> None:
    if next(scorer.parameters(), None) is None:
        assert scorer.weights_sha256 is None
    else:
        assert scorer.weights_sha256 is not None
        assert len(scorer.weights_sha256) == 64


def test_preparations_are_shared(real_scorers: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["imagereward", "aesthetic", "pickscore", "clipscore/vit-l-14-torchmetrics", "hpsv2.1/aa", "hpsv2.0/aa"]
    loaded = {name: scorers.load(name) for name in names}
    calls: list[Preprocess] = []
    prepare = Preprocess.__call__

    def counted(self: Preprocess, images: torch.Tensor) -> torch.Tensor:
        calls.append(self)
        return prepare(self, images)

    alone = {name: scorer.score(BYTES, CAPTIONS) for name, scorer in loaded.items()}
    monkeypatch.setattr(Preprocess, "__call__", counted)
    together = scorers.score_all(loaded, BYTES, CAPTIONS)
    assert len(calls) == 3
    assert all(torch.equal(together[name], alone[name]) for name in names)


def test_old_prompts_are_forgotten(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "TEXT_MEMORY", 4)
    scorer = scorers.load("shapes/clip", weights=str(clip_folder))
    rows = scorer.text(CAPTIONS)
    assert list(scorer._memory) == CAPTIONS[2:]
    assert torch.equal(scorer.text(CAPTIONS)["features"], rows["features"])


def test_a_scorer_in_training_remembers_nothing(clip_folder: Path) -> None:
    scorer = scorers.load("shapes/clip", weights=str(clip_folder)).requires_grad_(True)
    assert scorer.text(CAPTIONS)["features"].requires_grad
    assert not scorer._memory


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_a_choice(scorer: scorers.Scorer, dtype: torch.dtype) -> None:
    exact = scorer.score(BYTES, CAPTIONS)
    other = scorer.to(dtype).score(BYTES, CAPTIONS)
    tolerance = 1e-4 if dtype == torch.float64 else 0.2 * max(1.0, exact.abs().max().item())
    torch.testing.assert_close(other, exact, atol=tolerance, rtol=1e-4)


def test_a_protocol_is_a_name_of_its_own() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert {"hpsv2.0/aa", "hpsv2.0/noaa", "hpsv2.1/aa", "hpsv2.1/noaa", "imagereward", "aesthetic/v2"} <= set(NAMES)
    assert {"pickscore", "pickscore/scaled", "clipscore/vit-g-14-dmd2", "clipscore/vit-l-14-torchmetrics"} <= set(NAMES)


@pytest.mark.parametrize("module", names("evaluate.scorers"))
def test_a_family_declares_what_it_must(module: str) -> None:
    family = importlib.import_module(f"evaluate.scorers.{module}")
    assert family.VARIANTS
    assert getattr(family, "VERIFIED_BY", {}).keys() <= family.VARIANTS.keys()
    assert len(inspect.signature(family.load).parameters) == 2


def test_a_bare_family_is_its_default(real_scorers: Hub) -> None:
    assert scorers.load("hpsv2").protocol == "hpsv2.1/aa"
    assert scorers.load("aesthetic").protocol == "aesthetic/v2"


def test_the_command_lists_every_variant() -> None:
    from typer.testing import CliRunner

    from evaluate.cli import app

    shown = CliRunner().invoke(app, ["metrics"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert set(NAMES) <= set(shown.output.split())


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="shapes/oracle"):
        scorers.load("hps")


def test_images_of_another_size_are_refused(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="3 x 32 x 32"):
        scorers.load("shapes/clip", weights=str(clip_folder)).score(torch.rand(1, 3, 64, 64), CAPTIONS[:1])


def test_what_is_no_caption_is_refused() -> None:
    for prompt in ("a cat", "a cat, " * 40):
        with pytest.raises(ValueError, match="caption"):
            scorers.load("shapes/oracle").score(IMAGES[:1], [prompt])


def test_seeded_images_are_worth_comparing_on() -> None:
    """Sizes 224 to 1024, not square, grey, smaller than the network's input, and of odd surplus."""
    sizes = [array.shape for array in seeded.pictures().values()]
    assert any(len(size) == 2 for size in sizes)
    assert max(max(size) for size in sizes) == 1024
    assert sum(size[0] != size[1] for size in sizes) >= 4


@pytest.mark.parametrize("name", ["hpsv3", "mps", "aesthetic/v2.5"])
def test_large_scorers_are_rewards(name: str, tiny: Path, real_scorers: Hub) -> None:
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = Rewards([Reward(scorer=name, scale=2.0)], Decoder(pipelines.load(str(tiny)).vae), device="cpu")
    total, each = rewards.some_at_a_time(x0, ["a red cat", "a photo of {}"])
    total.sum().backward()
    assert x0.grad is not None
    assert x0.grad.flatten(1).norm(dim=1).gt(0).all()
    torch.testing.assert_close(total.detach(), 2 * each[name])
