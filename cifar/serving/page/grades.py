"""Grades: how far an answer can be relied on. The page, its batches, their CSV, the counts and Compare use the same ones."""

from __future__ import annotations

from typing import Literal, NamedTuple

from cifar.models.manifest import OOD_THRESHOLD
from cifar.models.predictor import Prediction

Grade = Literal["class", "unsure", "none"]
"""`class`: the answer is the first class. `unsure`: it looks like the first class. `none`: it is none of the classes."""

CERTAIN = 0.9
"""From this score on, the page says "almost certainly"."""
CLEAR = 0.6
"""Below this score, an answer is unsure: of the photographs in MODEL_CARD.md with such an answer, most were answered wrongly."""


class Rule(NamedTuple):
    """A condition on an answer, and the grade of the answers that meet it."""

    grade: Grade
    ood_above: float | None
    """The OOD score is higher. None: the condition is met by any answer, also by one without this score."""
    score_below: float | None
    """The score of the first class is lower. None: the condition is met by any score."""


RULES = (
    Rule("none", 2 * OOD_THRESHOLD, None),
    Rule("none", OOD_THRESHOLD, CERTAIN),
    Rule("unsure", OOD_THRESHOLD, None),
    Rule("unsure", None, CLEAR),
)
"""The first rule that an answer meets gives its grade; without one it is `class`. `batch.js` applies this table too."""


def grade_of(prediction: Prediction) -> Grade:
    """Return the grade of an answer."""
    score, ood_score = prediction.top_k[0][1], prediction.ood_score
    for grade, ood_above, score_below in RULES:
        unlike = ood_above is None or (ood_score is not None and ood_score > ood_above)
        if unlike and (score_below is None or score < score_below):
            return grade
    return "class"
