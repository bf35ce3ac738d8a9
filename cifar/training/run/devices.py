"""The device that a run is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np

from cifar.training.run.run_folder import Row

SEED_GENERATOR_STATE = "seed_generator_state"
"""The paths of the variables that hold the state of random layers, such as dropout, end with this."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Images `(n, height, width, channels)` `uint8`, and one-hot labels `(n, classes)` `float32`."""


class Devices:
    """One device of this process, chosen by TensorFlow.

    `cifar.training.distributed` overrides every method to train on several devices or machines.
    """

    def evenly(self, images: int) -> int:
        """Return the largest number up to `images` that can be divided evenly among the devices."""
        return images

    def build(self, make: Callable[[], keras.Model]) -> keras.Model:
        """Call `make` where the variables of a model to train have to be created."""
        return make()

    def start(self, model: keras.Model, history: list[Row]) -> list[Row]:
        """Prepare to train a compiled model whose weights are set; return the history to continue."""
        return history

    def fit_epoch(
        self,
        model: keras.Model,
        training: Pairs,
        validation: Pairs,
        *,
        number: int,
        batch_size: int,
        validation_batch_size: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> dict[str, float]:
        """Train one epoch of the model that was given to `start`, with the images in the given order, then validate.

        The number of the epoch is from 0. The batch size of the validation changes the result only by rounding. The names of loss and
        metrics on validation images begin with `val_`.
        """
        result = model.fit(
            *training,
            batch_size=batch_size,
            initial_epoch=number,
            epochs=number + 1,
            shuffle=False,
            validation_data=validation,
            validation_batch_size=validation_batch_size,
            callbacks=list(callbacks),
            verbose=0,
        )
        return {name: values[0] for name, values in result.history.items()}
