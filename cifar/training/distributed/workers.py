"""The processes and devices that train one network together, by TensorFlow's own distribution strategies."""

from __future__ import annotations

import atexit
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from cifar.console import say
from cifar.errors import TrainingError
from cifar.training.distributed.cluster import read_cluster

Distribution = Literal["none", "mirrored", "multiworker"]
SEED = "seed_generator_state"
"""How the paths of the variables end from which random layers draw."""


@dataclass(frozen=True)
class Workers:
    """This process among those that train together; all of its methods are called by all of them, in the same order."""

    strategy: tf.distribute.Strategy
    count: int = 1
    """Processes."""
    index: int = 0
    """Which of them this one is; 0 is the chief, which alone writes."""

    @property
    def is_chief(self) -> bool:
        """Whether this process reads and writes the run's folder."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """Copies of the network: one for each device of each process."""
        return int(self.strategy.num_replicas_in_sync)

    def agree(self, facts: dict[str, Any]) -> None:
        """See that all were given the same.

        Raises:
            TrainingError: they were not; it names what differs.
        """
        for index, others in enumerate(self._said(facts)):
            for name, value in facts.items():
                if others[name] != json.loads(json.dumps(value)):
                    raise TrainingError(
                        f"Worker {self.index} has {name} {value}, worker {index} has {others[name]}. "
                        "Start all workers with the same command and the same data."
                    )

    def from_chief(self, value: Any) -> Any:
        """What the chief gave here, of values that JSON can hold."""
        return self._said(value if self.is_chief else None)[0] if self.count > 1 else value

    def share_state(self, model: keras.Model) -> None:
        """Give all the chief's weights and the state of its optimizer."""
        if self.count == 1:
            return
        for variable in [*model.variables, *model.optimizer.variables]:
            if not variable.path.endswith(SEED):  # each has its own, and starts it anew each epoch
                variable.assign(self._chiefs(variable.value))

    def _chiefs(self, tensor: tf.Tensor) -> tf.Tensor:
        def total() -> tf.Tensor:
            here = tf.distribute.get_replica_context()
            own = tf.convert_to_tensor(tensor)
            return here.all_reduce("sum", own if here.replica_id_in_sync_group == 0 else tf.zeros_like(own))

        return self.strategy.experimental_local_results(self.strategy.run(total))[0]

    def _said(self, value: Any) -> list[Any]:
        """What each worker says, in their order."""
        if self.count == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)  # collectives know no bytes

        def gathered() -> tuple[tf.Tensor, tf.Tensor]:
            here = tf.distribute.get_replica_context()
            return here.all_gather(tf.constant(text), 0), here.all_gather(tf.constant([len(text)]), 0)

        texts, lengths = (
            self.strategy.experimental_local_results(each)[0].numpy() for each in self.strategy.run(gathered)
        )
        each = np.split(texts.astype(np.uint8), np.cumsum(lengths)[:-1])
        return [json.loads(one.tobytes()) for one in each[:: self.replicas // self.count]]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn what TensorFlow says when another worker went away into a sentence."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.count == 1:
                raise
            reason = error.message.rpartition("aborted by: ")[2].strip().partition("\n")[0]
            raise TrainingError(
                f"Worker {self.index} of {self.count} lost another one ({reason}). "
                "What the whole epochs gave is kept by worker 0; start all again with the same command and --resume."
            ) from error


def join(kind: Distribution, tf_config: str | None) -> Workers:
    """Find the others. With several processes this has to come before anything else that TensorFlow does.

    Args:
        kind: `none`: one device. `mirrored`: all GPUs of this machine, or, without one, all processors that TensorFlow
            was told of. `multiworker`: the processes of `tf_config`, each with its GPUs or its processor.
        tf_config: the value of the environment variable TF_CONFIG, which TensorFlow reads too.

    Raises:
        TrainingError: with `multiworker`, TF_CONFIG cannot be used.
    """
    if kind == "none":
        return Workers(tf.distribute.get_strategy())
    tf.get_logger().setLevel("ERROR")  # it warns of each call outside a function, of which there are some at the start
    cluster = read_cluster(tf_config) if kind == "multiworker" else None
    if not cluster or len(cluster.addresses) == 1:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Workers(tf.distribute.MirroredStrategy([device.name for device in devices]))
    count = len(cluster.addresses)
    atexit.register(setattr, sys, "unraisablehook", lambda _: None)  # TensorFlow's thread pools complain when they go
    say(f"worker {cluster.index} of {count}, waits for all: {', '.join(cluster.addresses)}")
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would not be called before all are there
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGINT, heard)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # TensorFlow takes it as a warning of preemption, and goes on
    return Workers(strategy, count, cluster.index)
