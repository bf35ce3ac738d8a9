"""Learning from other trained models: start from the weights of one, or learn the answers of larger ones (distillation)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar.errors import TrainingError
from cifar.files import sha256
from cifar.models.registry import MANIFEST, Registry
from cifar.training.data.dataset import Dataset
from cifar.training.run.calibration import calibrated, read_confidence
from cifar.training.run.devices import SEED_GENERATOR_STATE
from cifar.training.run.run_folder import CONFIG, MODEL

_LABEL_SHARE = 0.1
"""Weight of the label in what a network learns; the teachers' answers have the rest."""
_BATCH = 500


def copy_weights(source: str, model: keras.Model) -> None:
    """Copy the weights of a version's folder, a run folder or a `.keras` file of the same architecture, except those whose shapes differ.

    The last layer keeps its initial weights if the number of classes differs.

    Raises:
        TrainingError: `source` holds no model, or no convolution of it has the same shape.
        VersionUnusable: a file of the version differs from the manifest. The version was not loaded.
    """
    path = Path(source)
    if (path / MANIFEST).is_file():
        weights = _version_weights(path)
    else:
        weights = list(_load(model_file(source), "Name a version's folder, a run or a .keras file.").get_weights())
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


class Teachers:
    """Trained networks whose mean answer another network learns instead of the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    def __init__(self, sources: Sequence[str], dataset: Dataset, validation_split: float, seed: int) -> None:
        """Load the networks, which take pixels in [0, 255], from run folders or `.keras` files.

        Share and seed of the run choose its held-out images, which a teacher may not have seen.

        Raises:
            TrainingError: there is no network, it has other classes, takes images of another size, or was trained on images
                that this run holds out.
        """
        self._networks = [_teacher(source, dataset, validation_split, seed) for source in sources]

    def targets(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return what to learn for images `(n, height, width, channels)` `uint8`: the mean of the calibrated answers, and a tenth of the label.

        The labels are one-hot, and the result is probabilities, both `(n, classes)` `float32`.
        """
        answers = [
            keras.ops.convert_to_numpy(calibrated(network.predict(images, _BATCH, verbose=0), temperature))
            for network, temperature in self._networks
        ]
        targets: np.ndarray = (1 - _LABEL_SHARE) * np.mean(answers, axis=0) + _LABEL_SHARE * labels
        return targets.astype(np.float32)


def teacher_digests(sources: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each teacher's file, to recognise the same teachers."""
    digests = []
    for source in sources:
        try:
            digests.append(sha256(model_file(source)))
        except OSError as error:
            raise TrainingError(
                f"--teacher {source}: {error.strerror}. Name a finished run or a .keras file."
            ) from error
    return digests


def model_file(source: str) -> Path:
    """Return the `.keras` file of a run folder, or the file itself."""
    path = Path(source)
    return path / MODEL if path.is_dir() else path


def _teacher(source: str, dataset: Dataset, validation_split: float, seed: int) -> tuple[keras.Model, float]:
    """Return a network and the temperature that was fitted to it, if any."""
    file = model_file(source)
    network = _load(file, "Name a finished run or a .keras file with --teacher.")
    classes, names = network.output_shape[-1], list(dataset.class_names)
    shape, of_run = network.input_shape[1:], file.name == MODEL and (file.parent / CONFIG).is_file()
    about: dict[str, Any] = json.loads((file.parent / CONFIG).read_text()) if of_run else {"class_names": names}
    if classes != len(names) or about["class_names"] != names:
        has = ", ".join(about["class_names"]) if of_run else f"{classes} outputs"
        raise TrainingError(f"--teacher {source} has other classes ({has}) than the data ({', '.join(names)}).")
    if shape != dataset.image_shape:
        raise TrainingError(
            f"--teacher {source} takes images of {shape}; those of this run have {dataset.image_shape}."
        )
    if of_run and dataset.validation is None and about["data"]["fingerprint"] == dataset.fingerprint():
        its = about["config"]
        if (its["validation_split"], its["seed"]) != (validation_split, seed):
            raise TrainingError(
                f"--teacher {source} was trained on images that this run holds out: it had --seed {its['seed']} and "
                f"--validation-split {its['validation_split']}. Use the same here; for other teachers, vary --batch-size."
            )
    confidence = read_confidence(file.parent) if of_run else None
    return network, confidence.temperature if confidence else 1.0


def _load(file: Path, advice: str) -> keras.Model:
    try:
        return keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(f"No model could be loaded from {file} ({error}). {advice}") from error
