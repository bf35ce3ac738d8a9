"""Start from what another network has learned: with few images that is worth more than any recipe."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras
import numpy as np

from cifar.errors import TrainingError
from cifar.models.registry import MANIFEST
from cifar.training.run.run_folder import MODEL


def start_from(source: str, model: keras.Model) -> list[str]:
    """Give a new network the weights of a trained one, layer by layer, as far as their shapes agree.

    The last layer differs when the classes do, and is left as it is; so is what follows from another image size.

    Args:
        source: a version's folder, a run's folder or a `.keras` file, of the same architecture.
        model: the new network.

    Returns:
        The paths of the weights that were not taken over.

    Raises:
        TrainingError: nothing to start from is there, or no convolution agrees.
    """
    path = Path(source)
    found = _of_version(path) if (path / MANIFEST).is_file() else _of_keras(path / MODEL if path.is_dir() else path)
    ours = model.weights
    left = [variable.path for variable in ours]
    if len(found) == len(ours):
        for variable, values in zip(ours, found, strict=True):
            if variable.shape == values.shape:
                variable.assign(values)
                left.remove(variable.path)
    if not any(len(variable.shape) == 4 and variable.path not in left for variable in ours):
        raise TrainingError(
            f"{source} holds another network than --arch {model.name}: no convolution agrees. "
            "Name a version, a run or a .keras file of the same architecture."
        )
    return left


def _of_version(folder: Path) -> list[np.ndarray]:
    """The weights of a SavedModel, in the order in which the export wrote them."""
    import tensorflow as tf

    json.loads((folder / MANIFEST).read_text())
    return [variable.numpy() for variable in tf.saved_model.load(str(folder)).weights]


def _of_keras(file: Path) -> list[np.ndarray]:
    try:
        return list(keras.saving.load_model(file, compile=False).get_weights())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"There is nothing to start from at {file} ({error}). Name a version's folder, a run or a .keras file."
        ) from error
