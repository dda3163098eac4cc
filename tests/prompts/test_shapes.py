"""The world's captions, images and oracle."""

import hashlib
import random

import numpy as np
import pytest

from prompts.shapes import Object, Scene, captions, parse, render, sample_captions, verify
from prompts.shapes.grammar import FAMILIES, RELATIONS, edited
from prompts.shapes.oracle import FACTS, accuracy
from prompts.shapes.taste import TIE, facts, preference, rule, vividness

N = 200


@pytest.mark.parametrize("family", FAMILIES)
def test_no_caption_is_both_trained_on_and_held_out(family: str) -> None:
    splits = [set(captions(split, family)) for split in ("train", "validation", "test")]
    _, validation, test = splits
    everything = set.union(*splits)
    assert sum(map(len, splits)) == len(everything)
    assert len(validation | test) == pytest.approx(0.2 * len(everything), abs=1)
    assert len(validation) == pytest.approx(len(test), abs=1)


def test_the_captions_of_tables_are_fixed_for_good() -> None:
    test = "\n".join(caption for family in FAMILIES for caption in captions("test", family))
    assert (
        hashlib.sha256(test.encode()).hexdigest() == "82998739de0f9d01c7f97853adb6b644ae96b5ab7a6f3bec0554f51e462566b1"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_caption_differs_in_one_thing_and_is_trained_on(family: str) -> None:
    rng = random.Random(0)
    seen = set()
    for caption in sample_captions(N, split="train", seed=3, family=family):
        other = edited(caption, rng)
        if other == caption:
            continue
        assert other in captions("train", family)
        a, b = parse(caption), parse(other)
        things = [(x, y) for x, y in zip(a.objects, b.objects, strict=False) if x != y]
        if family == "count" and things:
            things = things[:1]
        parts = [
            name for x, y in things for name in ("size", "colour", "shape") if getattr(x, name) != getattr(y, name)
        ]
        parts += [name for name in ("background", "relation") if getattr(a, name) != getattr(b, name)]
        parts += ["count"] if len(a.objects) != len(b.objects) else []
        assert len(parts) == 1, (caption, other)
        seen |= set(parts)
    everything = {"one": {"size"}, "count": {"count"}, "pair": {"size", "relation"}}[family] | {
        "colour",
        "shape",
        "background",
    }
    assert seen == everything


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_is_parsed_into_the_scene_that_writes_it(family: str) -> None:
    for caption in captions("train", family)[:N]:
        assert parse(caption).caption == caption
        assert parse(caption).family == family


def test_what_is_not_a_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="write it like 'a small red circle on a white background'"):
        parse("a dog")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_reads_what_the_renderer_drew(family: str) -> None:
    drawn = sample_captions(N, split="test", seed=1, family=family)
    assert accuracy(render(drawn, seed=2), drawn)["correct"] >= 0.99


CHANGES = {
    "background": {"background": "black"},
    "count": {"objects": (Object(size="small", colour="red", shape="circle"),), "relation": None},
    "colour": {
        "objects": (
            Object(size="small", colour="green", shape="circle"),
            Object(size="large", colour="blue", shape="square"),
        )
    },
    "shape": {
        "objects": (
            Object(size="small", colour="red", shape="triangle"),
            Object(size="large", colour="blue", shape="square"),
        )
    },
    "size": {
        "objects": (
            Object(size="large", colour="red", shape="circle"),
            Object(size="large", colour="blue", shape="square"),
        )
    },
    "relation": {"relation": "right of"},
}


@pytest.mark.parametrize("fact", CHANGES)
def test_the_oracle_notices_a_wrong(fact: str) -> None:
    scene = {
        "objects": (Object(size="small", colour="red", shape="circle"),
        Object(size="large", colour="blue", shape="square")),
        "relation": "left of", "background": "white",
    }  # fmt: skip
    caption = Scene(**scene).caption
    for image in render([Scene(**scene | CHANGES[fact]).caption] * 20, seed=3):
        seen = verify(image, caption)
        assert not seen[fact]
        assert not seen["correct"]
        if fact in ("background", "relation", "size"):
            assert all(seen[other] for other in FACTS if other not in (fact, "correct"))


def test_every_relation_is_drawn_and_read() -> None:
    a, b = Object(size="small", colour="red", shape="circle"), Object(size="small", colour="blue", shape="square")
    for drawn in RELATIONS:
        image = render([Scene(objects=(a, b), relation=drawn, background="grey").caption], seed=4)[0]
        for read in RELATIONS:
            assert verify(image, Scene(objects=(a, b), relation=read, background="grey").caption)["relation"] == (
                read == drawn
            )


def test_noise_and_blanks_are_not_correct() -> None:
    caption = "a small red circle on a white background"
    blank, noise = np.ones((3, 32, 32), np.float32), np.random.default_rng(0).random((3, 32, 32), np.float32)
    assert not verify(blank, caption)["correct"]
    assert not verify(noise, caption)["correct"]


def test_images_depend_on_the_seed_and_nothing_else() -> None:
    drawn = sample_captions(20, split="train", seed=5)
    assert (render(drawn, seed=6) == render(drawn, seed=6)).all()
    assert (render(drawn, seed=6) != render(drawn, seed=7)).any()
    same = render([drawn[0]] * 8, seed=8)
    assert len({image.tobytes() for image in same}) == 8, "a caption has a distribution of images"


def test_the_rule_prefers_facts_to_vividness() -> None:
    caption, wrong = "a small red circle on a white background", "a small green circle on a white background"
    right, other = render([caption, wrong], seed=9)
    pale = 0.5 + 0.7 * (right - 0.5)
    assert vividness(pale) < vividness(right)
    assert preference(pale, right, caption) == 1 == -preference(right, pale, caption)
    assert preference(other, pale, caption) == 1 == -preference(pale, other, caption)
    assert facts(right, caption) == facts(pale, caption) == 6 > facts(other, caption)
    assert rule(right, caption) == 6 + vividness(right) / 2 > rule(pale, caption) > rule(other, caption)


def test_a_hair_of_vividness_is_no_preference() -> None:
    caption = "a small red circle on a white background"
    (image,) = render([caption], seed=9)
    paler = {share: 0.5 + share * (image - 0.5) for share in (0.995, 0.95)}
    assert 0 < vividness(image) - vividness(paler[0.995]) < TIE < vividness(image) - vividness(paler[0.95])
    assert preference(paler[0.995], image, caption) == preference(image, paler[0.995], caption) == 0
    assert preference(paler[0.95], image, caption) == 1
