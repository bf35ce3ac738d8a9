"""Write a Keras model as the next version of the registry, and check the written files against the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cifar.errors import ExportError
from cifar.files import sha256, temporary_folder
from cifar.format import png
from cifar.models.engines import LITERT_FILE, litert_from
from cifar.models.manifest import ConfidenceInfo, FileInfo, Manifest, SignatureInfo, TensorInfo
from cifar.models.registry import MANIFEST, Registry, Version, is_version_number, model_files
from cifar.training.export.source import ExportSource
from cifar.training.libraries import library_versions
from cifar.training.run.calibration import calibrated, ood_score, with_features

log = logging.getLogger(__name__)

TOLERANCE = 5e-5
"""Largest accepted difference of a probability: half of the last digit that answers show."""

SCORE_TOLERANCE = 1e-3
"""Largest accepted difference of an `ood_score`, relative for scores above 1. Sums in several threads differ in their last digits."""

Outputs = dict[str, np.ndarray]
"""Outputs by name: `probabilities` `(n, classes)`, and `ood_score` `(n,)` if the source has a confidence."""

PREPROCESSING = "upright by EXIF, on white where transparent, squashed to the input size (bilinear), uint8"


def export(source: ExportSource, registry: Path, name: str) -> Version:
    """Write `source` as the next version of `name` under `registry`.

    The SavedModel is written to a hidden folder, loaded again, and compared with the model on real images, as one batch and one
    by one. Only then is `manifest.json` written and the folder renamed to its number. A failure or a crash at any point leaves no
    version, and a version is never overwritten.

    Raises:
        ExportError: the model's outputs are not probabilities, or the reloaded model gives other outputs. The message names the
            image and the difference.
    """
    expected = _expected(source)
    base = Registry(registry, name).base
    base.mkdir(parents=True, exist_ok=True)
    with temporary_folder(base) as folder:
        write_saved_model(source, folder)
        reloaded = tf.saved_model.load(str(folder))
        parity = _compare(source, expected, reloaded.signatures)
        parity["litert_max_abs_difference"] = _write_litert(source, expected, reloaded.signatures, folder)
        return _publish(source, folder, base, parity, _signatures(reloaded.signatures))


def _expected(source: ExportSource) -> Outputs:
    """Return the model's own outputs for the comparison images."""
    images = np.stack(list(source.images.values())).astype(np.float32)
    network = _exported_function(source)
    outputs = {name: keras.ops.convert_to_numpy(value) for name, value in network(images / 255).items()}
    probabilities = outputs["probabilities"]
    if not all(np.isfinite(value).all() for value in outputs.values()):
        raise ExportError("The model returns NaN or infinity: its training failed, or --input-range is wrong.")
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        raise ExportError(
            f"The model's outputs are not probabilities: they range from {probabilities.min():.3g} to {probabilities.max():.3g} and "
            "do not add up to 1. If the model returns logits, add --logits."
        )
    return outputs


def _exported_function(
    source: ExportSource, arrays: Mapping[str, Any] | None = None
) -> Callable[[Any], dict[str, Any]]:
    """Return the function that is exported: from float images in [0, 1] to output tensors by name.

    Args:
        source: the model and its confidence.
        arrays: the parameters of the out-of-distribution score, as variables. Default: the arrays of the confidence.
    """
    low, high = source.input_range
    confidence = source.confidence
    scored = with_features(source.model.layers) if confidence else None

    def answer(unit_images: Any) -> dict[str, Any]:
        pixels = unit_images * (high - low) + low
        if confidence is None or scored is None:
            outputs = source.model(pixels)
            return {"probabilities": keras.ops.softmax(outputs) if source.logits else outputs}
        features, probabilities = scored(pixels, training=False)
        return {
            "probabilities": calibrated(probabilities, confidence.temperature),
            "ood_score": ood_score(features, confidence, arrays or confidence.arrays),
        }

    return answer


def write_saved_model(source: ExportSource, folder: Path) -> None:
    """Write the network with three signatures: for float images, for uint8 images, and for encoded files."""
    height, width, channels = source.spec.shape
    # tf.saved_model.save, because keras.export.ExportArchive writes every weight twice. The arrays of the score are variables,
    # because constants are written once per signature.
    module = tf.Module()
    module.weights = list(source.model.variables)
    module.confidence = {
        name: tf.Variable(array, trainable=False)
        for name, array in (source.confidence.arrays if source.confidence else {}).items()
    }
    network = _exported_function(source, module.confidence)

    def from_floats(input_image: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(input_image)

    def from_pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(tf.cast(image, tf.float32) / 255)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        # decode_jpeg also reads PNG files. INTEGER_ACCURATE is the transform that Pillow uses.
        image = tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")
        resized = tf.image.resize(image, (height, width), method="bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

    def from_files(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec((height, width, channels), tf.uint8))
        classes = tf.tile(tf.constant([source.class_names]), (tf.shape(image_bytes)[0], 1))
        return {**from_pixels(images), "classes": classes}

    shape = (None, height, width, channels)
    endpoints = {
        "serving_default": (from_floats, tf.TensorSpec(shape, tf.float32, "input_image")),
        "serving_uint8": (from_pixels, tf.TensorSpec(shape, tf.uint8, "image")),
        "serving_bytes": (from_files, tf.TensorSpec((None,), tf.string, "image_bytes")),
    }
    signatures = {name: tf.function(function, input_signature=[spec]) for name, (function, spec) in endpoints.items()}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _compare(source: ExportSource, expected: Outputs, signatures: Any) -> dict[str, Any]:
    """Compare the outputs of every signature with those of the model.

    Raises:
        ExportError: an output differs. The message names the signature, the image and the difference.
    """
    images = np.stack(list(source.images.values()))
    files = tf.constant([png(image) for image in images])
    one_by_one = [signatures["serving_uint8"](image=tf.constant(image[None])) for image in images]
    outputs = {
        "serving_uint8": signatures["serving_uint8"](image=tf.constant(images)),
        "serving_uint8, one by one": {name: np.concatenate([one[name] for one in one_by_one]) for name in expected},
        "serving_default": signatures["serving_default"](input_image=tf.constant(images, tf.float32) / 255),
        "serving_bytes": signatures["serving_bytes"](image_bytes=files),
    }
    largest = [_differences(source, name, found, expected) for name, found in outputs.items()]
    parity = {"images": len(images), "max_abs_difference": max(each["probabilities"] for each in largest)}
    if source.confidence:
        parity["ood_score_max_difference"] = max(each["ood_score"] for each in largest)
        parity["ood_score_tolerance"] = SCORE_TOLERANCE
    return parity | {"tolerance": TOLERANCE, "compared": list(outputs)}


def _write_litert(source: ExportSource, expected: Outputs, signatures: Any, folder: Path) -> float | None:
    """Write the network as a LiteRT file, and compare the outputs of that file with those of the model.

    Returns:
        The largest difference of a probability, or None if LiteRT cannot run the network, so that TensorFlow must serve it.

    Raises:
        ExportError: LiteRT gives other outputs. The message names the image and the difference.
    """
    # The weights are frozen into constants first: without that, the converted file has no weights and its outputs are NaN.
    frozen = convert_variables_to_constants_v2(signatures["serving_uint8"])
    images = np.stack(list(source.images.values()))
    try:
        content = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
        rows = litert_from(content)(images)
    except Exception as error:  # the converter raises several types for an operation that LiteRT does not have
        log.warning("LiteRT cannot run this network (%s). The version is served with TensorFlow.", type(error).__name__)
        return None
    file = folder / LITERT_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    classes = len(source.class_names)
    outputs = {
        "probabilities": rows[:, :classes],
        "ood_score": rows[:, classes:].squeeze(1) if source.confidence else None,
    }
    return _differences(source, "LiteRT file", outputs, expected)["probabilities"]


def _differences(source: ExportSource, name: str, outputs: Any, expected: Outputs) -> dict[str, float]:
    """Return the largest difference of each output of the signature or file called `name`.

    Raises:
        ExportError: a difference exceeds its tolerance.
    """
    differences = np.abs(np.asarray(outputs["probabilities"]) - expected["probabilities"]).max(axis=1)
    largest = {"probabilities": _largest_within(TOLERANCE, differences, name, source)}
    if source.confidence:
        scores = expected["ood_score"]
        differences = np.abs(np.asarray(outputs["ood_score"]) - scores) / np.maximum(1, np.abs(scores))
        largest["ood_score"] = _largest_within(SCORE_TOLERANCE, differences, f"ood_score of {name}", source)
    return largest


def _largest_within(tolerance: float, differences: np.ndarray, name: str, source: ExportSource) -> float:
    worst = int(differences.argmax())
    if not differences[worst] <= tolerance:  # also true for NaN
        raise ExportError(
            f"The reloaded {name} differs from the model by {differences[worst]:.3g} on {list(source.images)[worst]}; "
            f"at most {tolerance:g} is accepted. No version was written."
        )
    return float(differences[worst])


def _signatures(signatures: Any) -> dict[str, SignatureInfo]:
    def describe(specs: dict[str, tf.TensorSpec]) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(dtype=spec.dtype.name, shape=spec.shape.as_list()) for name, spec in sorted(specs.items())
        }

    return {
        name: SignatureInfo(
            inputs=describe(function.structured_input_signature[1]), outputs=describe(function.structured_outputs)
        )
        for name, function in sorted(signatures.items())
        if name.startswith("serving_")
    }


def _publish(
    source: ExportSource, folder: Path, base: Path, parity: dict[str, Any], signatures: dict[str, SignatureInfo]
) -> Version:
    """Write the manifest, and rename the folder to the next free number."""
    manifest = Manifest(
        name=base.name,
        version=next_number(base),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        class_names=list(source.class_names),
        image=source.spec,
        input_range=source.input_range,
        preprocessing=PREPROCESSING,
        metrics=source.metrics,
        training=source.training,
        parity=parity,
        confidence=ConfidenceInfo(**source.confidence.report) if source.confidence else None,
        images_by_class=dict(zip(source.class_names, source.confidence.images_by_class, strict=True))
        if source.confidence
        else None,
        reference=source.reference,
        libraries=library_versions(),
        signatures=signatures,
        files={
            file.relative_to(folder).as_posix(): FileInfo(bytes=file.stat().st_size, sha256=sha256(file))
            for file in model_files(folder)
        },
    )
    while True:
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        target = base / str(manifest.version)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            # another export took the number in the meantime
            manifest = manifest.model_copy(update={"version": next_number(base)})
            continue
        return Version(target, manifest)


def next_number(base: Path) -> int:
    """Return the highest number in use plus one, counting incomplete versions too, so that nothing is overwritten."""
    return max((int(path.name) for path in base.iterdir() if is_version_number(path.name)), default=0) + 1
