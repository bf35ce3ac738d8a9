"""The progress of a training run on stderr: a bar with the remaining time, and one line per epoch."""

from __future__ import annotations

import sys
from typing import Any

import keras
from tqdm import tqdm

from cifar.training.run.run_folder import Row
from cifar.training.run.schedule import LearningRateSchedule, steps_done


class Progress(keras.callbacks.Callback):  # type: ignore[misc] # Keras is untyped
    """A progress bar over the whole run. Without a terminal, only the lines of the epochs are written."""

    def __init__(self, schedule: LearningRateSchedule) -> None:
        super().__init__()
        self._schedule = schedule
        self._bar = tqdm(
            total=100, disable=None, leave=False, bar_format="{percentage:3.0f} % |{bar}| about {desc} left"
        )

    def close(self) -> None:
        self._bar.close()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        steps = steps_done(self.model)
        self._bar.desc = _minutes(self._schedule.seconds_left(steps))
        self._bar.update(100 * self._schedule.done(steps) - self._bar.n)

    def print_epoch(self, row: Row) -> None:
        left = self._schedule.seconds_left(int(row["steps"]))
        tqdm.write(
            f"epoch {int(row['epoch'])}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}, "
            f"validation accuracy {row['val_accuracy']:.3f}, {row['seconds']:.1f} s"
            + (f", about {_minutes(left)} left" if left >= 1 and not self._schedule.over else ""),
            file=sys.stderr,
        )


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"
