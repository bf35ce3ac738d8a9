"""Reads the model to export and the data for its manifest: from a run, a Keras file, a SavedModel or a version."""

from __future__ import annotations

import json
import logging
import shlex
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
from cifar.training.export.class_names import abridged, read_class_names
from cifar.training.export.pixels.decide import Ask, FoundPreparation, find_preparation, warn_if_one_label
from cifar.training.export.pixels.labelled import read_labelled
from cifar.training.export.pixels.preparation import Preparation, range_of
from cifar.training.export.reading.classifier import Classifier, adapt, with_logits
from cifar.training.export.reading.files import Format, recognise
from cifar.training.export.reading.load import load
from cifar.training.export.reading.network import NO_OPTIONS, ReadOptions
from cifar.training.export.task import is_multi_label
from cifar.training.network.architectures import INPUT_RANGE
from cifar.training.run.calibration import (
    CONFIDENCE_FILE,
    FEWEST_HELD_OUT,
    Confidence,
    read_confidence,
    without_score,
)
from cifar.training.run.reference import read_reference
from cifar.training.run.run_folder import CONFIG, METRICS, SAMPLES

log = logging.getLogger(__name__)

_COMPARED = 10
"""Number of pictures of `--check` that are added to the comparison images."""
_CLASS_FILES = frozenset({"labels.txt", "classes.txt", "class_names.txt", "labels.json", "class_indices.json"})
"""Names that tools and tutorials give to a file of class names beside a model."""


@dataclass(frozen=True)
class ExportSource:
    """A classifier with the information that its version's manifest holds."""

    model: Classifier
    class_names: tuple[str, ...]
    pixels: FoundPreparation
    """The preparation of the pixels before they enter the model."""
    images: dict[str, np.ndarray]
    """Real images on which the export is compared with the model: `(height, width, channels)` `uint8`, by name."""
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    confidence: Confidence | None = None
    """The run's temperature and out-of-distribution score; None to export the network without them."""
    reference: Reference | None = None
    """The reference distribution for drift, from the run's held-out images; None for a model without a run."""
    multi_label: bool = False
    """True if each class has a probability of its own. Otherwise those of an image add up to 1."""
    options: ReadOptions = NO_OPTIONS
    """The options that the model was read with."""


def read_source(
    path: Path,
    settings: Settings,
    *,
    class_names: tuple[str, ...] | None = None,
    input_range: Preparation | tuple[float, float] | None = None,
    check: Path | None = None,
    ask: Ask | None = None,
    images: Path | None = None,
    logits: bool = False,
    multi_label: bool = False,
    options: ReadOptions = NO_OPTIONS,
) -> ExportSource:
    """Load a model for export.

    Args:
        path: a run folder, a Keras file of any version, a SavedModel folder or a version's folder.
        settings: the folder of sample images, and the pixel limit.
        class_names: in the order of the outputs. Default: those of the run or version, or CIFAR's for a 32x32 RGB model with
            ten outputs.
        input_range: the values of a black and a white pixel, or another preparation of the pixels. Default: that of the run or
            version, or what the layers of the model show.
        check: a folder of labelled pictures that decide the preparation.
        ask: asks a person for the preparation if neither the model nor an option tells it.
        images: a folder of real images for the comparison. Default: the run's held-out images, or `settings.examples`.
        logits: whether the model returns logits. Default: what the loss in the file says.
        multi_label: whether each class has a probability of its own. Default: what the last layer and the loss say.
        options: facts about shapes and layers that the file does not contain.

    Raises:
        ExportError: `path` does not exist, the run is unfinished, the model is not an image classifier, the number of class
            names is wrong, or the preparation of the pixels is unknown.
    """
    run = _read_run(path) if recognise(path) is Format.RUN else {}
    network = load(path, options)
    model = with_logits(adapt(network, options), network, logits)
    names = class_names or tuple(run.get("class_names", ())) or network.class_names or _cifar_names(model, path)
    _check_number(names, model, path)
    use_run = bool(run) and images is None
    samples = _run_samples(path) if use_run else _read_images(images or settings.examples, model.image, settings)
    known_range = INPUT_RANGE if run else network.input_range
    labelled = read_labelled(check, names, model.image, max_pixels=settings.max_image_pixels) if check else None
    if labelled:
        samples |= labelled.some(_COMPARED)
        if labelled.left_out:
            log.warning("%s", labelled.left_out)
    if known_range and not input_range:
        pixels = FoundPreparation(range_of(*known_range), "run" if run else "version")
    else:
        named = range_of(*input_range) if isinstance(input_range, tuple) else input_range
        familiar = images is not None or set(names) == set(CLASS_NAMES)
        pixels = find_preparation(model, names, samples, named=named, labelled=labelled, ask=ask, familiar=familiar)
    model = model if model.alpha is None else replace(model, alpha=pixels.preparation.white)
    if not known_range:
        _log_assumptions(model, pixels, names, assumed_names=not class_names)
        warn_if_one_label(model, pixels, names, samples, labelled)
    return ExportSource(
        model=model,
        class_names=names,
        pixels=pixels,
        images=samples,
        metrics=run.get("metrics", {}),
        training={key: run[key] for key in ("config", "data") if key in run} or {"source": path.name},
        confidence=_confidence(path, run["metrics"]) if run else None,
        reference=read_reference(path) if run and class_names is None else None,
        multi_label=is_multi_label(model, network, multi_label),
        options=options,
    )


def _confidence(run: Path, metrics: dict[str, Any]) -> Confidence | None:
    """Return the confidence of a run; None, with a warning, if it has too few held-out images or is too old."""
    held_out = metrics.get("validation_images", FEWEST_HELD_OUT)
    confidence = read_confidence(run)
    if held_out < FEWEST_HELD_OUT:
        log.warning("%s", without_score(held_out))
    elif confidence is None and (run / CONFIDENCE_FILE).is_file():
        log.warning(
            "%s has the out-of-distribution score of an earlier release. The version gets no such score, and its confidence is "
            "not calibrated. Train again.",
            run,
        )
    return confidence


def _log_assumptions(
    model: Classifier, pixels: FoundPreparation, names: tuple[str, ...], *, assumed_names: bool
) -> None:
    if pixels.found_by == "layers":
        log.warning("Pixels are prepared as %s: %s.", pixels.preparation.name, pixels.evidence)
    if assumed_names:
        log.warning("Assuming %s. Change this with --classes.", abridged(names))
    if model.columns == 1:
        log.warning(
            "The one output is taken as the probability of %s, and 1 minus it as that of %s.", names[1], names[0]
        )


def _check_number(names: tuple[str, ...], model: Classifier, path: Path) -> None:
    if len(names) != model.classes:
        raise ExportError(
            f"{path} has {model.classes} {'classes' if model.columns == 1 else 'outputs'}, but {len(names)} class names were given: "
            f"{abridged(names)}. Give one for each, in the order of the outputs: --classes A,B,..., a file or an image folder."
        )


def _read_run(run: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((run / CONFIG).read_text())
        return config | {"metrics": json.loads((run / METRICS).read_text())}
    except FileNotFoundError as error:
        raise ExportError(
            f"{run} is not a finished run: it has no {Path(error.filename).name}. Finish it with: python -m cifar train ... --resume"
        ) from error


def _cifar_names(model: Classifier, path: Path) -> tuple[str, ...]:
    if model.image.shape == IMAGE_SHAPE and model.classes == len(CLASS_NAMES):
        return CLASS_NAMES
    files = [file for file in path.parent.iterdir() if file.name in _CLASS_FILES and _holds(file, model.classes)]
    beside = f" They may be in {files[0]}: --classes {shlex.quote(str(files[0]))}" if files else ""
    raise ExportError(
        f"The names of the model's {model.classes} classes are unknown. Name them in order: --classes A,B,..., or a file, or an image "
        f"folder.{beside}"
    )


def _holds(file: Path, number: int) -> bool:
    try:
        return len(read_class_names(str(file))) == number
    except ExportError:
        return False


def _run_samples(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / SAMPLES) as samples:
        return {f"held-out image {number}": image for number, image in enumerate(samples["images"])}


def _read_images(folder: Path, spec: ImageSpec, settings: Settings) -> dict[str, np.ndarray]:
    images = {}
    for file in sorted(each for each in folder.glob("*") if each.is_file()):
        try:
            images[str(file)] = preprocess(file.read_bytes(), spec, max_pixels=settings.max_image_pixels)
        except CifarError:
            continue  # not an image, for example a README
    if not images:
        raise ExportError(f"{folder} holds no image to compare the export with. Name a folder of images: --images DIR")
    return images
