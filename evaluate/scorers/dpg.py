"""DPG-Bench's rules (Hu et al. 2024, arXiv:2403.05135) around a stand-in judge: how much of a prompt an image shows.

A prompt of the suite `dpg` is a tree of questions; one counts only if what it depends on is there ("is the cat black?"
depends on "is there a cat?"). An image's score is 100 x the share of questions answered with yes that count; a
benchmark's score is the mean over 1,065 prompts of four images.

The published judge is mPLUG (`damo/mplug_visual-question-answering_coco_large_en`), which answers in words of its own.
Here Qwen3-VL-8B-Instruct stands in for it, which must choose: yes where an answer is likelier to begin with yes than
with no. Another judge gives other scores: these are not DPG-Bench's, and are never called so.

Two sets of rules, which differ where the official script, `dpg_bench/compute_dpg_bench.py` in
github.com/TencentQQGYLab/ELLA at 3c228f1, does what it does not mean:

* `dpg/qwen3-vl-8b` keeps it. Dependencies are looked up in the order of the questions, so that one below a question
  that does not count still counts if it stands before it. The first question of the whole file is not asked, and an
  image of that prompt has an error if another question depends on it; the official mean leaves such images out, and so
  does a run's.
* `dpg/qwen3-vl-8b-strict` mends it: all questions are asked, and nothing below a question that does not count does.

What the script does beyond single images is not kept by either: its scores by category come from the last of a prompt's
four images, and from before the dependencies are looked up. `details` has each question's category, answer, and whether
it counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from evaluate.preprocess import Prepared
from evaluate.scorers import Assessment, Meta, Scorer
from evaluate.scorers._judge import NO, YES, Judge, JudgeScorer, Patches, load_judge
from evaluate.weights import Files
from prompts.io.errors import UserError

VARIANTS = {
    "dpg/qwen3-vl-8b": "DPG-Bench's official rules x 100 around Qwen3-VL-8B in mPLUG's place: not DPG-Bench's score",
    "dpg/qwen3-vl-8b-strict": "the same with all questions asked and dependencies followed to the root",
}

#: Questions that are shown as the reason of a score.
SHOWN = 5


class Question:
    """A question of a prompt. parents: numbers of those it depends on. asked: whether the official script reads it."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.number, self.text, self.category = int(row["id"]), str(row["question"]), str(row["category"])
        self.parents, self.asked = [int(parent) for parent in row["parents"]], bool(row.get("asked", True))


def official(questions: Sequence[Question], answers: Mapping[int, bool]) -> dict[int, bool]:
    """Which of the questions that the official script asks count, by number.

    Raises ValueError where the script fails: it comes to depend on a question that is not asked, or asks none.
    """
    counts = {question.number: answers[question.number] for question in questions if question.asked}
    if not counts:
        raise ValueError("the official script asks none of the prompt's questions")
    for question in questions:
        for parent in question.parents if question.asked else ():
            if parent not in counts:
                raise ValueError(f"question {question.number} depends on question {parent}, which is not asked")
            # A parent that stands later has not been looked up yet itself.
            if not counts[parent]:
                counts[question.number] = False
                break
    return counts


def strict(questions: Sequence[Question], answers: Mapping[int, bool]) -> dict[int, bool]:
    """Which of all questions count, by number: answered with yes, as is all that they depend on, to the root."""
    counts = dict(answers)
    for _ in questions:  # no chain is longer
        for q in questions:
            counts[q.number] &= all(counts.get(parent, True) for parent in q.parents)
    return counts


RULES = {"dpg/qwen3-vl-8b": official, "dpg/qwen3-vl-8b-strict": strict}


class DPG(JudgeScorer):
    """100 x the share of a prompt's questions that count; details: each one's category and answer, and if it counts."""

    differentiable: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("questions",)

    def __init__(self, protocol: str, judge: Judge, *, weights_sha256: str) -> None:
        super().__init__(protocol, judge, weights_sha256=weights_sha256)
        self.rule = RULES[protocol]
        self.tokens = [judge.first_tokens(spellings) for spellings in (YES, NO)]

    def check_meta(self, meta: Meta | None) -> None:
        """Raise UserError for questions that are not written as they should be."""
        super().check_meta(meta)
        for each in meta or ():
            self._questions(each["questions"])

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """Raises UserError for questions that the suite does not give as it should, ValueError as the rules do."""
        scores, details = [], []
        for image, each in zip(prepared, meta, strict=True):
            questions = self._questions(each["questions"])
            answers = self._answers(image, questions)
            counts = self.rule(questions, answers)
            scores.append(100 * sum(counts.values()) / len(counts))
            details.append(_details(questions, answers, counts))
        return Assessment({self.protocol: torch.tensor(scores)}, details)

    def _answers(self, image: Patches, questions: Sequence[Question]) -> dict[int, bool]:
        probabilities = self.judge.probabilities(image, [f"{q.text} Answer yes or no." for q in questions])
        yes, no = (probabilities[:, tokens].sum(1) for tokens in self.tokens)
        return {q.number: said for q, said in zip(questions, (yes > no).tolist(), strict=True)}

    def _questions(self, rows: Any) -> list[Question]:
        try:
            questions = [Question(row) for row in rows]
        except (TypeError, ValueError, LookupError, AttributeError):
            questions = []
        if not questions:
            raise UserError(
                f"{self.protocol}: questions must be a list of objects with id, question, parents and category, got"
                f" {str(rows)[:100]}; use the suite 'dpg' or write the prompts' meta so"
            )
        return questions


def _details(
    questions: Sequence[Question], answers: Mapping[int, bool], counts: Mapping[int, bool]
) -> Mapping[str, Any]:
    rows = [
        {"question": q.text, "category": q.category, "yes": answers[q.number], "counts": counts[q.number]}
        for q in questions
        if q.number in counts
    ]
    missed = [q.text for q in questions if not counts.get(q.number, True)]
    more = f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
    return {"questions": rows, "reason": f"not there: {'; '.join(missed[:SHOWN])}{more}" if missed else "all there"}


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local folder with Qwen3-VL-8B-Instruct's config.json, tokenizer.json and weights."""
    judge, digest = load_judge(files)
    return DPG(name, judge, weights_sha256=digest)
