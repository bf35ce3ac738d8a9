"""The loss of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class WeightedCrossentropy(keras.losses.CategoricalCrossentropy):  # type: ignore[misc] # Keras is untyped
    """Cross-entropy in which each image counts with the weight of its class."""

    def __init__(self, weights: Sequence[float], **options: Any) -> None:
        super().__init__(**options)
        self._weights = list(weights)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each image, `(n,)`, for one-hot labels and probabilities `(n, classes)`."""
        weights = ops.sum(y_true * ops.convert_to_tensor(self._weights, y_true.dtype), axis=-1)
        return super().call(y_true, y_pred) * weights

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weights": self._weights}
