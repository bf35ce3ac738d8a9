"""Requests that TensorFlow Serving answers while it loads a version, so that the slow first calls do not delay a user.

It reads them from `assets.extra/tf_serving_warmup_requests`: a TFRecord file of `PredictionLog` messages
(https://www.tensorflow.org/tfx/serving/saved_model_warmup).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cifar.format import png
from cifar.images.spec import ImageSpec
from cifar.models.manifest import Manifest, TensorInfo
from cifar.models.tfserving_client import message_types

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def write_warmup_requests(manifest: Manifest, folder: Path) -> None:
    """Write a request with one black image for each signature into a version's folder. Each signature has one input."""
    messages = message_types()
    file = folder / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, described in manifest.signatures.items():
            ((tensor, info),) = described.inputs.items()
            request = messages["Request"](
                model={"name": manifest.name, "signature_name": signature},
                inputs=[messages["Named"](key=tensor, value=_black(info, manifest.image))],
            )
            writer.write(messages["PredictionLog"](predict_log={"request": request}).SerializeToString())


def _black(info: TensorInfo, image: ImageSpec) -> Any:
    """Return a tensor of one black image. Its zero is written once, because readers repeat the last value up to the tensor's size."""
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
