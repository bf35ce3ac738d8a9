"""The LiteRT file of a version: conversion, its signature, and the metadata that other programs read.

The file has the signature `serving_uint8` with the input `image` and the outputs `probabilities` and, for a version with
OOD score, `ood_score`. Its metadata is TFLite's, which Android Studio, MediaPipe and tflite-support read: the input size, the
normalization and the labels. Source: the schema metadata_schema.fbs of tensorflow/tflite-support.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cifar.images.spec import ImageSpec
from cifar.training.export.silence import quiet_libraries, quiet_native_code

SIGNATURE = "serving_uint8"
LABELS_FILE = "labels.txt"
_METADATA = "TFLITE_METADATA"
_METADATA_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"
"""The oldest reader that knows every field written here."""

# Values of the schema's enumerations and unions.
_RGB, _GRAYSCALE = np.uint8(1), np.uint8(2)
_IMAGE_PROPERTIES = np.uint8(2)
_NORMALIZATION = np.uint8(1)
_AXIS_LABELS = np.uint8(2)


def convert(signatures: Any) -> bytes:
    """Convert the network of a loaded SavedModel with these signatures, and name its inputs and outputs.

    Raises:
        Exception: LiteRT lacks an operation of the network. The converter raises several types.
    """
    signature = signatures[SIGNATURE]
    # The weights are frozen into constants first: otherwise the converted file has no weights and its outputs are NaN. A
    # frozen function has no signature, so it is added afterwards.
    with quiet_libraries(), quiet_native_code():
        frozen = convert_variables_to_constants_v2(signature)
        content = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
    return _with_signature(content, outputs=sorted(signature.structured_outputs))


def _with_signature(content: bytes, outputs: Sequence[str]) -> bytes:
    """Add the signature to a file with one input. `outputs` are the names of its outputs, in their order in the file.

    `probabilities` becomes the first output, because many programs read only that one.
    """
    model = flatbuffer_utils.read_model_from_bytearray(content)
    graph = model.subgraphs[0]  # the others are bodies of loops and branches
    named = dict(zip(outputs, graph.outputs, strict=True))
    taken: set[str] = set(outputs)
    for tensor in graph.tensors:  # the quantizer needs unique names
        tensor.name = _free(tensor.name.decode(), taken)
        taken.add(tensor.name)
    for name, index in named.items():
        graph.tensors[index].name = name
    graph.outputs = [named[name] for name in sorted(named, reverse=True)]
    model.signatureDefs = [
        schema.SignatureDefT(
            inputs=[schema.TensorMapT("image", graph.inputs[0])],
            outputs=[schema.TensorMapT(name, index) for name, index in named.items()],
            signatureKey=SIGNATURE,
        )
    ]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken."""
    numbered = (f"{name}_{number}" for number in count(1))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def with_metadata(content: bytes, *, name: str, image: ImageSpec, class_names: Sequence[str]) -> bytes:
    """Add the metadata, and append the labels as an uncompressed zip archive, as tflite-support does.

    The file has a signature, and the class names are in the order of its probabilities.
    """
    model = flatbuffer_utils.read_model_from_bytearray(content)
    described = _metadata(name, image, has_score=len(model.subgraphs[0].outputs) > 1)
    model.buffers.append(schema.BufferT(np.frombuffer(described, np.uint8)))
    model.metadata = [*(model.metadata or []), schema.MetadataT(_METADATA, len(model.buffers) - 1)]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(class_names))
    return file.getvalue()


# --- the metadata -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """A table of the schema: values by the position of their field. A union has two fields: its type and its value."""

    fields: dict[int, str | np.ndarray | np.uint8 | np.uint32 | _Table | list[_Table]]


def _metadata(name: str, image: ImageSpec, *, has_score: bool) -> bytes:
    labels = _Table({0: LABELS_FILE, 1: "Names of the classes.", 2: _AXIS_LABELS})
    colours = _RGB if image.channels == 3 else _GRAYSCALE
    size = _Table({0: np.uint32(image.width), 1: np.uint32(image.height)})
    properties = _Table({0: colours, 1: size})
    normalization = _Table({0: np.array([0], np.float32), 1: np.array([1], np.float32)})
    pixels = _Table(
        {
            0: "image",
            1: "Pixels from 0 to 255. The network scales them itself.",
            3: _Table({0: _IMAGE_PROPERTIES, 1: properties}),
            4: [_Table({0: _NORMALIZATION, 1: normalization})],
            5: _range(255),
        }
    )
    outputs = [_Table({0: "probabilities", 1: "Probability of each class.", 5: _range(1), 6: [labels]})]
    if has_score:
        outputs.append(_Table({0: "ood_score", 1: "Above 1 for an image unlike the training images."}))
    graph = _Table({2: [pixels], 3: outputs})
    builder = flatbuffers.Builder(1024)
    root = _write(builder, _Table({0: name, 1: "An image classifier.", 3: [graph], 7: _PARSER_VERSION}))
    builder.Finish(root, file_identifier=_METADATA_IDENTIFIER)
    return bytes(builder.Output())


def _range(highest: float) -> _Table:
    return _Table({0: np.array([highest], np.float32), 1: np.array([0], np.float32)})


def _write(builder: flatbuffers.Builder, value: Any) -> Any:
    """Write a value after the values that it refers to, and return its offset. Numbers are part of their table."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write(builder, table) for table in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    written = {
        slot: field if isinstance(field, np.generic) else _write(builder, field) for slot, field in value.fields.items()
    }
    builder.StartObject(max(written) + 1)
    for slot, field in written.items():
        if isinstance(field, np.uint8):
            builder.PrependUint8Slot(slot, int(field), 0)
        elif isinstance(field, np.uint32):
            builder.PrependUint32Slot(slot, int(field), 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, field, 0)
    return builder.EndObject()
