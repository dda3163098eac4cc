"""The weights that ship: small, whole, and as good as their card says."""

import json

import numpy as np
import pytest
import torch
import yaml

from align.training.compare import compare, images_of, score
from align.world.build import MEASURED, PAIRS_SEED, RENDERER_RECIPE, make_pairs
from evaluate import embedded, scorers
from prompts.shapes import sample_captions
from prompts.shapes.grammar import FAMILIES
from prompts.shapes.oracle import accuracy

HOME = embedded.HERE / "shapes"
N = 48


@pytest.fixture(scope="module")
def card() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    return json.loads((HOME / "card.json").read_text())


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file()) <= 16 * 2**20
    assert {
        "shapes/teacher",
        "shapes/base",
        "shapes/aligned",
        "shapes/clip",
        "shapes/preference",
        "shapes/preference-weak",
    } <= set(embedded.names())


@pytest.mark.parametrize("model", [pytest.param("teacher", marks=pytest.mark.slow), "base", "aligned"])
def test_a_model_is_as_good_as_its_card_says(
    card: dict[str, dict[str, dict[str, dict[str, float]]]], model: str
) -> None:
    for family in FAMILIES:
        captions = sample_captions(N, split="test", seed=21, family=family)
        seen = accuracy(images_of(f"shapes/{model}", captions, title=model).numpy(), captions)
        for fact in ("correct", "colour"):
            said = card["quality"][model][family][fact]
            # Four standard errors of the difference of two shares.
            error = np.sqrt(max(said * (1 - said), 0.02) * (1 / N + 1 / MEASURED))
            assert abs(seen[fact] - said) < 4 * error, (model, family, fact, seen[fact], said)


def test_the_renderer_is_there_in_a_models_place() -> None:
    assert yaml.safe_load((HOME / "renderer" / "recipe.yaml").read_text()) == RENDERER_RECIPE
    captions = sample_captions(N, split="test", seed=21)
    assert accuracy(images_of("shapes/renderer", captions, title="renderer").numpy(), captions)["correct"] == 1


def test_the_teacher_is_good_enough_to_be_a_reference(card: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    teacher, renderer = card["quality"]["teacher"], card["quality"]["renderer"]
    assert teacher["one"]["correct"] >= 0.8 * renderer["one"]["correct"]
    assert teacher["pair"]["correct"] >= 0.6 * renderer["pair"]["correct"]
    assert all(teacher[family]["colour"] >= 0.95 for family in ("one", "pair"))


@pytest.mark.slow
def test_the_aligned_generator_has_more_reward_than_the_base() -> None:
    captions = sample_captions(1024, split="test", seed=22)
    before, after = (images_of(f"shapes/{model}", captions, title=model) for model in ("base", "aligned"))
    (row,) = compare(score(before, after, captions, {"shapes/preference": None}))
    assert row["low"] > 0


def test_the_measuring_clip_shares_nothing_with_the_reward() -> None:
    a, b = (scorers.load(name).state_dict() for name in ("shapes/clip", "shapes/preference"))
    shared = [key for key in a.keys() & b.keys() if a[key].is_floating_point()]
    assert len(shared) > 10
    # They are of different widths: what both have is compared.
    corners = {
        key: tuple(slice(min(sizes)) for sizes in zip(a[key].shape, b[key].shape, strict=True)) for key in shared
    }
    pairs = [(a[key][corner].flatten(), b[key][corner].flatten()) for key, corner in corners.items()]
    varied = [pair for pair in pairs if len(pair[0]) > 500 and min(part.std() for part in pair) > 1e-3]
    assert len(varied) > 10
    assert all(torch.corrcoef(torch.stack(pair))[0, 1].abs() < 0.9 for pair in varied)


def test_pairs_are_labelled_by_the_rule(tmp_path_factory: pytest.TempPathFactory) -> None:
    from align.world.reward_model import read_pairs
    from prompts.shapes.taste import preference

    n = 24
    pairs = read_pairs(make_pairs(tmp_path_factory.mktemp("pairs"), "shapes/base", n=n, seed=1, source="base"))
    prompts = sample_captions(n, split="train", seed=1)
    drawn = images_of(
        "shapes/base", [prompt for prompt in prompts for _ in range(2)], title="pairs", seed=PAIRS_SEED + 1
    )
    ordered = []
    for prompt, a, b in zip(prompts, drawn[::2], drawn[1::2], strict=True):
        said = preference(a.numpy(), b.numpy(), prompt)
        ordered += [(prompt, *((b, a) if said > 0 else (a, b)))] if said else []
    assert 0 < len(ordered) < n, "ties are left out"
    assert [prompt for prompt, *_ in ordered] == pairs.prompts and set(pairs.sources) == {"base"}
    for better, worse, (_, *expected) in zip(pairs.preferred, pairs.rejected, ordered, strict=True):
        for saved, image in zip((better, worse), expected, strict=True):
            assert (saved.float() - image * 255).abs().max() < 0.51
