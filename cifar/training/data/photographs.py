"""The choice of `--arch photo`: whether a source is a small number of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar import IMAGE_SHAPE
from cifar.console import say
from cifar.errors import BadParameter, CifarError
from cifar.images.decode import open_image
from cifar.images.spec import ImageSpec
from cifar.training.data.folders.contents import Contents
from cifar.training.data.split import evenly_spaced

PHOTO = "photo"
"""The architecture for photographs; see `cifar.training.run.photo`."""
PHOTO_SHAPE = (128, 128, 3)
"""Its input by default."""
LEAST_SIDE = 64
"""Smallest side of its input. With a smaller one, its last convolutions see a single pixel."""
MOST_PHOTOGRAPHS = 5000
"""With more pictures, a network that is trained on them alone is not at a disadvantage any more."""

_LOOKED_AT = 50
_EPOCHWISE: dict[str, object] = {
    "epochs": None,
    "batch_size": None,
    "learning_rate": None,
    "time_budget": None,
    "target_accuracy": None,
    "precision": "auto",
    "init_from": None,
    "teacher": (),
    "photo_views": 0,
    "validation_split": 0.05,
    "distribute": "none",
}
"""Settings that only a network has that is trained epoch by epoch, with their defaults."""


def epochwise(settings: Mapping[str, object]) -> list[str]:
    """Return the options that were given and that `--arch photo` does not have."""
    names = [name for name, default in _EPOCHWISE.items() if settings.get(name, default) != default]
    return [f"--{name.replace('_', '-')}" for name in names]


def refuse_epochwise(settings: Mapping[str, object]) -> None:
    """Raise a `BadParameter` that names the given options that `--arch photo` does not have, if there are any."""
    if given := epochwise(settings):
        raise BadParameter(f"--arch photo fits one layer, in one step, and has no {', '.join(given)}. Use --arch fast.")


@dataclass(frozen=True)
class NetworkChoice:
    """The choice of the network by the options, before the pictures are known."""

    arch: str | None
    """None: `arch_for` decides."""
    image_shape: tuple[int, int, int] | None
    """None: that of the network for these pictures."""

    def arch_for(self, contents: Contents) -> str:
        """Return the architecture for these pictures, and say so if a small number of photographs decided it."""
        if self.arch:
            return self.arch
        if not contents.few_photographs:
            return "fast"
        say(
            "A small number of photographs: training the last layer of a network that was pretrained on ImageNet (--arch photo). "
            "--arch fast trains from nothing."
        )
        return PHOTO


def choose_network(arch: str | None, image_size: int | None, options: Mapping[str, object]) -> NetworkChoice:
    """Choose architecture and size of the input from the options of `train`, as far as they decide.

    Without `arch` the pictures decide, unless another option shows that it is not `photo`.

    Raises:
        BadParameter: `photo` is named, with an option that it does not have.
    """
    if arch == PHOTO:
        refuse_epochwise(options)
    if arch is None and (epochwise(options) or (image_size or LEAST_SIDE) < LEAST_SIDE):
        arch = "fast"
    if image_size:
        return NetworkChoice(arch, (image_size, image_size, 3))
    return NetworkChoice(arch, {None: None, PHOTO: PHOTO_SHAPE}.get(arch, IMAGE_SHAPE))


def are_few_photographs(files: Sequence[Path], max_pixels: int) -> bool:
    """Return whether there are fewer than `MOST_PHOTOGRAPHS` pictures, most of them larger than CIFAR's.

    The headers of at most 50 pictures are read.
    """
    if len(files) >= MOST_PHOTOGRAPHS:
        return False
    sides = [
        side for number in evenly_spaced(len(files), _LOOKED_AT) if (side := _shorter_side(files[number], max_pixels))
    ]
    return bool(sides) and float(np.median(sides)) > IMAGE_SHAPE[0]


def _shorter_side(file: Path, max_pixels: int) -> int:
    """Return the shorter side of a picture in pixels, as it is decoded for the input; 0 for a damaged one."""
    try:
        return min(open_image(file.read_bytes(), ImageSpec.from_shape(PHOTO_SHAPE), max_pixels=max_pixels).size)
    except (CifarError, OSError):
        return 0
