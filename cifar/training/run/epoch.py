"""One epoch: by Keras's `fit` on one device, by a loop around Keras's own steps on several.

Keras 3.15 can fit on several devices of one machine, but not of several machines: `fit` averages batches and metrics in
ways that `MultiWorkerMirroredStrategy` refuses (https://github.com/keras-team/keras/issues/20585). Its `train_step` and
`test_step` are made to be run in a strategy, and are all that the loop here needs, on one machine and on several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Pairs = tuple[np.ndarray, np.ndarray]
"""Images `(n, height, width, channels)` `uint8`, and labels `(n, classes)` `float32`."""


class Fitting:
    """Fits a network on one device."""

    def __init__(
        self, model: keras.Model, held_out: Pairs, batch_size: int, callbacks: Sequence[keras.callbacks.Callback]
    ) -> None:
        """Remember what all epochs share.

        Args:
            model: a compiled network.
            held_out: what to measure after each epoch.
            batch_size: of the held-out images.
            callbacks: told of what happens.
        """
        self._model, self._held_out, self._batch_size, self._callbacks = model, held_out, batch_size, list(callbacks)

    def epoch(self, pairs: Pairs, *, epoch: int, batch_size: int) -> dict[str, float]:
        """Fit one epoch, in the order of the images.

        Returns:
            Loss and metrics, those of the held-out images as `val_...`.
        """
        result = self._model.fit(
            *pairs,
            batch_size=batch_size,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            validation_data=self._held_out,
            validation_batch_size=self._batch_size,
            callbacks=self._callbacks,
            verbose=0,
        )
        return {name: values[0] for name, values in result.history.items()}


class FittingTogether(Fitting):
    """Fits a network on all devices of its strategy: each takes its share of every batch, and gradients are added up.

    Batches and images must go into the devices without a remainder; of held-out images there must be one for each.
    """

    def __init__(
        self, model: keras.Model, held_out: Pairs, batch_size: int, callbacks: Sequence[keras.callbacks.Callback]
    ) -> None:
        """Make what Keras would make while it traces, where a strategy allows no new variables."""
        super().__init__(model, held_out, batch_size, callbacks)
        self._strategy = model.distribute_strategy
        with self._strategy.scope():
            model.compute_metrics(None, held_out[1][:1], held_out[1][:1])
        self._train, self._test = (
            tf.function(lambda *pair, step=step: self._strategy.run(step, (pair,)), reduce_retracing=True)
            for step in (model.train_step, model.test_step)
        )

    def epoch(self, pairs: Pairs, *, epoch: int, batch_size: int) -> dict[str, float]:
        """As `Fitting.epoch`."""
        model, told = self._model, keras.callbacks.CallbackList(self._callbacks, model=self._model)
        model.stop_training = False
        told.on_train_begin()
        told.on_epoch_begin(epoch)
        model.reset_metrics()
        for place, batch in enumerate(_batches(pairs, range(batch_size, len(pairs[0]), batch_size))):
            told.on_train_batch_begin(place)
            self._train(*map(self._shared_out, batch))
            told.on_train_batch_end(place)
            if model.stop_training:
                break
        logs = _metrics(model)
        told.on_test_begin()
        model.reset_metrics()
        count = len(self._held_out[0])
        # Even batches rather than a small last one, of which some devices would get nothing.
        for batch in _batches(
            self._held_out, np.linspace(0, count, max(2, count // self._batch_size + 1), dtype=int)[1:-1]
        ):
            self._test(*map(self._shared_out, batch))
        logs |= {f"val_{name}": value for name, value in _metrics(model).items()}
        told.on_test_end(logs)
        told.on_epoch_end(epoch, logs)
        told.on_train_end(logs)
        return logs

    def _shared_out(self, rows: np.ndarray) -> Any:
        """What each device here gets of a batch that all devices share."""
        parts = np.array_split(rows, self._strategy.num_replicas_in_sync)
        return self._strategy.experimental_distribute_values_from_function(
            lambda device: tf.constant(parts[device.replica_id_in_sync_group])
        )


def _batches(pairs: Pairs, ends: Iterable[int]) -> Iterator[Pairs]:
    images, labels = (np.split(each, list(ends)) for each in pairs)
    return zip(images, labels, strict=True)


def _metrics(model: keras.Model) -> dict[str, float]:
    return {name: float(value) for name, value in model.get_metrics_result().items()}
