"""Read the model to export, with all that its version needs: from a run, a Keras file, a SavedModel or a version."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cifar import CLASS_NAMES, IMAGE_SHAPE
from cifar.errors import CifarError, ExportError
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.models.manifest import Reference
from cifar.settings import Settings
from cifar.training.export.reading.classifier import Classifier, adapt, with_logits
from cifar.training.export.reading.files import Format, recognise
from cifar.training.export.reading.load import load
from cifar.training.export.reading.network import NO_OPTIONS, ReadOptions
from cifar.training.network.architectures import INPUT_RANGE
from cifar.training.run.calibration import Confidence, read_confidence
from cifar.training.run.reference import read_reference

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSource:
    """A classifier with the information that its version's manifest holds."""

    model: Classifier
    class_names: tuple[str, ...]
    input_range: tuple[float, float]
    """The values of a black and of a white pixel that the model expects."""
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
        return self.model.image

    @property
    def logits(self) -> bool:
        """Whether the model returns logits, so that the export must add a softmax."""
        return self.model.logits


def read_source(
    path: Path,
    settings: Settings,
    *,
    class_names: tuple[str, ...] | None = None,
    input_range: tuple[float, float] | None = None,
    images: Path | None = None,
    logits: bool = False,
    options: ReadOptions = NO_OPTIONS,
) -> ExportSource:
    """Load a model for export.

    Args:
        path: a run folder, a Keras file of any version, a SavedModel folder or a version's folder.
        settings: the folder of sample images, and the pixel limit.
        class_names: in the order of the outputs. Default: those of the run or version, or CIFAR's for a 32x32 RGB model with
            ten outputs.
        input_range: the values of a black and a white pixel. Default: that of the run; (0, 255) for a model whose first layer
            scales 255 to 1; otherwise (0, 1).
        images: a folder of real images for the comparison. Default: the run's held-out images, or `settings.examples`.
        logits: whether the model returns logits. Default: what the loss in the file says.
        options: what the file does not say about its shapes and layers.

    Raises:
        ExportError: `path` does not exist, the run is unfinished, the model is not an image classifier, or the number of class
            names is wrong.
    """
    path = path.parent if path.name == "saved_model.pb" else path
    run = _read_run(path) if recognise(path) is Format.RUN else {}
    network = load(path, options)
    model = with_logits(adapt(network, options), network, logits)
    names = class_names or tuple(run.get("class_names", ())) or network.class_names or _cifar_names(model)
    if len(names) != model.classes:
        raise ExportError(
            f"{path} has {model.classes} {'classes' if model.columns == 1 else 'outputs'}, but {len(names)} class names were given. "
            "Name one for each: --classes A,B,..."
        )
    if model.columns == 1:
        log.warning(
            "The one output is taken as the probability of %s, and 1 minus it as that of %s.", names[1], names[0]
        )
    chosen_range = input_range or network.input_range or (INPUT_RANGE if run else _guess_range(model))
    if not run and not (class_names and input_range):
        log.warning(
            "Assuming %g for a black pixel, %g for a white pixel, and the classes %s. Change this with --input-range and --classes.",
            *chosen_range,
            ", ".join(names),
        )
    from_run = bool(run) and images is None
    return ExportSource(
        model=model if model.alpha is None else replace(model, alpha=chosen_range[1]),
        class_names=names,
        input_range=chosen_range,
        images=_run_samples(path) if from_run else _read_images(images or settings.examples, model.image, settings),
        metrics=run.get("metrics", {}),
        training={key: run[key] for key in ("config", "data") if key in run} or {"source": path.name},
        confidence=read_confidence(path) if run else None,
        reference=read_reference(path) if run and class_names is None else None,
    )


def _read_run(run: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
        return config | {"metrics": json.loads((run / "metrics.json").read_text())}
    except FileNotFoundError as error:
        raise ExportError(
            f"{run} is not a finished run: it has no {Path(error.filename).name}. Finish it with: python -m cifar train ... --resume"
        ) from error


def _cifar_names(model: Classifier) -> tuple[str, ...]:
    if model.image.shape == IMAGE_SHAPE and model.classes == len(CLASS_NAMES):
        return CLASS_NAMES
    raise ExportError(
        f"The names of the model's {model.classes} classes are unknown. Name them in order: --classes A,B,..."
    )


def _guess_range(model: Any) -> tuple[float, float]:
    """Return (0, 255) for a model whose first layer scales 255 to 1, or (0, 1) for a model without a scaling layer."""
    layers = getattr(model.layers, "layers", model.layers) or []
    first = next((layer for layer in layers if type(layer).__name__ != "InputLayer"), None)
    if hasattr(first, "layers"):
        return _guess_range(first)
    rescaling = type(first).__name__ == "Rescaling"
    if rescaling and np.allclose(np.multiply(first.scale, 255) + first.offset, 1, atol=0.01):
        return INPUT_RANGE
    if rescaling or type(first).__name__ == "Normalization":
        raise ExportError(
            "The first layer of the model scales its input in an unknown way. Name the values of a black and a white pixel: "
            "--input-range=LOW,HIGH"
        )
    return 0.0, 1.0


def _run_samples(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "samples.npz") as samples:
        return {f"held-out image {number}": image for number, image in enumerate(samples["images"])}


def _read_images(folder: Path, spec: ImageSpec, settings: Settings) -> dict[str, np.ndarray]:
    images = {}
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        try:
            images[str(file)] = preprocess(file.read_bytes(), spec, max_pixels=settings.max_image_pixels)
        except CifarError:
            continue  # not an image, for example a README
    if not images:
        raise ExportError(f"{folder} holds no image to compare the export with. Name a folder of images: --images DIR")
    return images
