"""The processes and devices that train one model together, with TensorFlow's distribution strategies."""

from __future__ import annotations

import atexit
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from cifar.console import say
from cifar.errors import TrainingError
from cifar.training.distributed.cluster import read_cluster
from cifar.training.run.devices import SEED_GENERATOR_STATE, Devices, Pairs
from cifar.training.run.run_folder import Row


@dataclass
class Workers(Devices):
    """This process as one of the workers that train together. Each worker has one or more devices.

    The workers share out each batch and add up the gradients, so that the result is that of one device, except for rounding
    and for the units that dropout drops. All workers call the same methods in the same order.

    Keras 3.15's `fit` works on several devices of one machine, but not on several machines: it averages batches and metrics
    in ways that `MultiWorkerMirroredStrategy` refuses (https://github.com/keras-team/keras/issues/20585). Keras's
    `train_step` and `test_step` do work within a strategy, so `fit_epoch` is a loop around them.
    """

    strategy: tf.distribute.Strategy
    count: int = 1
    """Number of workers, that is, of processes."""
    index: int = 0
    """This worker's number, from 0. Worker 0 is the chief, the only one that reads and writes the run folder."""
    _train_step: Callable[..., None] = field(init=False, repr=False)
    _test_step: Callable[..., None] = field(init=False, repr=False)

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @property
    def replicas(self) -> int:
        """Copies of the model: one for each device of each worker."""
        return int(self.strategy.num_replicas_in_sync)

    def evenly(self, images: int) -> int:
        """As `Devices.evenly`, but at least one image for each device."""
        return max(self.replicas, images - images % self.replicas)

    def build(self, make: Callable[[], keras.Model]) -> keras.Model:
        """As `Devices.build`, within the scope of the strategy."""
        with self.strategy.scope():
            return make()

    def start(self, model: keras.Model, history: list[Row]) -> list[Row]:
        """Copy the chief's weights and optimizer state to all workers, and return the chief's history."""
        if self.count > 1:
            for variable in [*model.variables, *model.optimizer.variables]:
                if not variable.path.endswith(SEED_GENERATOR_STATE):  # set anew in each epoch
                    variable.assign(self._value_on_chief(variable.value))
        with self.strategy.scope():  # create the metrics' variables now: a compiled step may not do it
            labels = np.zeros((1, model.output_shape[-1]), np.float32)
            model.compute_metrics(None, labels, labels)
        self._train_step, self._test_step = (
            tf.function(lambda *pair, step=step: self.strategy.run(step, (pair,)), reduce_retracing=True)
            for step in (model.train_step, model.test_step)
        )
        history_of_chief: list[Row] = self.from_chief(history)
        return history_of_chief

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
        """As `Devices.fit_epoch`. Each device takes an equal share of every batch.

        Batch size and images must be divisible by the number of devices. There must be a validation image for each device.

        Raises:
            TrainingError: another worker was lost.
        """
        called = keras.callbacks.CallbackList(list(callbacks), model=model)
        for variable in model.variables:
            if self.index and variable.path.endswith(SEED_GENERATOR_STATE):  # each worker drops other units
                variable.assign(keras.ops.convert_to_numpy(variable) + np.uint32(self.index))
        with self.lost_workers_reported():
            model.stop_training = False
            called.on_train_begin()
            called.on_epoch_begin(number)
            model.reset_metrics()
            for step, batch in enumerate(_batches(training, range(batch_size, len(training[0]), batch_size))):
                called.on_train_batch_begin(step)
                self._train_step(*map(self._share_out, batch))
                called.on_train_batch_end(step)
                if model.stop_training:
                    break
            logs = _metrics(model)
            called.on_test_begin()
            model.reset_metrics()
            # Batches of about equal size: a small last one might have no image for some devices.
            count = len(validation[0])
            ends = np.linspace(0, count, max(2, count // validation_batch_size + 1), dtype=int)[1:-1]
            for step, batch in enumerate(_batches(validation, ends)):
                called.on_test_batch_begin(step)
                self._test_step(*map(self._share_out, batch))
                called.on_test_batch_end(step)
            logs |= {f"val_{name}": value for name, value in _metrics(model).items()}
            called.on_test_end(logs)
            called.on_epoch_end(number, logs)
            called.on_train_end(logs)
        return logs

    def check_agreement(self, facts: dict[str, Any]) -> None:
        """Raise a `TrainingError` that names the first difference if the workers were started with other settings or data."""
        own = json.loads(json.dumps(facts))  # a tuple arrives as a list
        for index, others in enumerate(self._gather(own)):
            for name, value in own.items():
                if others[name] != value:
                    raise TrainingError(
                        f"Worker {self.index} has {name} {value}, worker {index} has {others[name]}. "
                        "Start all workers with the same command and the same data."
                    )

    def from_chief(self, value: Any) -> Any:
        """Return the chief's `value`, which must be valid JSON. All workers have to call this; it waits for the others."""
        return self._gather(value if self.is_chief else None)[0]

    @contextmanager
    def lost_workers_reported(self) -> Iterator[None]:
        """Convert the errors that TensorFlow raises when another worker is lost to a `TrainingError`."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.count == 1:
                raise
            reason = error.message.rpartition("aborted by: ")[2].strip().partition("\n")[0]
            raise TrainingError(
                f"Worker {self.index} of {self.count} lost another worker ({reason}). "
                "Worker 0 keeps the complete epochs. Start all workers again with the same command and --resume."
            ) from error

    def _share_out(self, rows: np.ndarray) -> Any:
        """Return the part of a batch for each device of this worker."""
        parts = np.array_split(rows, self.replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda device: tf.constant(parts[device.replica_id_in_sync_group])
        )

    def _value_on_chief(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the chief's value of a tensor, as a sum to which the other devices add zero."""

        def total() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            own = tf.convert_to_tensor(tensor)
            return context.all_reduce("sum", own if context.replica_id_in_sync_group == 0 else tf.zeros_like(own))

        return self.strategy.experimental_local_results(self.strategy.run(total))[0]

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all workers, in their order."""
        if self.count == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)  # bytes cannot be gathered

        def gathered() -> tuple[tf.Tensor, tf.Tensor]:
            context = tf.distribute.get_replica_context()
            return context.all_gather(tf.constant(text), 0), context.all_gather(tf.constant([len(text)]), 0)

        texts, lengths = (
            self.strategy.experimental_local_results(result)[0].numpy() for result in self.strategy.run(gathered)
        )
        by_device = np.split(texts.astype(np.uint8), np.cumsum(lengths)[:-1])
        return [json.loads(each.tobytes()) for each in by_device[:: self.replicas // self.count]]


def join(kind: Literal["mirrored", "multiworker"], tf_config: str | None) -> Workers:
    """Connect to the other workers. With several processes, call this before anything else of TensorFlow.

    Args:
        kind: `mirrored`: all GPUs of this machine, or, without a GPU, all CPU devices that TensorFlow is configured with.
            `multiworker`: the processes in `tf_config`, each with its GPUs or its CPU.
        tf_config: the value of the environment variable TF_CONFIG, which TensorFlow reads too.

    Raises:
        TrainingError: with `multiworker`, TF_CONFIG cannot be used.
    """
    tf.get_logger().setLevel("ERROR")  # otherwise it warns of every collective operation outside a tf.function
    cluster = read_cluster(tf_config) if kind == "multiworker" else None
    if not cluster or len(cluster.addresses) == 1:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Workers(tf.distribute.MirroredStrategy([device.name for device in devices]))
    count = len(cluster.addresses)
    atexit.register(setattr, sys, "unraisablehook", lambda _: None)  # TensorFlow's thread pools print errors at exit
    say(f"Worker {cluster.index} of {count} waits for all workers: {', '.join(cluster.addresses)}")
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would not run while TensorFlow waits
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # TensorFlow treats it as a preemption notice and continues
    return Workers(strategy, count, cluster.index)


def _batches(pairs: Pairs, ends: Iterable[int]) -> Iterator[Pairs]:
    images, labels = (np.split(each, list(ends)) for each in pairs)
    return zip(images, labels, strict=True)


def _metrics(model: keras.Model) -> dict[str, float]:
    return {name: float(value) for name, value in model.get_metrics_result().items()}
