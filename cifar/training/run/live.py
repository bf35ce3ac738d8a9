"""A plot that follows a run in a notebook."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from cifar.training.run.curves import save_curves
from cifar.training.run.run_folder import Row


class LivePlot:
    """Draws loss and accuracy again after each epoch, in the same place: `train(..., on_epoch=LivePlot())`."""

    def __init__(self) -> None:
        self._place: Any = None

    def __call__(self, history: Sequence[Row]) -> None:
        """Show all epochs so far.

        Args:
            history: a row for each, as `train` hands them on.
        """
        from IPython import display  # every notebook has it, nothing else needs it

        picture = io.BytesIO()
        save_curves(history, picture)
        image = display.Image(picture.getvalue())  # type: ignore[no-untyped-call]
        if self._place is None:
            self._place = display.display(image, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._place.update(image)
