"""The contract of every scorer there is; a new file is tested without being named here."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

from evaluate import scorers
from evaluate.scorers.shapes import DualEncoder
from prompts.errors import UserError
from prompts.shapes import render, sample_captions

CAPTIONS = sample_captions(6, split="test", seed=0)
PICTURES = torch.from_numpy(render(CAPTIONS, seed=0))
NAMES = list(scorers.variants())


@pytest.fixture(params=NAMES)
def scorer(request: pytest.FixtureRequest, tiny_clip: None, clip_folder: Path) -> scorers.Scorer:
    needs_weights = request.param != "shapes/oracle"
    return scorers.load(request.param, weights=str(clip_folder) if needs_weights else None)


def test_a_score_a_picture(scorer: scorers.Scorer) -> None:
    score = scorer.score(PICTURES, CAPTIONS)
    assert score.shape == (len(CAPTIONS),)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


def test_bytes_and_floats_agree(scorer: scorers.Scorer) -> None:
    quantised = (PICTURES * 255).round().byte()
    torch.testing.assert_close(scorer.score(quantised, CAPTIONS), scorer.score(quantised.float() / 255, CAPTIONS))


def test_a_list_of_pictures_scores_as_a_batch(scorer: scorers.Scorer) -> None:
    torch.testing.assert_close(scorer.score(list(PICTURES), CAPTIONS), scorer.score(PICTURES, CAPTIONS), atol=1e-4, rtol=1e-4)


def test_gradients_pass_exactly_where_promised(scorer: scorers.Scorer) -> None:
    pictures = PICTURES.clone().requires_grad_()
    score = scorer.score(pictures, CAPTIONS).sum()
    assert score.requires_grad == scorer.differentiable
    if scorer.differentiable:
        score.backward()
        assert pictures.grad is not None
        assert pictures.grad.flatten(1).norm(dim=1).gt(0).all()
    assert all(p.grad is None and not p.requires_grad for p in scorer.parameters())


def test_a_prompt_too_few_is_refused(scorer: scorers.Scorer) -> None:
    with pytest.raises(ValueError, match="one prompt a picture"):
        scorer.score(PICTURES, CAPTIONS[:-1])


def test_a_protocol_is_a_name_of_its_own() -> None:
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("module", list(scorers._families()))
def test_a_family_declares_what_it_must(module: str) -> None:
    family = importlib.import_module(f"evaluate.scorers.{module}")
    assert family.VARIANTS
    assert len(inspect.signature(family.load).parameters) == 2


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="shapes/oracle"):
        scorers.load("hps")


def test_the_cosine_is_the_cosine(clip_folder: Path) -> None:
    scorer = scorers.load("shapes/clip", weights=str(clip_folder))
    assert isinstance(scorer, DualEncoder)
    tokens = scorer.tokenizer(CAPTIONS, padding="max_length", max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        out = scorer.clip(input_ids=tokens, pixel_values=PICTURES * 2 - 1)
    expected = 100 * (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(scorer.score(PICTURES, CAPTIONS), expected, atol=1e-4, rtol=1e-4)


def test_pictures_of_another_size_are_refused(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="3 x 32 x 32"):
        scorers.load("shapes/clip", weights=str(clip_folder)).score(torch.rand(1, 3, 64, 64), CAPTIONS[:1])
