"""Writes a Keras model as the next version of the registry, and compares the written files with the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar.errors import ExportError
from cifar.files import temporary_folder
from cifar.models.manifest import ConfidenceInfo, Manifest, PixelsInfo, SignatureInfo, TensorInfo
from cifar.models.registry import Registry, Version
from cifar.training.export.compare import MAX_TOLERANCE, Comparison, compare_signatures, tolerance_for
from cifar.training.export.formats.write import check_formats
from cifar.training.export.function import exported_function
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.quantize import Precision
from cifar.training.export.publish import complete, now
from cifar.training.export.source import ExportSource
from cifar.training.export.task import check_probabilities
from cifar.training.libraries import library_versions

PREPROCESSING = "upright by EXIF, on white where transparent, squashed to the input size (bilinear), uint8"


def export(
    source: ExportSource,
    registry: Path,
    name: str,
    *,
    precision: Precision = "auto",
    held_out: HeldOut | None = None,
    also: Sequence[str] = (),
) -> Version:
    """Write `source` as the next version of `name` under `registry`, with the files `also`: `onnx`, `keras`, both or none.

    The SavedModel is written to a hidden folder, loaded again, and compared with the model on real images, as one batch and one
    by one. Only then is `manifest.json` written and the folder renamed to its number. A failure or a crash at any point leaves no
    version, and a version is never overwritten. For the precision of the LiteRT file see `choose_precision`; without `held_out`, int8
    is judged on the comparison images, without labels.

    Raises:
        ExportError: the model's outputs are not probabilities, or the reloaded model gives other outputs. The message names the
            image and the difference. Or int8 was requested and not accepted.
    """
    check_formats(also, source.model)
    comparison = _comparison(source)
    base = Registry(registry, name).base
    base.mkdir(parents=True, exist_ok=True)
    with temporary_folder(base) as folder:
        write_saved_model(source, folder)
        reloaded = tf.saved_model.load(str(folder))
        _refuse_python_code(reloaded.signatures["serving_uint8"])
        _refuse_memory(reloaded.signatures["serving_uint8"])
        parity = compare_signatures(comparison, reloaded.signatures)
        manifest = Manifest(
            format=2 if source.multi_label else 1,
            name=name,
            version=1,
            created=now(),
            class_names=list(source.class_names),
            task="multi_label" if source.multi_label else "single_label",
            image=source.model.image,
            input_range=source.pixels.preparation.input_range,
            pixels=PixelsInfo(
                preparation=source.pixels.preparation.name,
                found_by=source.pixels.found_by,
                evidence=source.pixels.evidence,
            ),
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
            signatures=_signatures(reloaded.signatures),
            files={},
        )
        return complete(
            folder,
            manifest,
            source=source,
            signatures=reloaded.signatures,
            comparison=comparison,
            precision=precision,
            held_out=held_out,
            also=also,
        )


def _comparison(source: ExportSource) -> Comparison:
    """Return the comparison images with the model's outputs for them, computed as a graph, as Keras' `predict` does."""
    images = np.stack(list(source.images.values()))
    unit = images.astype(np.float32) / 255
    network = exported_function(source)
    graph = tf.function(network)
    outputs = {name: keras.ops.convert_to_numpy(value) for name, value in graph(tf.constant(unit)).items()}
    probabilities = outputs["probabilities"]
    random = float(np.abs(graph(tf.constant(unit))["probabilities"] - probabilities).max())
    if random > MAX_TOLERANCE:
        raise ExportError(
            f"The model answers the same picture differently each time, by up to {random:.2g}: a layer is random, such as Dropout "
            "that is called with training=True. Save the model without that. In a folder of Keras 3's model.export augmentation is active: export the .keras file."
        )
    if not all(np.isfinite(value).all() for value in outputs.values()):
        raise ExportError("The model returns NaN or infinity: its training failed, or --input-range is wrong.")
    check_probabilities(probabilities, multi_label=source.multi_label, activation=source.model.activation)
    rounded = graph(tf.constant(np.nextafter(unit, np.float32(2))))["probabilities"]
    called = keras.ops.convert_to_numpy(network(unit)["probabilities"])
    return Comparison(list(source.images), images, outputs, tolerance_for(probabilities, called, np.asarray(rounded)))


def write_saved_model(source: ExportSource, folder: Path) -> None:
    """Write the network with three signatures: for float images, for uint8 images, and for encoded files."""
    height, width, channels = source.model.image.shape
    # tf.saved_model.save, because keras.export.ExportArchive writes every weight twice. The arrays of the score are variables,
    # because constants are written once per signature.
    module = tf.Module()
    module.weights = list(source.model.variables)
    module.confidence = {
        name: tf.Variable(array, trainable=False)
        for name, array in (source.confidence.arrays if source.confidence else {}).items()
    }
    network = exported_function(source, module.confidence)

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
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except AssertionError as error:  # the graph uses a variable that is not in `module.weights`
        name = re.search(r"Trackable referencing this tensor = <tf.Variable '([^':]*)", str(error))
        raise ExportError(
            f"The model uses a variable that is not one of its weights{f' ({name[1]})' if name else ''}, so a file does not contain it. In your "
            "layer, create it with self.add_weight or keras.random.SeedGenerator (in an RNN, set stateful=False), and save the model again."
        ) from error


def _refuse_python_code(signature: Any) -> None:
    """Refuse a network that calls Python code of this process. In another process, each request would fail."""
    python = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
    if called := next((node.name for node in _nodes(signature) if node.op in python), None):
        raise ExportError(
            f"The model runs Python code outside TensorFlow ({called.rpartition('/')[0] or called}: tf.py_function or tf.numpy_function), which no file can "
            "hold. Write that layer with operations of TensorFlow or Keras, and save the model again."
        )


def _refuse_memory(signature: Any) -> None:
    """Refuse a network whose answers depend on the pictures before. Random layers change integers, their seeds."""
    changes = (node for node in _nodes(signature) if re.match("Assign.*VariableOp", node.op))
    if changed := next((node.name for node in changes if tf.as_dtype(node.attr["dtype"].type).is_floating), None):
        raise ExportError(
            f"The model changes its variables with each picture ({changed}), so answers depend on the pictures before: an RNN with "
            "stateful=True, or a layer that acts as in training. Save the model without that."
        )


def _nodes(signature: Any) -> list[Any]:
    """Return the operations of a signature and of the functions that it calls."""
    graph = signature.graph.as_graph_def()
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


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
