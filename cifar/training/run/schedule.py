"""How far a run is, by steps or by the clock, and the learning rate that goes with it."""

from __future__ import annotations

import time
from typing import Any

import keras


def steps_done(model: keras.Model) -> int:
    """Updates that a compiled network has had, on one device or on several."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


class LearningRateSchedule(keras.callbacks.Callback):  # type: ignore[misc] # Keras is untyped
    """Lowers the learning rate while a run goes on, and ends it.

    A run of so many epochs goes by its steps, so it can be repeated to the last bit. A run of so many seconds goes by
    the clock: however fast the machine is, and whatever else it does meanwhile, the learning rate arrives at zero when
    the time is over.
    """

    def __init__(
        self, *, steps: int, seconds: float | None, learning_rate: float, anneal: bool, spent_seconds: float = 0.0
    ) -> None:
        """Start, or go on.

        Args:
            steps: of the whole run, when `seconds` is None.
            seconds: the run's time, validation included; None to go by steps.
            learning_rate: at the start.
            anneal: lower it to zero in a straight line; otherwise it stays.
            spent_seconds: what the run took before it was interrupted.
        """
        super().__init__()
        self._steps, self._seconds = steps, seconds
        self.learning_rate = learning_rate
        """At the start; that of a step follows from it."""
        self._anneal = anneal
        self._started = time.monotonic() - spent_seconds
        self._longest_break = 0.0
        self._step_seconds = 0.0
        self._step_ended: float | None = None
        self.over = False
        """Whether the run's steps are done, or its time used up."""

    @property
    def spent_seconds(self) -> float:
        """Since the run began, without the time it was interrupted."""
        return time.monotonic() - self._started

    def done(self, steps: int) -> float:
        """The share of the run that is over after `steps`, from 0 to 1."""
        if self._seconds is None:
            return min(1.0, steps / self._steps)
        to_train = self._seconds - self._longest_break  # the last validation trains nothing
        return min(1.0, self.spent_seconds / to_train) if to_train > 0 else 1.0

    def seconds_left(self, steps: int) -> float:
        """An estimate, at the run's own pace."""
        if self._seconds is not None:
            return max(0.0, self._seconds - self.spent_seconds)
        done = self.done(steps)
        return self.spent_seconds * (1 - done) / done if done else 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Learn how long validation and the checkpoint take, for which time must be left."""
        self._learn_break()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the learning rate of this step."""
        optimizer = self.model.optimizer
        if self._anneal:
            optimizer.learning_rate = self.learning_rate * (1 - self.done(steps_done(self.model)))
        self._step_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End the run when the next step and the validation would not fit in its time."""
        now = self._step_ended = time.monotonic()
        before, self._step_seconds = self._step_seconds, now - self._step_began
        self._end_in_time(min(before, self._step_seconds))  # the first step compiles the network

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """End the run when one more step, and then validation again, would not fit."""
        self._learn_break()
        self._end_in_time(self._step_seconds)

    def _learn_break(self) -> None:
        if self._step_ended is not None:
            self._longest_break = max(self._longest_break, time.monotonic() - self._step_ended)

    def _end_in_time(self, step_seconds: float) -> None:
        if self._seconds is None:
            self.over = steps_done(self.model) >= self._steps
        else:
            self.over = self.spent_seconds + step_seconds + self._longest_break > self._seconds
        if self.over:
            self.model.stop_training = True
