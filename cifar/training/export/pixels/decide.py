"""Decides how pixels are prepared: by an option, by the layers, by labelled pictures, or by a user who compares the answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import tensorflow as tf

from cifar.errors import ExportError
from cifar.training.export.pixels.derive import Derived, derive
from cifar.training.export.pixels.labelled import Labelled
from cifar.training.export.pixels.preparation import Preparation, candidates, range_of
from cifar.training.export.reading.classifier import Classifier

log = logging.getLogger(__name__)

_BATCH = 32
_SMALLEST = 1e-37
"""Replaces a probability of zero, whose logarithm is infinite."""
_SHOWN = 12
"""Number of pictures of `--check` that are shown to the user."""


@dataclass(frozen=True)
class FoundPreparation:
    """A preparation, and how it was found. The manifest contains both."""

    preparation: Preparation
    found_by: Literal["run", "version", "option", "layers", "check", "answer"]
    evidence: str = ""


@dataclass(frozen=True)
class Question:
    """The model's answers with each candidate. The user chooses the preparation that gives the right ones."""

    reason: str
    """The reason why the layers do not tell."""
    images: tuple[str, ...]
    answers: Mapping[Preparation, tuple[tuple[str, float], ...]]
    """For each candidate, label and probability of each image."""
    familiar: bool = True
    """True if the images probably show several of the classes."""

    def gives_one_label(self, preparation: Preparation) -> bool:
        """Return whether a candidate gives all images the same label, as a wrong range usually does."""
        return self.familiar and len(self.images) > 1 and len({label for label, _ in self.answers[preparation]}) == 1


Ask = Callable[[Question], Preparation]


def find_preparation(
    model: Classifier,
    class_names: Sequence[str],
    images: Mapping[str, np.ndarray],
    *,
    named: Preparation | None,
    labelled: Labelled | None,
    ask: Ask | None,
    familiar: bool,
) -> FoundPreparation:
    """Find out which preparation of the pixels a model was trained with. Nothing is guessed.

    Args:
        model: the model.
        class_names: in the order of its outputs.
        images: pictures by name, `(height, width, channels)` `uint8`. The user is shown the answers for them.
        named: the preparation that the user named.
        labelled: pictures that decide the preparation, or that check the one that the user named.
        ask: asks the user. None: there is no user to ask.
        familiar: whether `images` probably show several of the classes.

    Raises:
        ExportError: the layers do not show the preparation and the pictures do not decide it; or the pictures contradict the
            layers; or the model takes integers, and another range than 0 to 255 is named.
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
        images = labelled.some(_SHOWN) if labelled else images
        for candidate in candidates(model.image.channels):
            rows = probabilities(model, candidate, np.stack(list(images.values())))
            answers[candidate] = tuple((class_names[row.argmax()], float(row.max())) for row in rows)
        reason = counts.text if counts else derived.reason
        question = Question(reason, tuple(images), answers, familiar or labelled is not None)
        return FoundPreparation(ask(question), "answer", reason)
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
        "; or --preprocessing=caffe (ResNet50, VGG), torch (DenseNet), bgr:LOW,HIGH (cv2.imread) or MEANS/DEVIATIONS"
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
    model: Classifier,
    found: FoundPreparation,
    class_names: Sequence[str],
    images: Mapping[str, np.ndarray],
    labelled: Labelled | None,
) -> None:
    """Warn if all pictures get the same label, as with a wrong range. The pictures are the labelled ones if there are any."""
    shown = labelled.images if labelled else np.stack(list(images.values()))
    labels = set(probabilities(model, found.preparation, shown).argmax(axis=1).tolist())
    if len(shown) < 4 or len(labels) > 1 or (labelled and len(set(labelled.labels)) == 1):
        return
    log.warning(
        "All %d %s get one label, %r, with %s. If they show different things, that may be the wrong range%s",
        len(shown),
        "pictures of --check" if labelled else "comparison images",
        class_names[labels.pop()],
        found.preparation.option,
        "." if labelled else ": pictures of each class would show it, --check DIR",
    )


@dataclass(frozen=True)
class Counts:
    """The accuracy of the model on labelled pictures with each preparation."""

    right: dict[Preparation, int]
    """Number of pictures that get the right label."""
    total: int
    """Number of pictures."""
    loss: dict[Preparation, float]
    """The mean over the pictures of the negative logarithm of the right label's probability."""
    chance: float
    """The loss of equal probabilities."""

    @property
    def text(self) -> str:
        ordered = sorted(self.right, key=lambda each: -self.right[each])
        counts = ", ".join(f"{each.name} {self.right[each]}" for each in ordered)
        text = f"of {self.total} labelled pictures, right are: {counts}"
        return f"{text}; {self._tie}" if len(self.best) > 1 and 2 * max(self.right.values()) >= self.total else text

    @property
    def _tie(self) -> str:
        losses = ", ".join(f"{each.name} {self.loss[each]:.2g}" for each in self.best)
        return f"the labels agree and the confidences differ, with a mean loss of {losses}"

    @property
    def best(self) -> list[Preparation]:
        """The preparations that are not clearly worse than another one."""
        return [each for each in self.right if not any(self.clearly_better(other, each) for other in self.right)]

    def clearly_better(self, one: Preparation, other: Preparation) -> bool:
        """Return whether one preparation is right for at least half of the pictures, and for a tenth of them (at least two) more than the other."""
        lead = self.right[one] - self.right[other]
        return 2 * self.right[one] >= self.total and lead >= max(2, self.total / 10)

    @property
    def decided(self) -> Preparation | None:
        """The preparation that is clearly better than all others: by its labels or, among the `best`, by its loss. None if there is none."""
        first, *others = sorted(self.best, key=lambda each: self.loss[each])
        if 2 * self.right[first] < self.total:
            return None
        return first if all(self._clearly_surer(first, other) for other in others) else None

    def _clearly_surer(self, one: Preparation, other: Preparation) -> bool:
        """Return whether the losses separate two preparations that get nearly the same labels right.

        If all labels are right, too large pixels give the lower loss, because they make a network too confident. So the loss
        counts only if some labels are wrong, or if the other preparation's answers are hardly better than chance.
        """
        shows = self.right[one] < self.total or self.loss[other] > 0.9 * self.chance
        return shows and self.loss[other] >= 1.5 * self.loss[one] + 0.1


def count_right(model: Classifier, tried: Sequence[Preparation], labelled: Labelled) -> Counts:
    """Return how well each preparation fits the pictures. One with red and blue exchanged is added only if it is much better."""
    labels = labelled.labels
    exchanged = {
        range_of(*each.input_range, bgr=True): each
        for each in tried
        if each.input_range and not each.bgr and model.image.channels == 3
    }
    rows = {each: probabilities(model, each, labelled.images) for each in (*tried, *exchanged)}
    right = {each: int((answers.argmax(axis=1) == labels).sum()) for each, answers in rows.items()}
    of_label = {each: answers[np.arange(len(labels)), labels] for each, answers in rows.items()}
    loss = {each: float(-np.log(np.maximum(values, _SMALLEST)).mean()) for each, values in of_label.items()}
    counts = Counts(right, len(labels), loss, math.log(model.classes))
    for bgr, rgb in exchanged.items():
        # Many models hardly use colour, so a small lead may be chance.
        better = counts.clearly_better(bgr, rgb) and right[bgr] - right[rgb] >= max(3, len(labels) / 5)
        if bgr not in tried and not better:
            del right[bgr], loss[bgr]
    return counts


def _named(model: Classifier, named: Preparation, derived: Derived, labelled: Labelled | None) -> FoundPreparation:
    """Return the preparation that the user named. Warn if the layers or the user's pictures contradict it."""
    own = derived.preparation
    if len(named.scale) not in {1, model.image.channels}:
        raise ExportError(f"{named.option} is for images in colour; the model takes {model.image.channels} channel.")
    if own and model.integer and named.input_range != own.input_range:
        raise ExportError(
            f"{named.option} does not fit: {derived.reason}, so its pixels are 0 to 255. Leave the option out."
        )
    if own and named != own:
        log.warning("%s is used, as you asked, but the layers show %s: %s.", named.option, own.option, derived.reason)
    if labelled is None:
        return FoundPreparation(named, "option")
    counts = count_right(model, tuple(dict.fromkeys((named, *candidates(model.image.channels)))), labelled)
    if any(counts.clearly_better(each, named) for each in counts.right):
        log.warning("The pictures of --check speak against %s: %s.", named.option, counts.text)
    else:
        log.warning("Taking %s: %s.", named.name, counts.text)
    return FoundPreparation(named, "option", counts.text)


def _by_pictures(counts: Counts, derived: Derived) -> FoundPreparation | None:
    """Return the preparation that the layers show if the pictures agree, else the one that is clearly best, else None."""
    own = derived.preparation
    best = max(counts.right, key=lambda each: (counts.right[each], each == own))
    if own and counts.clearly_better(best, own):
        raise ExportError(
            f"--check contradicts the model ({derived.reason}): {counts.text}.\nName the one that holds: {own.option} or {best.option}"
        )
    if own and 2 * counts.right[own] >= counts.total:
        log.warning("Taking %s: %s.", own.name, counts.text)
        return FoundPreparation(own, "layers", f"{derived.reason}; {counts.text}")
    if (decided := counts.decided) is None:
        return None
    log.warning("Taking %s: %s.", decided.name, counts.text)
    return FoundPreparation(decided, "check", counts.text)
