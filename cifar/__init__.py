"""Train image classifiers on CIFAR-10 or on your own folder, export them as versions, and serve them.

This file imports nothing, so that `import cifar` costs nothing. The sizes below are CIFAR's defaults: whatever
serves a model reads its sizes and class names from the model's manifest.
"""

__version__ = "0.1.0"

IMAGE_SHAPE = (32, 32, 3)
"""Height, width and channels of a CIFAR image."""

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""The ten classes in CIFAR-10's own order: position is the label."""


def __getattr__(name: str) -> object:
    """`cifar.show`, for notebooks: its libraries are imported when it is asked for."""
    if name == "show":
        from importlib import import_module

        return import_module("cifar.notebook").show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
