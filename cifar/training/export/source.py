"""Load the model to export: from a finished run, a `.keras` file, or an `.h5` file of Keras 2 or 3."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar import CLASS_NAMES, IMAGE_SHAPE
from cifar.errors import CifarError, ExportError
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.models.manifest import Reference
from cifar.settings import Settings
from cifar.training.network.architectures import INPUT_RANGE
from cifar.training.network.keras2 import load_h5
from cifar.training.run.calibration import Confidence, read_confidence
from cifar.training.run.reference import read_reference

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSource:
    """A Keras model with the information that its version's manifest holds."""

    model: keras.Model
    class_names: tuple[str, ...]
    input_range: tuple[float, float]
    """The values of a black and of a white pixel that the model expects."""
    logits: bool
    """True if the model returns logits, so that the export must add a softmax."""
    images: dict[str, np.ndarray]
    """Real images on which the export is compared with the model: `(height, width, channels)` `uint8`, by name."""
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    confidence: Confidence | None = None
    """The run's temperature and out-of-distribution score; None to export the network without them."""
    reference: Reference | None = None
    """The reference distribution for drift, from the run's held-out images; None for a model without a run."""

    @property
    def spec(self) -> ImageSpec:
        """The size of one input image."""
        return ImageSpec.from_shape(self.model.input_shape[1:])


def read_source(
    path: Path,
    settings: Settings,
    *,
    class_names: tuple[str, ...] | None = None,
    input_range: tuple[float, float] | None = None,
    images: Path | None = None,
    logits: bool = False,
) -> ExportSource:
    """Load a model for export.

    Args:
        path: a run folder, a `.keras` file or an `.h5` file.
        settings: the folder of sample images, and the pixel limit.
        class_names: in the order of the outputs. Default: those of the run, or CIFAR's for a 32x32 RGB model with ten outputs.
        input_range: the values of a black and a white pixel. Default: that of the run; (0, 255) for a model whose first layer
            scales 255 to 1; otherwise (0, 1).
        images: a folder of real images for the comparison. Default: the run's held-out images, or `settings.examples`.
        logits: whether the model returns logits.

    Raises:
        ExportError: `path` does not exist, the run is unfinished, the model is not an image classifier, or the number of class
            names is wrong.
    """
    run = _read_run(path) if path.is_dir() else {}
    model = _load_model(path / "model.keras" if path.is_dir() else path)
    _check_shapes(model)
    model = keras.Model(model.inputs[0], model.outputs[0])  # a model may take and return lists
    names = class_names or tuple(run.get("class_names", ())) or _cifar_names(model)
    chosen_range = input_range or (INPUT_RANGE if run else _guess_range(model))
    if not run and not (class_names and input_range):
        log.warning(
            "Assuming %g for a black pixel, %g for a white pixel, and the classes %s. Change this with --input-range and --classes.",
            *chosen_range,
            ", ".join(names),
        )
    if len(names) != model.output_shape[-1]:
        raise ExportError(
            f"{path} has {model.output_shape[-1]} outputs, but {len(names)} class names were given. Name one for each: --classes A,B,..."
        )
    from_run = bool(run) and images is None
    return ExportSource(
        model=model,
        class_names=names,
        input_range=chosen_range,
        logits=logits,
        images=_run_samples(path) if from_run else _read_images(images or settings.examples, model, settings),
        metrics=run.get("metrics", {}),
        training={key: run[key] for key in ("config", "data") if key in run} or {"source": path.name},
        confidence=read_confidence(path) if run else None,
        reference=read_reference(path) if run and class_names is None else None,
    )


def _read_run(run: Path) -> dict[str, Any]:
    if not (run / "config.json").is_file():
        raise ExportError(
            f"{run} is not a run folder: it has no config.json. Name a run, a .keras file or an .h5 file."
        )
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
        return config | {"metrics": json.loads((run / "metrics.json").read_text())}
    except FileNotFoundError as error:
        raise ExportError(
            f"{run} is not a finished run: it has no {Path(error.filename).name}. Finish it with: python -m cifar train ... --resume"
        ) from error


def _load_model(path: Path) -> keras.Model:
    if path.suffix not in {".keras", ".h5", ".hdf5"} or not path.is_file():
        raise ExportError(f"{path} does not exist, or is not a run folder, a .keras file or an .h5 file.")
    try:
        return keras.saving.load_model(path, compile=False) if path.suffix == ".keras" else load_h5(path)
    except Exception as error:  # Keras passes on any exception of a layer or of the file format
        raise ExportError(f"Keras cannot load {path}: {error}") from error


def _check_shapes(model: keras.Model) -> None:
    if not getattr(model, "inputs", None):
        raise ExportError(
            "The input size of the model is unknown. Add an Input layer, or call the model once before saving it."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ExportError(
            f"Expected a model with one input and one output; this model has {len(model.inputs)} and {len(model.outputs)}."
        )
    shape = model.input_shape
    if len(shape) != 4 or None in shape[1:] or shape[3] not in {1, 3}:
        raise ExportError(f"Expected an input (batch, height, width, 1 or 3 channels) with fixed sizes; got {shape}.")
    if len(model.output_shape) != 2 or (model.output_shape[1] or 0) < 2:
        raise ExportError(f"Expected an output (batch, classes) with at least 2 classes; got {model.output_shape}.")


def _cifar_names(model: keras.Model) -> tuple[str, ...]:
    if model.input_shape[1:] == IMAGE_SHAPE and model.output_shape[1] == len(CLASS_NAMES):
        return CLASS_NAMES
    raise ExportError(
        f"The names of the model's {model.output_shape[1]} classes are unknown. Name them in order: --classes A,B,..."
    )


def _guess_range(model: keras.Model) -> tuple[float, float]:
    """Return (0, 255) for a model whose first layer scales 255 to 1, or (0, 1) for a model without a scaling layer."""
    first = next(layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer))
    if isinstance(first, keras.Model):
        return _guess_range(first)
    rescaling = isinstance(first, keras.layers.Rescaling)
    if rescaling and np.allclose(np.multiply(first.scale, 255) + first.offset, 1, atol=0.01):
        return INPUT_RANGE
    if rescaling or isinstance(first, keras.layers.Normalization):
        raise ExportError(
            "The first layer of the model scales its input in an unknown way. Name the values of a black and a white pixel: "
            "--input-range=LOW,HIGH"
        )
    return 0.0, 1.0


def _run_samples(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "samples.npz") as samples:
        return {f"held-out image {number}": image for number, image in enumerate(samples["images"])}


def _read_images(folder: Path, model: keras.Model, settings: Settings) -> dict[str, np.ndarray]:
    spec = ImageSpec.from_shape(model.input_shape[1:])
    images = {}
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        try:
            images[str(file)] = preprocess(file.read_bytes(), spec, max_pixels=settings.max_image_pixels)
        except CifarError:
            continue  # not an image, for example a README
    if not images:
        raise ExportError(f"{folder} holds no image to compare the export with. Name a folder of images: --images DIR")
    return images
