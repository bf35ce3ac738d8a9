"""Batch normalization with TensorFlow's fused kernel.

Keras 3.15 composes it from a dozen TensorFlow operations, which take four times as long on CPUs.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_EPSILON = 1e-3
_MOMENTUM = 0.6
"""Batches are large and few, so the moving averages must adapt quickly."""
RECALIBRATION_BATCHES = 6


def batch_normalization(*, fused: bool) -> keras.Layer:
    """Return a layer that normalizes and shifts but does not scale, since the next convolution can scale.

    With `fused`, it is the fast layer if the backend is TensorFlow. Keras's own layer has the same weights, and a file with it can be
    loaded without this package.
    """
    use_fused = fused and keras.backend.backend() == "tensorflow"
    layer = FusedBatchNormalization if use_fused else keras.layers.BatchNormalization
    return layer(scale=False, momentum=_MOMENTUM, epsilon=_EPSILON)


@keras.saving.register_keras_serializable("cifar")
class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc] # Keras is untyped
    """`BatchNormalization` with TensorFlow's fused kernel, which takes bfloat16 inputs and keeps float32 averages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32", "synchronized": True})
        self.autocast = False  # otherwise Keras casts the inputs to float32

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize over all axes except the last."""
        import tensorflow as tf

        if training and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return super().call(inputs, training, mask)  # over the images of all replicas
        # In training, the kernel computes mean and variance itself and expects empty inputs.
        mean_in, variance_in = ([], []) if training else (self.moving_mean.value, self.moving_variance.value)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones_like(self.moving_mean.value),
            offset=self.beta.value,
            mean=mean_in,
            variance=variance_in,
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            for average, of_batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + of_batch * (1 - self.momentum))
        return outputs


class RecalibrateBatchNorm(keras.callbacks.Callback):  # type: ignore[misc] # Keras is untyped
    """Updates the moving averages of batch normalization before each validation.

    At a high learning rate they lag so far behind the weights that validation accuracy would be close to chance.
    """

    def __init__(self, images: np.ndarray) -> None:
        """Take the training images to compute the averages from: `(n, height, width, channels)`, at most a few batches."""
        super().__init__()
        # Each batch takes every sixth image: data sets may be ordered by class, and a batch needs images of all classes.
        count = min(RECALIBRATION_BATCHES, len(images))
        self._batches = [images[start::RECALIBRATION_BATCHES] for start in range(count)]

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Run the model on the images in training mode, without changing its weights."""
        if any(isinstance(layer, keras.layers.BatchNormalization) for layer in self.model.layers):
            for batch in self._batches:
                self.model.distribute_strategy.run(self.model, (batch.astype(np.float32),), {"training": True})
