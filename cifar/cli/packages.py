"""The packages that training needs and serving does not: what a command says without them."""

from __future__ import annotations

from importlib import util

from cifar.errors import TrainingError

_OF_TRAINING = frozenset(
    {"ai_edge_quantizer", "h5py", "keras", "matplotlib", "pyarrow", "tensorboard", "tensorflow", "tf_keras"}
)


def need_tensorflow() -> None:
    """Raise a `TrainingError` if TensorFlow is not installed, before minutes of work."""
    if not util.find_spec("tensorflow"):
        raise TrainingError(_advice("tensorflow"))


def missing(error: ModuleNotFoundError) -> str | None:
    """Return the sentence for a missing package of training; None for any other, which is a mistake in this project."""
    package = (error.name or "").partition(".")[0]
    return _advice(package) if package in _OF_TRAINING else None


def _advice(package: str) -> str:
    return (
        f"This command needs {package}, which serving does without. Install it with: make training\n"
        "It needs Python 3.11, 3.12 or 3.13. In a container, use an image of the target `full`."
    )
