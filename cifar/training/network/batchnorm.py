"""Batch normalization in one step.

Keras 3.15 writes it as a dozen operations on TensorFlow, which takes four times as long on processors.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_EPSILON = 1e-3
_MOMENTUM = 0.6
"""Batches are large, and few: the averages have to follow."""
_SETTLING_BATCHES = 6


def batch_normalization(*, fused: bool) -> keras.Layer:
    """A layer that normalizes and shifts but does not scale: what follows is a convolution with a scale of its own.

    Args:
        fused: take the fast layer, where there is one; Keras's own has the same weights, and anybody can load it.
    """
    here = fused and keras.backend.backend() == "tensorflow"
    kind = FusedBatchNormalization if here else keras.layers.BatchNormalization
    return kind(scale=False, momentum=_MOMENTUM, epsilon=_EPSILON)


@keras.saving.register_keras_serializable("cifar")
class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc] # Keras is untyped
    """`BatchNormalization` by TensorFlow's own kernel, which takes bfloat16 and keeps float32 averages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32", "synchronized": True})
        self.autocast = False  # Keras would cast what comes to float32

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize over all axes but the last."""
        import tensorflow as tf

        if training and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return super().call(inputs, training, mask)  # by the images of all replicas
        known = [[], []] if training else [self.moving_mean.value, self.moving_variance.value]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones_like(self.moving_mean.value),
            offset=self.beta.value,
            mean=known[0],
            variance=known[1],
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            for average, of_batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + of_batch * (1 - self.momentum))
        return outputs


class RecalibrateBatchNorm(keras.callbacks.Callback):  # type: ignore[misc] # Keras is untyped
    """Brings the averages of batch normalization up to date before each validation.

    At a high learning rate they lag so far behind the weights that validation would show chance.
    """

    def __init__(self, images: np.ndarray) -> None:
        """Remember what to look at: `(n, height, width, channels)`, a few batches' worth or less."""
        super().__init__()
        # Every sixth: data sets are in the order of their classes, and a batch of one class would settle on it.
        self._batches = [images[start::_SETTLING_BATCHES] for start in range(min(_SETTLING_BATCHES, len(images)))]

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Look at some images without learning from them."""
        if any(isinstance(layer, keras.layers.BatchNormalization) for layer in self.model.layers):
            for batch in self._batches:
                self.model.distribute_strategy.run(self.model, (batch.astype(np.float32),), {"training": True})
