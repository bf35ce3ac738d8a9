"""What a person sees while a network trains: a bar with the time left, and a line for each epoch; both on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import keras
from tqdm import tqdm


class Progress:
    """A bar over all batches of all epochs. Without a terminal only the epoch lines are written."""

    def __init__(self, epochs: int, *, epochs_done: int) -> None:
        self._epochs = epochs
        self._epochs_done = epochs_done
        self._bar = tqdm(unit=" batches", disable=None, leave=False)
        self.callback = keras.callbacks.LambdaCallback(
            on_train_begin=self._size_bar, on_train_batch_end=self._batch_done
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def epoch_done(self, row: dict[str, float]) -> None:
        """Write one line: loss, accuracy, validation accuracy, and the time left at this epoch's pace."""
        epoch = int(row["epoch"])
        left = round(row["seconds"] * (self._epochs - epoch))
        tqdm.write(
            f"epoch {epoch}/{self._epochs}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}, "
            f"validation accuracy {row['val_accuracy']:.3f}, {row['seconds']:.1f} s"
            + (f", about {left // 60} min {left % 60} s left" if left else ""),
            file=sys.stderr,
        )

    def _size_bar(self, _logs: dict[str, Any] | None = None) -> None:
        steps = self.callback.params["steps"]
        if steps and self._bar.total is None:
            self._bar.total = steps * self._epochs
            self._bar.initial = self._bar.n = steps * self._epochs_done

    def _batch_done(self, _batch: int, _logs: dict[str, Any] | None = None) -> None:
        self._bar.update()
