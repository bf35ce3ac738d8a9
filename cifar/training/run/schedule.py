"""The learning rate schedule of a run, which also decides when the run is over."""

from __future__ import annotations

import time
from typing import Any

import keras


def steps_done(model: keras.Model) -> int:
    """Return the number of optimizer steps that a compiled model has made since its run began."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


class LearningRateSchedule(keras.callbacks.Callback):  # type: ignore[misc] # Keras is untyped
    """Lowers the learning rate during a run, and ends the run.

    A run of a given number of epochs depends on its steps alone, so it can be repeated to the last bit. A run with a time
    budget follows the clock: the learning rate reaches zero when the time is over, no matter how fast the machine is or
    what else it computes meanwhile.
    """

    def __init__(
        self,
        *,
        steps: int,
        seconds: float | None,
        learning_rate: float,
        anneal: bool,
        spent_seconds: float = 0.0,
        finish_batches: float = 0.0,
    ) -> None:
        """Start the clock.

        Args:
            steps: of the whole run; ignored when there is a time budget.
            seconds: the time budget, including validation and the measuring after the last epoch, or None.
            learning_rate: the initial learning rate. May be changed between epochs.
            anneal: lower the learning rate linearly to zero; otherwise it stays constant.
            spent_seconds: the time that the run took before it was interrupted.
            finish_batches: batches of validation that measuring after the last epoch is worth.
        """
        super().__init__()
        self._steps, self._seconds = steps, seconds
        self.learning_rate = learning_rate
        self._anneal = anneal
        self._started = time.monotonic() - spent_seconds
        self._finish_batches = finish_batches
        self._finish_seconds = 0.0
        self._longest_validation = 0.0
        self._validation_batches: list[float] = []
        self._step_seconds = 0.0
        self._step_ended: float | None = None
        self.over = False
        """True when all steps are done or the time is used up."""

    @property
    def spent_seconds(self) -> float:
        """The time that the run has taken, without the time during which it was interrupted."""
        return time.monotonic() - self._started

    def done(self, steps: int) -> float:
        """Return the completed share of the run after `steps`, from 0 to 1."""
        if self._seconds is None:
            return min(1.0, steps / self._steps)
        training_seconds = self._seconds - self._longest_validation - self._finish_seconds  # the run ends with these
        return min(1.0, self.spent_seconds / training_seconds) if training_seconds > 0 else 1.0

    def seconds_left(self, steps: int) -> float:
        """Estimate the remaining time after `steps`; 0 before the first step."""
        if self._seconds is not None:
            return max(0.0, self._seconds - self.spent_seconds)
        done = self.done(steps)
        return self.spent_seconds * (1 - done) / done if done else 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure how long validation and writing the checkpoint took: that much time must be left at the end."""
        self._measure_validation()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the learning rate of the next step."""
        optimizer = self.model.optimizer
        if self._anneal:
            optimizer.learning_rate = self.learning_rate * (1 - self.done(steps_done(self.model)))
        self._step_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End the run if another step and the validation would exceed the time budget."""
        now = self._step_ended = time.monotonic()
        before, self._step_seconds = self._step_seconds, now - self._step_began
        self._end_if_over(min(before, self._step_seconds))  # the first step is slow because it compiles the model

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """End the run if another step and another validation would exceed the time budget."""
        self._measure_validation()
        self._end_if_over(self._step_seconds)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to measure a batch of the first validation."""
        self._validation_batch_began = time.monotonic()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._validation_batches.append(time.monotonic() - self._validation_batch_began)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Estimate from the first validation how long measuring takes. The first batch compiles, as measuring does."""
        if self._finish_batches and not self._finish_seconds:
            batches = sorted(self._validation_batches)
            self._finish_seconds = batches[-1] + self._finish_batches * batches[0]

    def _measure_validation(self) -> None:
        if self._step_ended is not None:
            self._longest_validation = max(self._longest_validation, time.monotonic() - self._step_ended)

    def _end_if_over(self, step_seconds: float) -> None:
        if self._seconds is None:
            self.over = steps_done(self.model) >= self._steps
        else:
            needed = step_seconds + self._longest_validation + self._finish_seconds
            self.over = self.spent_seconds + needed > self._seconds
        if self.over:
            self.model.stop_training = True
