"""Images that a network was not trained on, to judge its int8 file on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cifar.settings import Settings
from cifar.training.data.split import evenly_spaced
from cifar.training.export.pixels.labelled import read_labelled
from cifar.training.export.reading.files import Format, recognise
from cifar.training.export.source import ExportSource
from cifar.training.run.run_folder import SAMPLES

_MAX_PICTURES = 2500


@dataclass(frozen=True)
class HeldOut:
    """Images that the network was not trained on."""

    images: np.ndarray
    """`(n, height, width, channels)` `uint8`."""
    labels: np.ndarray | None
    """`(n,)`, positions of the true classes; None if they are unknown."""
    source: str
    """The origin of the images, for the manifest."""

    def some(self, count: int) -> HeldOut:
        """Return at most `count` images, evenly spaced."""
        chosen = evenly_spaced(len(self.images), count)
        return replace(self, images=self.images[chosen], labels=None if self.labels is None else self.labels[chosen])


def read_held_out(path: Path, source: ExportSource, settings: Settings, *, labelled: Path | None = None) -> HeldOut:
    """Read images to judge int8 on: from a folder if there is one, else those of the run at `path`, else the comparison images without labels.

    Of the folder `labelled`, with pictures of each class, at most 2,500 are read.

    Raises:
        ExportError: no picture in the folder is labelled.
    """
    if labelled:
        limits = {"max_pixels": settings.max_image_pixels, "limit": _MAX_PICTURES}
        read = read_labelled(labelled, source.class_names, source.model.image, **limits)
        return HeldOut(read.images, read.labels, f"pictures in {labelled.name}")
    if recognise(path) is Format.RUN:
        with np.load(path / SAMPLES) as samples:
            if "held_out_images" in samples:  # a run from before 2026-11-26 has only samples
                return HeldOut(samples["held_out_images"], samples["held_out_labels"], "held-out images of the run")
    return HeldOut(np.stack(list(source.images.values())), None, "comparison images")
