"""Decide how pixels are prepared: by an option, by the layers, by labelled pictures, or by a person who sees the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import tensorflow as tf

from cifar.errors import ExportError
from cifar.training.export.pixels.derive import Derived, derive
from cifar.training.export.pixels.labelled import Labelled
from cifar.training.export.pixels.preparation import Preparation, candidates
from cifar.training.export.reading.classifier import Classifier

log = logging.getLogger(__name__)

_BATCH = 32


@dataclass(frozen=True)
class FoundPreparation:
    """A preparation, and how it was found; the manifest records both."""

    preparation: Preparation
    found_by: Literal["run", "version", "option", "layers", "check", "answer"]
    evidence: str = ""

    @property
    def record(self) -> dict[str, str]:
        """What the manifest holds of it."""
        return {"preparation": self.preparation.name, "found_by": self.found_by, "evidence": self.evidence}


@dataclass(frozen=True)
class Question:
    """What a person sees who is asked for the preparation."""

    reason: str
    """Why the layers do not tell."""
    images: tuple[str, ...]
    answers: Mapping[Preparation, tuple[tuple[str, float], ...]]
    """For each candidate, label and probability of each image."""

    def gives_one_label(self, preparation: Preparation) -> bool:
        """Whether a candidate gives all images the same label, which a wrong range usually does."""
        return len(self.images) > 1 and len({label for label, _ in self.answers[preparation]}) == 1


Ask = Callable[[Question], Preparation]


def find_preparation(
    model: Classifier,
    class_names: Sequence[str],
    images: Mapping[str, np.ndarray],
    *,
    named: Preparation | None = None,
    labelled: Labelled | None = None,
    ask: Ask | None = None,
) -> FoundPreparation:
    """Find out which preparation of the pixels a model was trained with. Nothing is guessed.

    Args:
        model: the model.
        class_names: in the order of its outputs.
        images: pictures by name, `(height, width, channels)` `uint8`, whose answers a person is shown.
        named: the preparation that the user named.
        labelled: pictures that decide, or that are compared with what the user named.
        ask: asks a person. Default: nobody can be asked.

    Raises:
        ExportError: the preparation cannot be derived, or the pictures do not decide, or contradict the layers; or the model takes
            integers, and another range than 0 to 255 is named.
    """
    derived = derive(model)
    if named:
        return _named(model, named, derived, labelled)
    counts = labelled and count_right(model, candidates(model.image.channels), labelled)
    if counts and (found := _by_pictures(counts, derived)):
        return found
    if derived.preparation and not counts:
        return FoundPreparation(derived.preparation, "layers", derived.reason)
    if ask:
        answers = {}
        for candidate in candidates(model.image.channels):
            rows = probabilities(model, candidate, np.stack(list(images.values())))
            answers[candidate] = tuple((class_names[row.argmax()], float(row.max())) for row in rows)
        reason = counts.text if counts else derived.reason
        return FoundPreparation(ask(Question(reason, tuple(images), answers)), "answer", reason)
    if counts:
        options = " or ".join(each.option for each in counts.best)
        raise ExportError(
            f"--check does not decide: {counts.text}.\nAdd pictures, look whether they show the classes that their names say, or name the "
            f"range to which the training code scales pixels: {options} (caffe is for ResNet50 and VGG, torch for DenseNet)."
        )
    raise ExportError(
        f"The model does not tell which pixel values it was trained on: {derived.reason}.\n{_how_to_name(model)}"
    )


def _how_to_name(model: Classifier) -> str:
    named = (
        "; or --preprocessing=caffe (ResNet50, VGG), torch (DenseNet) or bgr:LOW,HIGH (cv2.imread)"
        if model.image.channels == 3
        else ""
    )
    return (
        "Name the values of a black and a white pixel, --input-range=LOW,HIGH: 0,255 (as they are), 0,1 (divided by 255) or -1,1 "
        f"(MobileNet, Teachable Machine){named}.\nOr let a few labelled pictures decide, in a folder for each class: --check DIR"
    )


def probabilities(model: Classifier, preparation: Preparation, images: np.ndarray) -> np.ndarray:
    """Return the model's answers `(n, classes)` to `uint8` images that are prepared in this way."""
    if model.alpha is not None:
        model = replace(model, alpha=preparation.white)
    batches = np.split(images, range(_BATCH, len(images), _BATCH))
    rows = tf.concat([model(preparation(batch.astype(np.float32) / 255)) for batch in batches], axis=0)
    return np.asarray(tf.nn.softmax(rows) if model.logits else rows)


def warn_if_one_label(
    model: Classifier, found: FoundPreparation, class_names: Sequence[str], images: Mapping[str, np.ndarray]
) -> None:
    """Warn if all pictures get the same label, as they do with a wrong range."""
    labels = set(probabilities(model, found.preparation, np.stack(list(images.values()))).argmax(axis=1).tolist())
    if len(images) > 3 and len(labels) == 1:
        log.warning(
            "All %d comparison images get one label, %r, with %s. If they show different things, that may be the wrong range: "
            "pictures of each class would show it, --check DIR",
            len(images),
            class_names[labels.pop()],
            found.preparation.option,
        )


@dataclass(frozen=True)
class Counts:
    """How many of the labelled pictures are right with each preparation."""

    right: dict[Preparation, int]
    total: int

    @property
    def text(self) -> str:
        ordered = sorted(self.right, key=lambda each: -self.right[each])
        counts = ", ".join(f"{each.name} {self.right[each]}" for each in ordered)
        return f"of {self.total} labelled pictures, right are: {counts}"

    @property
    def best(self) -> list[Preparation]:
        """The preparations that are not clearly worse than another one."""
        return [each for each in self.right if not any(self.clearly_better(other, each) for other in self.right)]

    def clearly_better(self, one: Preparation, other: Preparation) -> bool:
        """Whether one preparation is right for half of the pictures, and for two and a tenth of them more than the other."""
        lead = self.right[one] - self.right[other]
        return 2 * self.right[one] >= self.total and lead >= max(2, self.total / 10)


def count_right(model: Classifier, tried: Sequence[Preparation], labelled: Labelled) -> Counts:
    def right(preparation: Preparation) -> int:
        return int((probabilities(model, preparation, labelled.images).argmax(axis=1) == labelled.labels).sum())

    return Counts({each: right(each) for each in tried}, len(labelled.labels))


def _named(model: Classifier, named: Preparation, derived: Derived, labelled: Labelled | None) -> FoundPreparation:
    """Take what the user named, and warn if the layers or the user's pictures say otherwise."""
    own = derived.preparation
    if own and model.integer and named.input_range != own.input_range:
        raise ExportError(
            f"{named.option} does not fit: {derived.reason}, so its pixels are 0 to 255. Leave the option out."
        )
    if own and named != own:
        log.warning("%s is taken as you say, but the layers show %s: %s.", named.option, own.option, derived.reason)
    if labelled is None:
        return FoundPreparation(named, "option")
    counts = count_right(model, tuple(dict.fromkeys((named, *candidates(model.image.channels)))), labelled)
    if any(counts.clearly_better(each, named) for each in counts.right):
        log.warning("The pictures of --check speak against %s: %s.", named.option, counts.text)
    return FoundPreparation(named, "option", counts.text)


def _by_pictures(counts: Counts, derived: Derived) -> FoundPreparation | None:
    """Return the preparation that is clearly better than all others, or that the layers show; None if there is neither."""
    own = derived.preparation
    best = max(counts.right, key=lambda each: (counts.right[each], each == own))
    if own and counts.clearly_better(best, own):
        raise ExportError(
            f"--check contradicts the model ({derived.reason}): {counts.text}.\nName the one that holds: {own.option} or {best.option}"
        )
    if own and 2 * counts.right[own] >= counts.total:
        return FoundPreparation(own, "layers", f"{derived.reason}; {counts.text}")
    if counts.best != [best]:
        return None
    log.warning("Taking %s: %s.", best.name, counts.text)
    return FoundPreparation(best, "check", counts.text)
