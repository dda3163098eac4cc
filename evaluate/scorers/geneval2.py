"""GenEval 2 (Kamath et al. 2025, arXiv:2512.16853), Soft-TIFA: how surely a judge gives a prompt's atoms their answers.

An atom is a question and the answer that it should have (`vqa_list` of the suite `geneval2`: objects, attributes,
counts, positions, verbs). The judge, Qwen3-VL-8B-Instruct, is asked for one word; an atom's credit is the sum of the
probabilities that this begins with one of several ways to write the answer. `geneval2/am` is 100 x the arithmetic mean
of an image's credits, `geneval2/gm` 100 x their geometric mean, where one atom that fails weighs most; a benchmark's
score is the mean over its 800 prompts, one image each. In [0, 100], but for what follows.

Kept from the original, github.com/facebookresearch/GenEval2 at a6e82d2: only the first token of each way to write the
answer counts, and it counts again where two begin alike. ` 3` begins with the bare blank, so the probability of a blank
is credited to every count; a count beyond ten has `other` for its digit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from evaluate.preprocess import Prepared
from evaluate.scorers import Assessment, Meta, Scorer
from evaluate.scorers._judge import YES, Judge, JudgeScorer, Patches, load_judge
from evaluate.weights import Files
from prompts.io.errors import UserError

VARIANTS = {
    "geneval2": "Soft-TIFA x 100 by Qwen3-VL-8B: arithmetic (geneval2/am) and geometric mean of a prompt's atoms"
}
VERIFIED_BY = {"geneval2": "GenEval2 a6e82d2"}

DIGITS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10",
}  # fmt: skip
#: Atoms that are shown as the reason of a score.
WEAKEST = 3


def spellings(question: str, answer: str) -> tuple[str, ...]:
    """The ways to write an atom's answer whose first tokens are credited."""
    if not question.startswith("How many"):
        return YES
    digit = DIGITS.get(answer, "other")
    return answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}", digit, f" {digit}"


class GenEval2(JudgeScorer):
    """Means of the credits of a prompt's atoms; details: each atom's question, both answers, and credit."""

    needs: ClassVar[tuple[str, ...]] = ("vqa_list",)

    def __init__(self, protocol: str, judge: Judge, *, weights_sha256: str) -> None:
        super().__init__(protocol, judge, weights_sha256=weights_sha256)
        self.columns = (f"{protocol}/am", f"{protocol}/gm")

    def check_meta(self, meta: Meta | None) -> None:
        """Raise UserError for a `vqa_list` that is no list of questions and answers."""
        super().check_meta(meta)
        for each in meta or ():
            self._atoms(each["vqa_list"])

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """Both means. Raises UserError for a `vqa_list` that is no list of questions and answers."""
        credits, details = [], []
        for image, each in zip(prepared, meta, strict=True):
            atoms = self._atoms(each["vqa_list"])
            credit, answers = self._credit(image, atoms)
            credits.append(credit)
            details.append(_details(atoms, answers, credit.tolist(), each.get("skills")))
        columns = [
            torch.stack([each.mean() for each in credits]),
            torch.stack([each.log().mean().exp() for each in credits]),
        ]
        return Assessment({name: 100 * column for name, column in zip(self.columns, columns, strict=True)}, details)

    def _credit(self, image: Patches, atoms: Sequence[tuple[str, str]]) -> tuple[Tensor, list[str]]:
        """Credits `[atoms]`, and the judge's likeliest first token for each."""
        texts = [f"{question} Answer in one word." for question, _ in atoms]
        probabilities = self.judge.probabilities(image, texts)
        counted = [self.judge.first_tokens(spellings(*atom)) for atom in atoms]
        credit = [row[tokens].sum() for row, tokens in zip(probabilities, counted, strict=True)]
        return torch.stack(credit), [self.judge.word(token) for token in probabilities.argmax(-1).tolist()]

    def _atoms(self, vqa_list: Any) -> list[tuple[str, str]]:
        try:
            atoms = [(question, answer) for question, answer in vqa_list]
        except (TypeError, ValueError):
            atoms = []
        if not atoms or not all(isinstance(text, str) for atom in atoms for text in atom):
            raise UserError(
                f"{self.protocol}: vqa_list must be a list of [question, answer] of texts, got {vqa_list!r}; use the"
                " suite 'geneval2' or write the prompts' meta so"
            )
        return atoms


def _details(
    atoms: Sequence[tuple[str, str]], answers: Sequence[str], credits: Sequence[float], skills: Any
) -> Mapping[str, Any]:
    rows: list[dict[str, Any]] = [
        {"question": question, "expected": expected, "answer": answer, "credit": credit}
        for (question, expected), answer, credit in zip(atoms, answers, credits, strict=True)
    ]
    if isinstance(skills, list) and len(skills) == len(rows):
        rows = [{**row, "skill": skill} for row, skill in zip(rows, skills, strict=True)]
    weakest = sorted(rows, key=lambda row: row["credit"])[:WEAKEST]
    said = (f"{row['question']} {row['expected']}: {row['credit']:.2f} ({row['answer'].strip()})" for row in weakest)
    return {"atoms": rows, "reason": "; ".join(said)}


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local folder with Qwen3-VL-8B-Instruct's config.json, tokenizer.json and weights."""
    judge, digest = load_judge(files)
    return GenEval2(name, judge, weights_sha256=digest)
