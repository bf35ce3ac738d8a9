"""Ask at a terminal which pixel values a model was trained on, with the answers that each possibility gives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar.training.export.pixels.preparation import Preparation, parse_preparation

if TYPE_CHECKING:
    from cifar.training.export.pixels.decide import Question  # imports TensorFlow

_MOST_ROWS = 12
_WIDTH = 20
_MEANINGS = {
    "0,255": "as they are",
    "0,1": "divided by 255",
    "-1,1": "MobileNet, Teachable Machine",
    "caffe": "ResNet50, VGG: BGR, minus ImageNet's mean",
    "torch": "DenseNet: 0 to 1, minus ImageNet's mean, by its deviation",
}


def can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_preparation(question: Question) -> Preparation:
    """Print the answers of each candidate, and return the one that is chosen. Everything goes to stderr."""
    candidates = list(question.answers)
    _print(f"The model does not tell which pixel values it was trained on: {question.reason}.")
    _print("Which column names most of these images rightly?")
    _print(
        "If they show none of the classes, stop with Ctrl-C, and name pictures that do: --check DIR or --images DIR.\n"
    )
    _print(_table(question, candidates))
    for number, candidate in enumerate(candidates, 1):
        warning = "  All images get one label: probably wrong." if question.gives_one_label(candidate) else ""
        _print(f"  {number}  {candidate.name:<7} {_MEANINGS[candidate.name]}.{warning}")
    while True:
        _print(
            f"\nA number from 1 to {len(candidates)}; or LOW,HIGH; or bgr:LOW,HIGH for a model that was trained on images from OpenCV; "
            "or MEANS/DEVIATIONS: ",
            end="",
        )
        text = sys.stdin.readline()
        if not text:
            raise KeyboardInterrupt  # end of input
        if text.strip() in {str(number) for number in range(1, len(candidates) + 1)}:
            return candidates[int(text) - 1]
        if not text.strip():
            _print("Type the number of a row, such as 1.")
            continue
        try:
            return parse_preparation(text.strip())
        except ValueError as error:
            _print(str(error))


def _table(question: Question, candidates: Sequence[Preparation]) -> str:
    lines = [_row("", [candidate.name for candidate in candidates])]
    for number, image in enumerate(question.images[:_MOST_ROWS]):
        answers = (question.answers[candidate][number] for candidate in candidates)
        lines.append(
            _row(Path(image).name[-_WIDTH:], [f"{label[: _WIDTH - 6]} {score:.2f}" for label, score in answers])
        )
    return "\n".join(lines) + "\n"


def _row(head: str, cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:<{_WIDTH}}" for cell in (head, *cells)).rstrip()


def _print(text: str, end: str = "\n") -> None:
    print(text, file=sys.stderr, end=end, flush=True)
