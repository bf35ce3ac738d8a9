"""Tells single-label from multi-label models, and checks that the outputs of either are probabilities."""

from __future__ import annotations

import logging

import numpy as np

from cifar.errors import ExportError
from cifar.training.export.reading.classifier import Classifier
from cifar.training.export.reading.network import Network

log = logging.getLogger(__name__)

_MAX_ROUNDING = 1e-3
"""Largest accepted distance between 1 and the sum of an image's probabilities."""


def is_multi_label(model: Classifier, network: Network, asked: bool) -> bool:
    """Return whether each class has a probability of its own: by the user's word (`asked`), the last layer, and the loss in the file.

    Raises:
        ExportError: the user calls a model multi-label that cannot be.
    """
    if asked and (model.columns == 1 or model.activation == "softmax"):
        has = "one output" if model.columns == 1 else "a softmax as its last layer"
        raise ExportError(f"The model has {has}, so its probabilities add up to 1. Leave out --multi-label.")
    sigmoids = model.activation == "sigmoid" or (model.logits and network.loss.is_binary)
    if not (asked or (sigmoids and model.columns > 1)):
        return False
    if not asked:
        reason = "a sigmoid as its last layer" if model.activation == "sigmoid" else "a binary loss that takes logits"
        log.warning(
            "The model has %s: it is exported as multi-label, each class with a probability of its own.", reason
        )
    return True


def check_probabilities(probabilities: np.ndarray, *, multi_label: bool, activation: str | None) -> None:
    """Check that outputs `(n, classes)`, after the softmax or sigmoid that the export adds for logits, can be served as probabilities.

    Unless the model is multi-label they must add up to 1. `activation` is the last one of the model, if it can be seen.

    Raises:
        ExportError: they cannot. The message names the option that helps.
    """
    low, high = float(probabilities.min()), float(probabilities.max())
    in_range = low >= 0 and high <= 1
    adds_up = np.abs(probabilities.sum(axis=1) - 1).max() <= _MAX_ROUNDING
    if in_range and (multi_label or adds_up):
        return
    found = f"The model's outputs are not probabilities: they range from {low:.3g} to {high:.3g}"
    if multi_label:
        raise ExportError(f"{found}. If the model returns logits, add --logits; each class then gets a sigmoid.")
    if in_range and activation is None:
        raise ExportError(
            f"The model's outputs range from {low:.3g} to {high:.3g} and do not add up to 1. If an image can be of several classes, "
            "so that each class has a probability of its own, add --multi-label."
        )
    raise ExportError(
        f"{found} and do not add up to 1. If the model returns logits, add --logits, and --multi-label if an image can be of "
        "several classes. Other numbers, such as embeddings or coordinates, cannot be served."
    )
