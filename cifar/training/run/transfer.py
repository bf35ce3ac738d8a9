"""Transfer learning: start from the weights of another trained model, which helps most when there are few images."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np

from cifar.errors import TrainingError
from cifar.models.registry import MANIFEST, Registry
from cifar.training.run.devices import SEED_GENERATOR_STATE
from cifar.training.run.run_folder import MODEL


def copy_weights(source: str, model: keras.Model) -> None:
    """Copy the weights of a trained model of the same architecture, except those whose shapes differ.

    The last layer keeps its initial weights if the number of classes differs.

    Args:
        source: a version's folder, a run folder or a `.keras` file.
        model: the new model.

    Raises:
        TrainingError: `source` holds no model, or no convolution of it has the same shape.
        VersionUnusable: a file of the version differs from the manifest. The version was not loaded.
    """
    path = Path(source)
    if (path / MANIFEST).is_file():
        weights = _version_weights(path)
    else:
        weights = _keras_weights(path / MODEL if path.is_dir() else path)
    copied_convolution = False
    if len(weights) == len(model.weights):
        for variable, values in zip(model.weights, weights, strict=True):
            if variable.shape == values.shape:
                variable.assign(values)
                copied_convolution |= values.ndim == 4
    if not copied_convolution:
        raise TrainingError(
            f"{source} is not a model of --arch {model.name}: no convolution has the same shape. "
            "Name a version, a run or a .keras file of the same architecture."
        )


def _version_weights(folder: Path) -> list[np.ndarray]:
    """Load the weights of an exported version, in the order in which the export wrote them."""
    import tensorflow as tf

    folder = folder.resolve()
    version = Registry(folder.parent.parent, folder.parent.name).get_folder(folder.name)
    version.verify()  # before loading: a SavedModel can run any code
    variables = tf.saved_model.load(str(folder)).weights
    return [variable.numpy() for variable in variables if SEED_GENERATOR_STATE not in variable.name]


def _keras_weights(file: Path) -> list[np.ndarray]:
    try:
        return list(keras.saving.load_model(file, compile=False).get_weights())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"No model could be loaded from {file} ({error}). Name a version's folder, a run or a .keras file."
        ) from error
