"""DPG-Bench: its rules as its official script has them and as it means them, its table, and a judge that stands in."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub import Hub
from upstream import dpg as trees
from upstream import seeded

from evaluate import scorers
from evaluate.scorers import dpg
from evaluate.scorers._judge import Judge, Patches
from prompts.io.errors import UserError
from prompts.suites import Suite, _suite
from prompts.suites._read import dpg_rows

#: What the official script's own functions make of the trees.
OFFICIAL = json.loads((Path(trees.__file__).parent / "dpg.json").read_text(encoding="utf-8"))
ITEMS = list(OFFICIAL["scores"])


@cache
def table(folder: Path) -> Suite:
    path = folder / "table.csv"
    path.write_text(trees.table(), encoding="utf-8")
    return _suite("dpg", dpg_rows(path), "", "")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return table(tmp_path_factory.mktemp("dpg"))


def questions(suite: Suite, item: int) -> list[dpg.Question]:
    return [dpg.Question(row) for row in suite.prompts[item].meta["questions"]]


def answers(asked: list[dpg.Question], crop: int) -> dict[int, bool]:
    return {question.number: trees.answer(crop, question.text) == "yes" for question in asked}


def test_both_sides_have_the_same_trees(suite: Suite) -> None:
    assert OFFICIAL["table_sha256"] == hashlib.sha256(trees.table().encode()).hexdigest()
    assert [prompt.text for prompt in suite.prompts] == [f"scene {i}, with things" for i in range(trees.ITEMS)]


@pytest.mark.parametrize("item", range(trees.ITEMS), ids=ITEMS)
def test_scores_are_the_official_scripts(suite: Suite, item: int) -> None:
    """Exactly; and an image that it fails on, and leaves out, has an error."""
    asked, expected = questions(suite, item), OFFICIAL["scores"][f"item{item}"]
    for crop in range(trees.CROPS):
        if expected is None:
            with pytest.raises(ValueError, match="depends on question 1, which is not asked"):
                dpg.official(asked, answers(asked, crop))
        else:
            counts = dpg.official(asked, answers(asked, crop))
            assert sum(counts.values()) / len(counts) == expected[crop]


def on_the_way_to_the_root(number: int, parents: Mapping[int, list[int]], seen: frozenset[int]) -> set[int]:
    above = {number}
    for parent in parents.get(number, []):
        if parent not in seen:
            above |= on_the_way_to_the_root(parent, parents, seen | {parent})
    return above


def test_strict_rules_follow_dependencies_to_the_root(suite: Suite) -> None:
    differ = 0
    for item in range(trees.ITEMS):
        asked = questions(suite, item)
        parents = {question.number: question.parents for question in asked}
        for crop in range(trees.CROPS):
            said = answers(asked, crop)
            counts = dpg.strict(asked, said)
            above = {n: on_the_way_to_the_root(n, parents, frozenset([n])) for n in parents}
            assert counts == {n: all(said[each] for each in above[n]) for n in parents}
            differ += item > 0 and counts != dpg.official(asked, said)
    assert differ > 10, "what stands later is looked up too"


def test_a_first_question_alone_leaves_nothing_to_ask() -> None:
    alone = [dpg.Question({"id": 1, "question": "Is it?", "parents": [], "category": "", "asked": False})]
    with pytest.raises(ValueError, match="asks none of the prompt's questions"):
        dpg.official(alone, {1: True})
    assert dpg.strict(alone, {1: True}) == {1: True}


# ---- the table -------------------------------------------------------------------------------------------------------

HEAD = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"


def read(tmp_path: Path, rows: str) -> list[Any]:
    (tmp_path / "t.csv").write_text(HEAD + rows, encoding="utf-8")
    return dpg_rows(tmp_path / "t.csv")


def test_rows_of_an_item_become_a_prompt_with_questions(tmp_path: Path) -> None:
    rows = 'b,"two, cats",1,0,entity - whole (cats),Cats?\nb,"two, cats",2,"0, 1","other - count (cats, ==2)",Two?\n'
    first, second = read(tmp_path, rows + "a,a dog,1,0,entity - whole (dog),Dog?\n")
    assert (first.text, first.group) == ("two, cats", {})
    assert first.meta["questions"] == [
        {"id": 1, "question": "Cats?", "parents": [], "category": "entity - whole", "asked": False},
        {"id": 2, "question": "Two?", "parents": [1], "category": "other - count"},
    ]
    assert second.meta["questions"] == [{"id": 1, "question": "Dog?", "parents": [], "category": "entity - whole"}]


def test_an_item_that_comes_again_begins_anew(tmp_path: Path) -> None:
    one, other = "b,cats,{},0,entity (c),Cats {}?\n", "a,a dog,1,0,entity (d),Dog?\n"
    first, second = read(tmp_path, one.format(1, 1) + one.format(2, 2) + other + one.format(3, 3))
    assert [question["question"] for question in first.meta["questions"]] == ["Cats 3?"]
    assert second.text == "a dog"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", r"t\.csv: holds no prompt; fetch the table again"),
        ("b,cats,one,0,entity (c),Cats?\n", r"line 2: proposition_id 'one' and dependency '0' are not whole numbers"),
        ("b,cats,1,,entity (c),Cats?\n", r"line 2: proposition_id '1' and dependency '' are not whole numbers"),
        ("b,cats,1,0,entity (c)\n", "line 2: 5 fields"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_sentence(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, rows)
    assert "\n" not in str(caught.value)


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,text\na,cats\n", encoding="utf-8")
    with pytest.raises(UserError, match="'proposition_id' is missing"):
        dpg_rows(tmp_path / "t.csv")


# ---- the scorers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    return [torch.from_numpy(trees.grid(32)[:32, :32].transpose(2, 0, 1) + np.uint8(i)) for i in range(trees.CROPS)]


def test_answers_become_scores_and_details(
    suite: Suite, images: list[torch.Tensor], real_scorers: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official scores x 100 again, from a judge that is sure of itself."""

    def probabilities(self: Judge, image: Patches, texts: list[str]) -> torch.Tensor:
        crop = round((image.pixels[0, 0].item() + 1) / 2 * 255)
        rows = torch.zeros(len(texts), self.tokenizer.get_vocab_size())
        for row, text in zip(rows, texts, strict=True):
            yes = trees.answer(crop, text.removesuffix(" Answer yes or no.")) == "yes"
            row[self.first_tokens([" Yes" if yes else "no"])] = 1
        return rows

    monkeypatch.setattr(Judge, "probabilities", probabilities)
    scorer = scorers.load("dpg/qwen3-vl-8b")
    assert scorer.protocol != "dpg" and not scorer.differentiable
    for item in (1, 2, 9, 29):
        meta = [suite.prompts[item].meta] * trees.CROPS
        said = scorer.assess(scorer.prepare(images), [""] * trees.CROPS, meta)
        expected = [100 * score for score in OFFICIAL["scores"][f"item{item}"]]
        assert said.columns["dpg/qwen3-vl-8b"].tolist() == pytest.approx(expected, rel=1e-6)
        for details in said.details or ():
            rows = details["questions"]
            shown = [row["question"] for row in rows if not row["counts"]]
            assert details["reason"].startswith(f"not there: {shown[0]}" if shown else "all there")
            assert {row["category"] for row in rows} <= {kind.split("(")[0].strip() for kind in trees.KINDS}
        json.dumps(said.details)
    with pytest.raises(ValueError, match="which is not asked"):
        scorer.assess(scorer.prepare(images[:1]), [""], [suite.prompts[0].meta])
    strict = scorers.load("dpg/qwen3-vl-8b-strict")
    assert strict.score(images[:1], [""], [suite.prompts[0].meta]).isfinite().all()


def test_the_judge_chooses_what_is_likelier(suite: Suite, real_scorers: Hub) -> None:
    scorer = scorers.load("dpg/qwen3-vl-8b-strict")
    pixels = torch.from_numpy(seeded.pictures()["small"].transpose(2, 0, 1).copy())
    (patches,) = scorer.prepare([pixels])
    asked = questions(suite, 5)
    said = scorer._answers(patches, asked)
    for question in asked:
        row = scorer.judge.probabilities(patches, [f"{question.text} Answer yes or no."])[0]
        yes, no = (
            sum(row[token] for token in scorer.judge.first_tokens(spellings))
            for spellings in (("Yes", "yes", " yes", " Yes"), ("No", "no", " no", " No"))
        )
        assert said[question.number] == bool(yes > no)


@pytest.mark.parametrize(
    "bad", [[], "Is it?", [{"id": 1}], [{"id": "one", "question": "", "parents": [], "category": ""}]]
)
def test_questions_that_are_none_are_refused_in_a_sentence(real_scorers: Hub, bad: Any) -> None:
    with pytest.raises(UserError, match="questions must be a list of objects with id, question, parents and") as caught:
        scorers.load("dpg/qwen3-vl-8b").check_meta([{"questions": bad}])
    assert "\n" not in str(caught.value)


def test_a_suite_without_questions_is_refused(real_scorers: Hub) -> None:
    with pytest.raises(UserError, match="needs to know 'questions' of every prompt, which prompt 1 does not say"):
        scorers.load("dpg/qwen3-vl-8b").score([torch.zeros(3, 64, 64, dtype=torch.uint8)], [""], [{}])
