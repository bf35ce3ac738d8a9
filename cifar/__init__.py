"""Train image classifiers on CIFAR-10 or on your own folder of images, export them as versions, and serve them.

`import cifar` imports no other library. The size and the classes below are defaults for CIFAR-10; a server takes both
from the manifest of the version that it serves.
"""

import os

__version__ = "0.1.0"

IMAGE_SHAPE = (32, 32, 3)
"""Height, width and channels of a CIFAR image."""

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The ten classes in CIFAR-10's order: a label is an index into this tuple."""

# TensorFlow's errors are raised as exceptions too. Its other messages, such as a graph optimizer's, only look alarming.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads this when it is imported


def __getattr__(name: str) -> object:
    """Import `cifar.show`, the function for notebooks, on first use: it needs NumPy and Pillow."""
    if name == "show":
        from cifar.notebook import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
