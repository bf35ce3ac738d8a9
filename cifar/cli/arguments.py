"""What the command line's arguments may be. Anything else is wrong use, and the sentence says what was expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def count(text: str) -> int:
    """How many of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return int(text)


def size(text: str) -> int:
    """A side in pixels, or a number of processes."""
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 4096; got {text!r}")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    """Class names in order: A,B,..."""
    found = tuple(name.strip() for name in text.split(","))
    if len(found) < 2 or not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected at least two different names separated by commas; got {text!r}")
    return found


def two_versions(text: str) -> tuple[int, int]:
    """Two numbers of versions: A,B."""
    parts = text.split(",")
    if len(parts) != 2 or parts[0] == parts[1]:
        raise argparse.ArgumentTypeError(f"expected two different versions A,B; got {text!r}")
    return count(parts[0]), count(parts[1])


def duration(text: str) -> float:
    """So many days or hours."""
    return _number(text, lambda value: 0 < value <= 36_500, "a number above 0")


def effect(text: str) -> float:
    """A difference of accuracies."""
    return _number(text, lambda value: 0.001 <= value <= 0.5, "a number from 0.001 to 0.5, such as 0.02")


def positive(text: str) -> float:
    """Seconds, or a learning rate."""
    return _number(text, lambda value: 1e-12 <= value < math.inf, "a number above 0")


def part(text: str) -> float:
    """A share that leaves something over."""
    return _number(text, lambda value: 0 < value < 1, "a share between 0 and 1, such as 0.05")


def accuracy(text: str) -> float:
    """A share that may be all."""
    return _number(text, lambda value: 0 < value <= 1, "a share above 0 and up to 1, such as 0.9")


def _number(text: str, fits: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # which fits nowhere
    if not fits(value):
        raise argparse.ArgumentTypeError(f"expected {expected}; got {text!r}")
    return value


def interval(text: str) -> tuple[float, float]:
    """A range of pixels: LOW,HIGH."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers LOW,HIGH; got {text!r}") from None
    if not low < high:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH; got {text!r}")
    return low, high


def share(text: str) -> tuple[str, int]:
    """A label and a whole number: NAME=N."""
    name, _, number = text.partition("=")
    if not name or not number.isdecimal() or len(number) > 9:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, such as canary=3; got {text!r}")
    return name, int(number)
