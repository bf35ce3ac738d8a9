"""Types and shared options of the command line. A wrong value ends the command with exit status 2 and a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from typer import Argument, BadParameter, Option

from cifar.errors import ExportError
from cifar.images.spec import CHANNELS
from cifar.training.export.class_names import read_class_names
from cifar.training.export.pixels.preparation import Preparation, parse_preparation

MeasuredViews = Literal[1, 2, 6]

JSON: bool = Option(False, "--json", help="Print JSON.")
VERSION: int | None = Option(None, metavar="N", help="Default: the version in service.")
OUT: Path = Option(..., metavar="PATH", help="The file or folder to write.")
_IMAGE_SIZE = "Side to which an image folder's images are resized. Default: 32; 128 for a small number of photographs."
IMAGE_SIZE: int | None = Option(None, min=1, max=4096, metavar="PIXELS", help=_IMAGE_SIZE)
_SOURCE = (
    "cifar10, its cifar-10-python.tar.gz, or pictures: a folder, a zip or tar archive, a table of paths and labels."
)
SOURCE: str = Argument(..., metavar="SOURCE", help=_SOURCE)
SKIP_DAMAGED: bool = Option(False, "--skip-damaged", help="Leave damaged pictures out.")
DATA: str = Option(..., metavar="SOURCE", help=_SOURCE)


class LabelValue(NamedTuple):
    """A label and its version or percentage, written LABEL=NUMBER."""

    label: str
    number: int


class TwoVersions(NamedTuple):
    """Numbers of two versions to compare."""

    first: int
    second: int


def label_value(text: str) -> LabelValue:
    label, _, number = text.partition("=")
    if not label or not number.isdecimal() or len(number) > 9:
        raise BadParameter(f"expected NAME=NUMBER, such as canary=3; got {text!r}")
    return LabelValue(label, int(number))


def image_size(text: str) -> Sequence[int]:
    sides = [int(side) if side.strip().isdecimal() else 0 for side in text.split(",")]
    with_colours = len(sides) == 3 and not set(CHANNELS).isdisjoint((sides[0], sides[-1]))
    if not (len(sides) < 3 or with_colours) or not all(1 <= side <= 4096 for side in sides):
        raise BadParameter(
            f"expected HEIGHT,WIDTH in pixels, such as 224,224, or for a vector of colours 224,224,3 or 3,224,224; got {text!r}"
        )
    return sides * 2 if len(sides) == 1 else sides


def two_versions(text: str) -> TwoVersions:
    parts = text.split(",")
    if len(parts) != 2 or parts[0] == parts[1] or not all(part.isdecimal() and int(part) for part in parts):
        raise BadParameter(f"expected two different versions A,B; got {text!r}")
    return TwoVersions(int(parts[0]), int(parts[1]))


def class_names(text: str) -> Sequence[str]:
    try:
        return read_class_names(text)
    except ExportError as error:
        raise BadParameter(str(error)) from error


def formats(text: str) -> Sequence[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - {"onnx", "keras"}:
        raise BadParameter(f"expected onnx, keras or onnx,keras; got {min(unknown)!r}")
    return names


def preparation(text: str) -> Preparation:
    try:
        return parse_preparation(text)
    except ValueError as error:
        raise BadParameter(str(error)) from error


def _number(fits: Callable[[float], bool], expected: str) -> Callable[[str | float], float]:
    def parse(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # fits no range
        if not fits(value):
            raise BadParameter(f"expected {expected}; got {text!r}")
        return value

    return parse


positive = _number(lambda value: 1e-12 <= value < math.inf, "a number above 0")
duration = _number(lambda value: 0 < value <= 36_500, "a number above 0, up to 36500")
difference = _number(lambda value: 0.001 <= value <= 0.5, "a number from 0.001 to 0.5, such as 0.02")
fraction = _number(lambda value: 0 < value < 1, "a share between 0 and 1, such as 0.05")
share = _number(lambda value: 0 <= value <= 1, "a share from 0 to 1, such as 0.5")
accuracy = _number(lambda value: 0 < value <= 1, "a share above 0 and up to 1, such as 0.9")


def expand(arguments: Sequence[str]) -> list[str]:
    """Complete the forms of options that Typer cannot parse.

    `--robustness` without a number means 2000 images, one `--shadow` may be followed by several values, and `--tta` is the earlier
    form of `--views 6`.
    """
    expanded: list[str] = []
    option = ""
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            option = argument
        elif option == "--shadow" and expanded[-1] != "--shadow":
            expanded.append("--shadow")
        expanded += ["--views", "6"] if argument == "--tta" else [argument]
        last = position + 1 == len(arguments)
        if argument == "--robustness" and (last or arguments[position + 1].startswith("-")):
            expanded.append("2000")
    return expanded
