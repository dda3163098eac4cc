"""UnifiedReward 2.0 (Wang et al. 2025, arXiv:2503.05236): a Qwen3-VL that writes three scores of 1 to 5 for an image.

Hub: `CodeGoat24/UnifiedReward-2.0-qwen3vl-{2b,4b,8b,32b}`. Columns: `/alignment` with the prompt, `/coherence`,
`/style`. The question is that of `inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py` in
github.com/CodeGoat24/UnifiedReward at ff6f520; as there, the image passes through a JPEG of quality 95. The answer is
written greedily, which is what the authors' client asks of its server (`do_sample: false`). Where three scores of 1 to
5 cannot be read off it, the image has an error, and no score.

Papers mostly report UnifiedReward-7b-v1.5, another model with another question: its scores are not these.

The revision of 8b is the one that its users name; of the other sizes none was found, and what the hub has as `main` is
taken, which may change. That a size's `preprocessor_config.json` is Qwen3-VL's own could not be confirmed.
"""

import math
import re
from collections.abc import Sequence
from typing import ClassVar

import torch

from evaluate.preprocess import Prepared
from evaluate.scorers import Assessment, Meta, Scorer
from evaluate.scorers._judge import Judge, JudgeScorer, Patched, load_judge
from evaluate.weights import Files

REPOSITORY = "CodeGoat24/UnifiedReward-2.0-qwen3vl-{}"
REVISIONS = {"8b": "4175e6b78d62f639282797d05ccea35d3be823cf", "2b": "main", "4b": "main", "32b": "main"}
VARIANTS = {
    f"unifiedreward/2.0-qwen3vl-{size}": f"UnifiedReward 2.0 of {size.upper()}: alignment, coherence and style, 1 to 5"
    for size in REVISIONS
}

QUALITY = 95  # of the JPEG
LONGEST = 256  # tokens of an answer; three scores of 17 digits are about 80
ASPECTS = ("alignment", "coherence", "style")
QUESTION = (
    "You are presented with a generated image and its associated text caption. "
    "Your task is to analyze the image across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\n"
    "Style Score (1-5): Z\n\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{}]"
)


def parse(answer: str) -> dict[str, float]:
    """The three scores of an answer, by aspect. Raises ValueError where one is missing, no number, or not in 1 to 5."""
    scores = {}
    for aspect in ASPECTS:
        found = re.search(rf"^\s*{aspect.capitalize()} Score \(1-5\):\s*(\d+(?:\.\d+)?)\s*$", answer, re.MULTILINE)
        if found is None or not 1 <= float(found[1]) <= 5:
            raise ValueError(f"the judge's answer gives no {aspect} score of 1 to 5: {answer[:200]!r}")
        scores[aspect] = float(found[1])
    return scores


class UnifiedReward(JudgeScorer):
    """Three scores that the judge writes; details: its answer."""

    differentiable: ClassVar[bool] = False

    def __init__(self, protocol: str, judge: Judge, *, weights_sha256: str) -> None:
        super().__init__(protocol, judge, Patched(jpeg=QUALITY), weights_sha256=weights_sha256)
        self.columns = tuple(f"{protocol}/{aspect}" for aspect in ASPECTS)

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """NaN for an answer that cannot be read: asked again the judge would write the same."""
        rows: list[dict[str, float]] = []
        details = []
        for image, prompt in zip(prepared, prompts, strict=True):
            (answer,) = self.judge.write(image, [QUESTION.replace("{}", prompt)], longest=LONGEST)
            try:
                rows.append(parse(answer))
                reason = answer
            except ValueError as error:
                rows.append({})
                reason = str(error)
            details.append({"answer": answer, "reason": reason})
        columns = {
            f"{self.protocol}/{aspect}": torch.tensor([row.get(aspect, math.nan) for row in rows], dtype=torch.float32)
            for aspect in ASPECTS
        }
        return Assessment(columns, details)


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local folder with the model's config.json, tokenizer.json and weights."""
    size = name.rpartition("-")[2]
    judge, digest = load_judge(files, REPOSITORY.format(size), REVISIONS[size])
    return UnifiedReward(name, judge, weights_sha256=digest)
