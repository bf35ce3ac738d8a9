"""Grades: how far an answer can be relied on. Every interface gives the same grade to the same answer."""

from __future__ import annotations

from typing import Literal

from cifar.models.manifest import OOD_THRESHOLD

Grade = Literal["class", "unsure", "none"]
"""`class`: the answer is the first class. `unsure`: it looks like the first class. `none`: it is none of the classes."""

CERTAIN = 0.9
"""With at least this score, an image unlike the training images is `unsure`, not `none`; and the page says "almost certainly" of others."""
CLEAR = 0.6
"""Below this score, an answer is `unsure`. Of the photographs in MODEL_CARD.md with such a score, most were answered wrongly."""
FAR = 2 * OOD_THRESHOLD
"""Above this OOD score, an image is none of the classes, whatever the score of the first class is."""


def grade_of(score: float, ood_score: float | None) -> Grade:
    """Return the grade of an answer by the probability of its first class. Without an OOD score it is never `none`."""
    if ood_score is not None and ood_score > OOD_THRESHOLD:
        return "none" if ood_score > FAR or score < CERTAIN else "unsure"
    return "class" if score >= CLEAR else "unsure"
