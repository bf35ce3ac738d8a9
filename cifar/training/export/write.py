"""Write a Keras model as the next version of the registry, and prove that it reloads."""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cifar.errors import ExportError
from cifar.files import sha256
from cifar.images.spec import ImageSpec
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
"""Largest accepted difference of an `ood_score`, and for scores beyond 1 the share of it: threads add up in any order."""

Answer = dict[str, np.ndarray]
"""Outputs by name: `probabilities` `(n, classes)`, and `ood_score` `(n,)` where the source has a confidence."""

PREPROCESSING = "upright by EXIF, on white where transparent, squashed to the input size (bilinear), uint8"


def export(source: ExportSource, registry: Path, name: str) -> Version:
    """Write `source` as the next version of `name` under `registry`.

    The SavedModel goes to a hidden sibling, is loaded back, and is compared with the model on real images, whole and
    one by one. Only then is `manifest.json` written and the folder renamed to its number. A failure or a crash at any
    point leaves no version, and a version is never overwritten.

    Raises:
        ExportError: the model's outputs are no probabilities, or the reloaded model disagrees; says on which image and
            by how much.
    """
    expected = _expected(source)
    base = Registry(registry, name).base
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=base))
    try:
        folder.chmod(0o755)  # mkdtemp makes it private; TensorFlow Serving may run as another user
        _write_saved_model(source, folder)
        reloaded = tf.saved_model.load(str(folder))
        parity = _compare(source, expected, reloaded.signatures)
        parity["litert_max_abs_difference"] = _write_litert(source, expected, reloaded.signatures, folder)
        return _publish(source, folder, base, parity, _signatures(reloaded.signatures))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _expected(source: ExportSource) -> Answer:
    """The model's own answers to the comparison images."""
    images = np.stack(list(source.images.values())).astype(np.float32)
    answer = {name: keras.ops.convert_to_numpy(value) for name, value in answering(source)(images / 255).items()}
    probabilities = answer["probabilities"]
    if not all(np.isfinite(value).all() for value in answer.values()):
        raise ExportError("The model answers NaN or infinity: its training failed, or --input-range is wrong.")
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        raise ExportError(
            f"The model's outputs are no probabilities: they range from {probabilities.min():.3g} to {probabilities.max():.3g} and "
            "do not add to 1. If it ends in logits, add --logits."
        )
    return answer


def answering(source: ExportSource, arrays: Mapping[str, Any] | None = None) -> Callable[[Any], dict[str, Any]]:
    """The function that an export holds: from float images in [0, 1] to its outputs by name, as tensors.

    Args:
        source: the model and its confidence.
        arrays: stand for the confidence's own.
    """
    low, high = source.input_range
    network = with_features(source.model) if source.confidence else None

    def answer(unit_images: Any) -> dict[str, Any]:
        inputs = unit_images * (high - low) + low
        if source.confidence is None or network is None:
            outputs = source.model(inputs, training=False)
            return {"probabilities": keras.ops.softmax(outputs) if source.logits else outputs}
        features, probabilities = network(inputs, training=False)
        return {
            "probabilities": calibrated(probabilities, source.confidence.temperature),
            "ood_score": ood_score(features, source.confidence, arrays or source.confidence.arrays),
        }

    return answer


def _write_saved_model(source: ExportSource, folder: Path) -> None:
    """The three signatures of one network: float images, uint8 images, encoded files."""
    height, width, channels = source.image_shape
    # Not keras.export.ExportArchive: it writes every weight twice. Variables, since each signature writes its constants.
    module = tf.Module()
    module.weights = [variable.value for variable in source.model.variables]
    module.confidence = {
        name: tf.Variable(array, trainable=False)
        for name, array in (source.confidence.arrays if source.confidence else {}).items()
    }
    answer = answering(source, module.confidence)

    def from_floats(input_image: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(input_image)

    def from_pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(tf.cast(image, tf.float32) / 255)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        # decode_jpeg reads PNG too; the accurate transform is the one that Pillow uses
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


def _compare(source: ExportSource, expected: Answer, signatures: Any) -> dict[str, Any]:
    """Hold every signature against the model's own answers.

    Raises:
        ExportError: names the signature, the image and the difference.
    """
    images = np.stack(list(source.images.values()))
    files = tf.constant([_png(image) for image in images])
    one_by_one = [signatures["serving_uint8"](image=tf.constant(image[None])) for image in images]
    answers = {
        "serving_uint8": signatures["serving_uint8"](image=tf.constant(images)),
        "serving_uint8, one by one": {name: np.concatenate([one[name] for one in one_by_one]) for name in expected},
        "serving_default": signatures["serving_default"](input_image=tf.constant(images, tf.float32) / 255),
        "serving_bytes": signatures["serving_bytes"](image_bytes=files),
    }
    worst = [_differences(source, what, answer, expected) for what, answer in answers.items()]
    parity: dict[str, Any] = {"images": len(images), "max_abs_difference": max(each["probabilities"] for each in worst)}
    if source.confidence:
        parity["ood_score_max_difference"] = max(each["ood_score"] for each in worst)
        parity["ood_score_tolerance"] = SCORE_TOLERANCE
    return parity | {"tolerance": TOLERANCE, "compared": list(answers)}


def _write_litert(source: ExportSource, expected: Answer, signatures: Any, folder: Path) -> float | None:
    """Write the same network as a LiteRT file, run it, and hold it against the model.

    Returns:
        The largest difference, or None for a network that LiteRT cannot run: that one is served by TensorFlow alone.

    Raises:
        ExportError: LiteRT runs it, and disagrees; says on which image and by how much.
    """
    # Frozen first: converting a SavedModel or a live function gave a file without weights, which answers NaN.
    frozen = convert_variables_to_constants_v2(signatures["serving_uint8"])
    images = np.stack(list(source.images.values()))
    try:
        content = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
        rows = litert_from(content)(images)
    except Exception as error:  # an operation that LiteRT does not have; the converter raises several types
        log.warning("LiteRT cannot run this network (%s); TensorFlow will serve it.", type(error).__name__)
        return None
    file = folder / LITERT_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    classes = len(source.class_names)
    answer = {
        "probabilities": rows[:, :classes],
        "ood_score": rows[:, classes:].squeeze(1) if source.confidence else None,
    }
    return _differences(source, "LiteRT file", answer, expected)["probabilities"]


def _differences(source: ExportSource, what: str, answer: Any, expected: Answer) -> dict[str, float]:
    """The largest difference of each output, if it is accepted."""
    difference = np.abs(np.asarray(answer["probabilities"]) - expected["probabilities"]).max(axis=1)
    largest = {"probabilities": _accepted(source, what, difference, TOLERANCE)}
    if source.confidence:
        scores = expected["ood_score"]
        difference = np.abs(np.asarray(answer["ood_score"]) - scores) / np.maximum(1, np.abs(scores))
        largest["ood_score"] = _accepted(source, f"{what}'s ood_score", difference, SCORE_TOLERANCE)
    return largest


def _accepted(source: ExportSource, what: str, differences: np.ndarray, tolerance: float) -> float:
    at = int(differences.argmax())
    if not differences[at] <= tolerance:  # written so that NaN fails too
        raise ExportError(
            f"The reloaded {what} differs from the model by {differences[at]:.3g} on {list(source.images)[at]}; "
            f"at most {tolerance:g} is accepted. No version was written."
        )
    return float(differences[at])


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


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
    """Write the manifest, then give the folder the next free number."""
    manifest = Manifest(
        name=base.name,
        version=_next_number(base),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        class_names=list(source.class_names),
        image=ImageSpec.from_shape(source.image_shape),
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
            manifest = manifest.model_copy(update={"version": _next_number(base)})
            continue
        return Version(target, manifest)


def _next_number(base: Path) -> int:
    """One more than the highest number in use, complete or not: nothing is ever overwritten."""
    return max((int(path.name) for path in base.iterdir() if is_version_number(path.name)), default=0) + 1
