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
    labelled: Labelled | None = None,
    ask: Ask | None = None,
) -> FoundPreparation:
    """Find out which preparation of the pixels a model was trained with. Nothing is guessed.

    Args:
        model: the model.
        class_names: in the order of its outputs.
        images: pictures by name, `(height, width, channels)` `uint8`, whose answers a person is shown.
        labelled: pictures that decide.
        ask: asks a person. Default: nobody can be asked.

    Raises:
        ExportError: the preparation cannot be derived, or the pictures do not decide, or contradict the layers.
    """
    derived = derive(model)
    if labelled:
        return _by_pictures(model, derived, labelled)
    if derived.preparation:
        return FoundPreparation(derived.preparation, "layers", derived.reason)
    if ask is None:
        raise ExportError(
            f"The model does not tell which pixel values it was trained on: {derived.reason}.\n{_how_to_name(model)}"
        )
    answers = {}
    for candidate in candidates(model.image.channels):
        rows = probabilities(model, candidate, np.stack(list(images.values())))
        answers[candidate] = tuple((class_names[row.argmax()], float(row.max())) for row in rows)
    return FoundPreparation(ask(Question(derived.reason, tuple(images), answers)), "answer", derived.reason)


def _how_to_name(model: Classifier) -> str:
    named = (
        "; or --preprocessing=caffe (ResNet50, VGG) or torch (DenseNet), as in preprocess_input"
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
            "All %d comparison images get one label, %r. If they do not look alike, the pixel range is probably wrong: %s",
            len(images),
            class_names[labels.pop()],
            found.preparation.option,
        )


def _by_pictures(model: Classifier, derived: Derived, labelled: Labelled) -> FoundPreparation:
    """Return the preparation with which clearly the most pictures are right.

    It must be right for half of the pictures, and for at least two and a tenth of them more than any other one.
    """
    tried = candidates(model.image.channels)
    right = {
        each: int((probabilities(model, each, labelled.images).argmax(axis=1) == labelled.labels).sum())
        for each in tried
    }
    best = max(right, key=lambda each: (right[each], each == derived.preparation))
    total = len(labelled.labels)
    counts = ", ".join(f"{each.name} {right[each]}" for each in sorted(right, key=lambda each: -right[each]))
    said = f"of {total} labelled pictures, right are: {counts}"
    lead = right[best] - max(count for each, count in right.items() if each != best)
    clear = 2 * right[best] >= total and lead >= max(2, total / 10)
    own = derived.preparation
    if own and own != best and clear and right[best] - right[own] >= max(2, total / 10):
        raise ExportError(
            f"--check contradicts the model ({derived.reason}): {said}.\nName the one that holds: {own.option} or {best.option}"
        )
    if own and right[own] * 2 >= total:
        return FoundPreparation(own, "layers", f"{derived.reason}; {said}")
    if not clear:
        raise ExportError(
            f"--check does not decide: {said}.\nAdd pictures, look whether they show the classes that their names say, or name the "
            f"range: {', '.join(each.option for each in tried)}"
        )
    log.warning("Taking %s: %s.", best.name, said)
    return FoundPreparation(best, "check", said)
