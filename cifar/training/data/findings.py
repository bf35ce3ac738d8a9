"""Warnings about a data set before training: pictures that were left out, copies, and imbalance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cifar.training.data.folders.contents import Contents, some

IMBALANCE = 10
"""Ratio of the largest to the smallest class from which the imbalance is reported."""
FEW_IMAGES = 100
"""With fewer held-out images, a warning says that figures mean little: the 95 % interval of 90 % spans 12 points."""

LEFT_OUT = "Left out:"
"""Sentences that begin with this are about what was left out."""

Part = tuple[np.ndarray, np.ndarray]
"""Images `(n, height, width, channels)` and labels `(n,)`."""


def describe(contents: Contents) -> list[str]:
    """Say how a source was understood, what was left out, and what was converted."""
    sentences = list(contents.notes)
    if contents.left_out:
        found = [f"{reason}: {len(names):,} ({some(names, 2)})" for reason, names in contents.left_out.items()]
        sentences.append(f"{LEFT_OUT} {'; '.join(found)}.")
    if contents.damaged:
        names = [f"{name}: {reason}" for name, reason in contents.damaged.items()]
        sentences.append(f"{LEFT_OUT} damaged pictures: {len(names):,} ({some(names)}).")
    if contents.conversions:
        found = [f"{count:,} {kind}" for kind, count in contents.conversions.items()]
        sentences.append(f"Pictures that change when they are read: {'; '.join(found)}.")
    return sentences


def find_duplicates(names: Sequence[str], training: Part, test: Part) -> list[str]:
    """Say which images are equal, pixel by pixel at the size of the model's input.

    The names are those of the training images and then of the test images; without names nothing is looked for.
    """
    if not names:
        return []
    fitted = len(training[1])
    labels = np.concatenate([training[1], test[1]])
    first: dict[bytes, int] = {}
    leaked, copies, two_classes = [], [], []
    for number, image in enumerate(image for images in (training[0], test[0]) for image in images):
        other = first.setdefault(hashlib.blake2b(image, digest_size=16).digest(), number)
        if other == number:
            continue
        pair = f"{names[other]} = {names[number]}"
        if labels[other] != labels[number]:
            two_classes.append(pair)
        if other < fitted <= number:
            leaked.append(pair)
        elif number < fitted:
            copies.append(pair)
    sentences = []
    if leaked:
        count = "all" if len(leaked) == len(test[1]) else f"{len(leaked):,} of {len(test[1]):,}"
        sentences.append(
            f"Test pictures that are also training pictures: {count} ({some(leaked)}). Accuracy on the test part is flattered."
        )
    if two_classes:
        sentences.append(f"Pictures that are in two classes: {len(two_classes):,} ({some(two_classes)}).")
    if copies:
        sentences.append(
            f"Training pictures that are copies of others: {len(copies):,} ({some(copies)}). Accuracy on held-out copies is flattered."
        )
    return sentences


def imbalance(class_names: Sequence[str], labels: np.ndarray) -> list[str]:
    """Say which classes have a single training image, and that some have many times as many as others."""
    counts = np.bincount(labels, minlength=len(class_names))
    sentences = []
    if single := [class_names[int(label)] for label in np.flatnonzero(counts == 1)]:
        sentences.append(
            f"One training image only: {some(single)}. Training needs two of each class, one of them to hold out."
        )
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] >= IMBALANCE * counts[least]:
        sentences.append(
            f"{class_names[most]} has {counts[most]:,} training images, {class_names[least]} only {counts[least]:,}: a ratio of "
            f"{counts[most] / counts[least]:.0f} (reported from {IMBALANCE} on). Look at the balanced accuracy, and try train --class-weights."
        )
    return sentences


def describe_training(class_names: Sequence[str], fitted: np.ndarray, held_out: int | None, test: int) -> list[str]:
    """Say what a run trains on, by its labels, and how many images are held out (None: cross-validation) and for testing."""
    counts = np.bincount(fitted, minlength=len(class_names))
    by_class = (
        ""
        if len(class_names) > 10
        else ", ".join(f"{name} {count:,}" for name, count in zip(class_names, counts, strict=True))
    )
    validation = "each is held out once" if held_out is None else f"{held_out:,} are held out for validation"
    about = (
        f"Training on {len(fitted):,} images of {len(class_names)} classes{f' ({by_class})' if by_class else ''}; {validation}, {test:,} are for "
        "testing."
    )
    sentences = [about]
    if held_out is not None and held_out < FEW_IMAGES:
        sentences.append(f"Only {held_out:,} images are held out: figures from fewer than {FEW_IMAGES} mean little.")
    return sentences
