"""Ways to draw."""

from pathlib import Path

import pytest
import tiny_families
import torch

from evaluate import families, keyed, pipelines, samplers, scorers
from evaluate.pipelines.recipe import Recipe
from prompts.io.errors import UserError
from prompts.shapes import sample_captions

PROMPTS = sample_captions(6, split="test", seed=3)


def recipe(**sampler: object) -> Recipe:
    return pipelines.read_recipe("shapes/base").model_copy(update={"sampler": sampler or None})


@pytest.fixture(scope="module")
def base() -> object:
    return pipelines.load("shapes/base")


def test_best_of_keeps_the_candidate_that_the_scorer_likes_best(base: object) -> None:
    scorer = scorers.load("shapes/clip")
    usual = samplers.draw(base, recipe(), PROMPTS, seed=5)
    drawn = [usual] + [
        samplers.draw(base, recipe(), PROMPTS, seed=5, keys=[f"{p}\0candidate {i}" for p in PROMPTS]) for i in (1, 2, 3)
    ]
    candidates = torch.stack(drawn)
    scores = torch.stack([scorer.score(images, PROMPTS) for images in candidates])
    assert len({*scores.argmax(0).tolist()}) > 1, "the choice is one"
    best = samplers.draw(base, recipe(name="best_of", n=4, scorer="shapes/clip"), PROMPTS, seed=5)
    assert best.equal(candidates[scores.argmax(0), torch.arange(len(PROMPTS))])
    two = samplers.draw(base, recipe(name="best_of", n=2, scorer="shapes/clip"), PROMPTS, seed=5)
    assert two.equal(candidates[scores[:2].argmax(0), torch.arange(len(PROMPTS))])


@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_candidate_whose_score_is_not_finite_is_not_kept(
    base: object, monkeypatch: pytest.MonkeyPatch, spoiled: int
) -> None:
    calls: list[int] = []

    def score(self: scorers.Scorer, images: torch.Tensor, texts: object) -> torch.Tensor:
        calls.append(len(calls))
        return torch.full((len(images),), float("nan") if calls[-1] == spoiled else 1.0)

    monkeypatch.setattr(scorers.Scorer, "score", score)
    best = samplers.draw(base, recipe(name="best_of", n=2, scorer="shapes/clip"), PROMPTS, seed=5)
    kept = [f"{p}\0candidate 1" for p in PROMPTS] if spoiled == 0 else None
    assert best.equal(samplers.draw(base, recipe(), PROMPTS, seed=5, keys=kept))
    assert len(calls) == 2


def test_an_image_does_not_depend_on_what_is_drawn_beside_it(base: object) -> None:
    chosen = recipe(name="best_of", n=3, scorer="shapes/clip")
    together = samplers.draw(base, chosen, PROMPTS, seed=5)
    alone = samplers.draw(base, chosen, PROMPTS[2:3], seed=5)
    torch.testing.assert_close(alone[0], together[2], atol=1e-4, rtol=0)
    assert (samplers.draw(base, chosen, PROMPTS[2:3], seed=6) - alone).abs().max() > 0.1


@pytest.mark.parametrize("together", [1, 3])
def test_sana_sprint_is_drawn_as_stock_diffusers_does(tmp_path: Path, together: int) -> None:
    pipeline = tiny_families.pipeline("sana_sprint", tmp_path)
    recipe = Recipe(steps=2, guidance_scale=4.5, height=64, width=64, arguments={"use_resolution_binning": False})
    texts = ["a cat", "two dogs", "a bird"]
    (expected,) = pipeline(
        prompt=texts[:1],
        latents=keyed.noise((4, 2, 2), seed=3, key="0")[None],
        generator=keyed.generator(3, "0\0steps"),
        output_type="pt",
        **recipe.call(),
    ).images
    keys = [str(i) for i in range(together)]
    drawn = samplers.draw(pipeline, recipe, texts[:together], seed=3, keys=keys)
    torch.testing.assert_close(drawn[0], expected, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="SanaSprintPipeline: can be evaluated but not trained yet"):
        families.load("sana_sprint").noise_levels(pipeline, 64, 64)


def test_the_renderer_draws_what_captions_mean_each_image_by_its_own_seed_and_key(base: object) -> None:
    truth = recipe(name="shapes_renderer")
    drawn = samplers.draw(base, truth, PROMPTS * 2, seed=5, keys=[str(i) for i in range(12)])
    assert scorers.load("shapes/oracle").score(drawn, PROMPTS * 2).eq(1).all()
    assert ((drawn[:6] - drawn[6:]).abs().amax((1, 2, 3)) > 0.1).all()
    assert samplers.draw(base, truth, PROMPTS[2:3], seed=5, keys=["8"]).equal(drawn[8:9])
    assert (samplers.draw(base, truth, PROMPTS[2:3], seed=6, keys=["8"]) - drawn[8]).abs().max() > 0.1
    with pytest.raises(UserError, match="captions of its world alone: 'a dog' is not a caption"):
        samplers.draw(base, truth, ["a dog"], seed=5)


def test_what_chooses_is_part_of_what_was_drawn() -> None:
    assert samplers.make(recipe()).weights_sha256 is None
    made = samplers.make(recipe(name="best_of", n=3, scorer="shapes/clip"))
    assert made.weights_sha256 == scorers.load("shapes/clip").weights_sha256 and made.weights_sha256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "best", "n": 3}, "sampler.name = best: unknown; choose from best_of, shapes_renderer, stock"),
        (
            {"name": "best_of", "n": 1, "scorer": "shapes/clip"},
            "sampler best_of: n = 1 cannot be used: .* greater than or equal to 2",
        ),
        ({"name": "best_of", "n": 2}, "sampler best_of: 'scorer' is missing"),
        ({"name": "best_of", "n": 2, "scorer": "shapes/clop"}, "no scorer 'shapes/clop'"),
        ({"name": "stock", "n": 2}, "sampler stock: unknown key 'n'"),
    ],
)
def test_a_slip_is_told(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        samplers.make(recipe(**options))
