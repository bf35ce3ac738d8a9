"""Requests that TensorFlow Serving answers while it loads a version, so that the slow first calls do not delay a user.

It reads them from `assets.extra/tf_serving_warmup_requests`: a TFRecord file of `PredictionLog` messages
(https://www.tensorflow.org/tfx/serving/saved_model_warmup).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cifar.format import png
from cifar.images.spec import ImageSpec
from cifar.models.manifest import SignatureInfo, TensorInfo
from cifar.models.tfserving_client import message_types

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def write_warmup_requests(name: str, signatures: Mapping[str, SignatureInfo], image: ImageSpec, folder: Path) -> None:
    """Write a request with one black image for each signature.

    Args:
        name: of the model.
        signatures: of the version, by name. Each has one input.
        image: the size of the model's input.
        folder: the version's folder.
    """
    messages = message_types()
    file = folder / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, described in signatures.items():
            ((tensor, info),) = described.inputs.items()
            request = messages["Request"](
                model={"name": name, "signature_name": signature},
                inputs=[messages["Named"](key=tensor, value=_black(info, image))],
            )
            writer.write(messages["PredictionLog"](predict_log={"request": request}).SerializeToString())


def _black(info: TensorInfo, image: ImageSpec) -> Any:
    """Return a tensor of one image. A number is written once: readers repeat the last value up to the tensor's size."""
    values: dict[str, dict[str, Any]] = {
        "float32": {"floats": [0.0]},
        "uint8": {"ints": [0]},
        "string": {"strings": [png(np.zeros(image.shape, np.uint8))]},
    }
    sizes = [1 if size is None else size for size in info.shape]
    dtype = tf.as_dtype(info.dtype).as_datatype_enum
    return message_types()["Tensor"](
        dtype=dtype, tensor_shape={"dim": [{"size": size} for size in sizes]}, **values[info.dtype]
    )
