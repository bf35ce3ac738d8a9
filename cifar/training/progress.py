"""What a person sees while a network trains: a bar with the time left, and a line for each epoch; both on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import keras
from tqdm import tqdm


class Progress(keras.callbacks.Callback):  # type: ignore[misc] # Keras is untyped
    """A bar over all batches of all epochs. Without a terminal only the epoch lines are written."""

    def __init__(self, epochs: int, *, epochs_done: int) -> None:
        super().__init__()
        self._epochs = epochs
        self._epochs_done = epochs_done
        self._bar = tqdm(unit=" batches", disable=None, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Learn the number of batches, which Keras knows only now."""
        if self._bar.total is None:
            self._bar.total = self.params["steps"] * self._epochs
            self._bar.initial = self._bar.n = self.params["steps"] * self._epochs_done

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Move the bar."""
        self._bar.update()

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
