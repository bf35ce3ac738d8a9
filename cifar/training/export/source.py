"""What can be exported: a finished run, a `.keras` file, or an `.h5` file by Keras 2 or 3."""

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
from cifar.training.network.keras2 import load_h5
from cifar.training.run.calibration import Confidence, read_confidence
from cifar.training.run.context import INPUT_RANGE
from cifar.training.run.reference import read_reference

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSource:
    """A Keras model with all that its version's manifest needs to say."""

    model: keras.Model
    class_names: tuple[str, ...]
    input_range: tuple[float, float]
    """The values that the model takes for a black and for a white pixel."""
    logits: bool
    """Whether the model's outputs still want a softmax."""
    images: dict[str, np.ndarray]
    """Real images to compare the export on: name to `(height, width, channels)` `uint8`."""
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    confidence: Confidence | None = None
    """The run's temperature and out-of-distribution score; None to export the network as it is."""
    reference: Reference | None = None
    """What the run answered to its held-out images; None for a model without a run."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one input."""
        height, width, channels = self.model.input_shape[1:]
        return height, width, channels


def read_source(
    path: Path,
    settings: Settings,
    *,
    class_names: tuple[str, ...] | None = None,
    input_range: tuple[float, float] | None = None,
    images: Path | None = None,
    logits: bool = False,
) -> ExportSource:
    """Load what is to be exported, and fill in what the caller left out.

    Args:
        path: a run folder, a `.keras` or an `.h5` file.
        settings: the folder of sample images and the pixel limit.
        class_names: in the order of the outputs. Default: the run's; CIFAR's for ten outputs of a 32x32 RGB model.
        input_range: values of a black and a white pixel. Default: the run's; (0, 255) for a model that begins by
            scaling 255 to 1; else (0, 1).
        images: a folder of real images for the comparison. Default: the run's held-out ones; else `settings.examples`.
        logits: the model ends in logits.

    Raises:
        ExportError: no such source, an unfinished run, a model that is no image classifier, or class names that do not fit.
    """
    run = _read_run(path) if path.is_dir() else {}
    model = _load_model(path / "model.keras" if path.is_dir() else path)
    _check_shapes(model)
    model = keras.Model(model.inputs[0], model.outputs[0])  # one tensor in, one out, however it was built
    names = class_names or tuple(run.get("class_names", ())) or _cifar_names(model)
    taken = input_range or (INPUT_RANGE if run else _guess_range(model))
    if not run and not (class_names and input_range):
        log.warning(
            "Taking a black pixel as %g, a white one as %g, and the classes as %s. --input-range and --classes say otherwise.",
            *taken,
            ", ".join(names),
        )
    if len(names) != model.output_shape[-1]:
        raise ExportError(
            f"{path} has {model.output_shape[-1]} outputs; {len(names)} class names were given. Name one for each: --classes A,B,..."
        )
    return ExportSource(
        model=model,
        class_names=names,
        input_range=taken,
        logits=logits,
        images=_run_samples(path)
        if run and images is None
        else _read_images(images or settings.examples, model, settings),
        metrics=run.get("metrics", {}),
        training={key: run[key] for key in ("config", "data") if key in run} or {"source": path.name},
        confidence=read_confidence(path) if run else None,
        reference=read_reference(path) if run and class_names is None else None,
    )


def _read_run(run: Path) -> dict[str, Any]:
    if not (run / "config.json").is_file():
        raise ExportError(f"{run} is no run folder: it has no config.json. Name a run, a .keras or an .h5 file.")
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
        return config | {"metrics": json.loads((run / "metrics.json").read_text())}
    except FileNotFoundError as error:
        raise ExportError(
            f"{run} is not a finished run: it has no {Path(error.filename).name}. Finish it: python -m cifar train ... --resume"
        ) from error


def _load_model(path: Path) -> keras.Model:
    if path.suffix not in {".keras", ".h5", ".hdf5"} or not path.is_file():
        raise ExportError(f"{path} is not there, or is no run folder, .keras or .h5 file.")
    try:
        return keras.saving.load_model(path, compile=False) if path.suffix == ".keras" else load_h5(path)
    except Exception as error:  # Keras raises whatever a layer or file format raises
        raise ExportError(f"Keras cannot load {path}: {error}") from error


def _check_shapes(model: keras.Model) -> None:
    if not getattr(model, "inputs", None):
        raise ExportError(
            "The model has never seen an input, so its size is unknown: call it once, or give it an Input layer."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ExportError(
            f"A model with one input and one output is expected; this has {len(model.inputs)} and {len(model.outputs)}."
        )
    shape = model.input_shape
    if len(shape) != 4 or None in shape[1:] or shape[3] not in {1, 3}:
        raise ExportError(f"The input must be (batch, height, width, 1 or 3 channels) with fixed sizes; it is {shape}.")
    if len(model.output_shape) != 2 or (model.output_shape[1] or 0) < 2:
        raise ExportError(f"The output must be (batch, classes) with at least 2 classes; it is {model.output_shape}.")


def _cifar_names(model: keras.Model) -> tuple[str, ...]:
    if model.input_shape[1:] == IMAGE_SHAPE and model.output_shape[1] == len(CLASS_NAMES):
        return CLASS_NAMES
    raise ExportError(
        f"The model has {model.output_shape[1]} classes and no names for them. Name them in order: --classes A,B,..."
    )


def _guess_range(model: keras.Model) -> tuple[float, float]:
    """(0, 255) for a model that begins by scaling raw pixels to a white of 1, (0, 1) for one that scales nothing."""
    first = next(layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer))
    if isinstance(first, keras.Model):
        return _guess_range(first)
    if not isinstance(first, keras.layers.Rescaling | keras.layers.Normalization):
        return 0.0, 1.0
    if isinstance(first, keras.layers.Rescaling) and np.allclose(
        np.multiply(first.scale, 255) + first.offset, 1, atol=0.01
    ):
        return INPUT_RANGE
    raise ExportError(
        "The model begins by scaling its input in a way of its own. Say what it takes: --input-range=LOW,HIGH"
    )


def _run_samples(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "samples.npz") as samples:
        return {f"held-out image {i}": image for i, image in enumerate(samples["images"])}


def _read_images(folder: Path, model: keras.Model, settings: Settings) -> dict[str, np.ndarray]:
    spec = ImageSpec.from_shape(model.input_shape[1:])
    found = {}
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        try:
            found[str(file)] = preprocess(file.read_bytes(), spec, max_pixels=settings.max_image_pixels)
        except CifarError:
            continue  # a README or a licence beside the images
    if not found:
        raise ExportError(
            f"{folder} holds no image to compare the export on. Name a folder of real images: --images DIR"
        )
    return found
