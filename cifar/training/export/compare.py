"""Comparison of the exported files with the model, on real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from cifar.errors import ExportError
from cifar.format import png

TOLERANCE = 5e-5
"""Largest accepted difference of a probability: half of the last digit that answers show. See `tolerance_for`."""

_SPREADS = 5
"""Largest accepted difference, as a multiple of the spread of the model's own answers."""

MAX_TOLERANCE = 1e-3
"""Upper limit of the accepted difference. A model whose own answers differ more is random."""

SCORE_TOLERANCE = 1e-3
"""Largest accepted difference of an `ood_score`, relative for scores above 1. Sums in several threads round differently."""

Outputs = Mapping[str, Any]
"""Outputs by name: `probabilities` `(n, classes)`, and `ood_score` `(n,)` if the version has one."""


@dataclass(frozen=True)
class Comparison:
    """Images, and the outputs of the model for them."""

    names: Sequence[str]
    images: np.ndarray
    """`(n, height, width, channels)` `uint8`."""
    expected: Outputs
    tolerance: float = TOLERANCE
    """Largest accepted difference of a probability."""

    @property
    def has_score(self) -> bool:
        return "ood_score" in self.expected

    def differences(self, file: str, outputs: Outputs) -> dict[str, float]:
        """Return the largest difference of each output of the signature or file called `file`.

        Raises:
            ExportError: a difference exceeds its tolerance. The message names the image.
        """
        found, expected = np.asarray(outputs["probabilities"]), self.expected["probabilities"]
        largest = {"probabilities": self._largest(self.tolerance, np.abs(found - expected).max(axis=1), file)}
        if self.has_score:
            scores = self.expected["ood_score"]
            relative = np.abs(np.asarray(outputs["ood_score"]) - scores) / np.maximum(1, np.abs(scores))
            largest["ood_score"] = self._largest(SCORE_TOLERANCE, relative, f"ood_score of {file}")
        return largest

    def rows_differences(self, file: str, rows: np.ndarray) -> dict[str, float]:
        """Return the same for rows as the engines return them: the probabilities, and the score if there is one."""
        classes = self.expected["probabilities"].shape[1]
        return self.differences(file, {"probabilities": rows[:, :classes], "ood_score": rows[:, -1]})

    def _largest(self, tolerance: float, differences: np.ndarray, name: str) -> float:
        worst = int(differences.argmax())
        if not differences[worst] <= tolerance:  # also true for NaN
            raise ExportError(
                f"The reloaded {name} differs from the model by {differences[worst]:.3g} on {self.names[worst]}; "
                f"at most {tolerance:g} is accepted. No version was written."
            )
        return float(differences[worst])


def tolerance_for(expected: np.ndarray, *again: np.ndarray) -> float:
    """Return the largest difference to accept, from the spread of the model's own probabilities `(n, classes)`.

    Deep networks amplify the rounding errors of their first layers, and every program rounds in another order.
    """
    spread = max(float(np.abs(each - expected).max()) for each in again)
    return min(max(TOLERANCE, _SPREADS * spread), MAX_TOLERANCE)


def compare_signatures(comparison: Comparison, signatures: Any) -> dict[str, Any]:
    """Compare the outputs of every signature of a SavedModel, and return the differences for the manifest.

    Raises:
        ExportError: an output differs. The message names the signature, the image and the difference.
    """
    images = comparison.images
    files = tf.constant([png(image) for image in images])
    one_by_one = [signatures["serving_uint8"](image=tf.constant(image[None])) for image in images]
    outputs = {
        "serving_uint8": signatures["serving_uint8"](image=tf.constant(images)),
        "serving_uint8, one by one": {
            name: np.concatenate([one[name] for one in one_by_one]) for name in comparison.expected
        },
        "serving_default": signatures["serving_default"](input_image=tf.constant(images, tf.float32) / 255),
        "serving_bytes": signatures["serving_bytes"](image_bytes=files),
    }
    together, alone = (outputs[name]["probabilities"] for name in ("serving_uint8", "serving_uint8, one by one"))
    if (difference := float(np.abs(together - alone).max())) > MAX_TOLERANCE:
        raise ExportError(
            f"The model's answer to a picture depends on the other pictures of its batch, by up to {difference:.2g}: a layer acts as in "
            "training (BatchNormalization that is called with training=True) or takes a mean or a maximum over all pictures. Save the "
            "model without that."
        )
    largest = [comparison.differences(name, found) for name, found in outputs.items()]
    parity = {"images": len(images), "max_abs_difference": max(each["probabilities"] for each in largest)}
    if comparison.has_score:
        parity["ood_score_max_difference"] = max(each["ood_score"] for each in largest)
        parity["ood_score_tolerance"] = SCORE_TOLERANCE
    return parity | {"tolerance": comparison.tolerance, "compared": list(outputs)}
