"""TensorFlow Serving's JSON for tensors: reads `instances` or `inputs` into images, and writes the answer in the same form.

Each of the three signatures of an export has one input. All of them are converted to the model's `uint8` input: floats are
rounded to the nearest of 255 levels, which is exact for pixels divided by 255, and image files are decoded as for `POST /predict`.
"""

from __future__ import annotations

import base64
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from cifar.errors import BadRequest, ImageTooLarge
from cifar.images.decode import open_image, to_input
from cifar.images.spec import ImageSpec
from cifar.models.manifest import Manifest, SignatureInfo

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class TensorCall:
    """The content of one `:predict` call."""

    signature: SignatureInfo
    by_row: bool
    """True for `instances`, which are answered with `predictions`; false for `inputs`, answered with `outputs`."""
    images: np.ndarray
    """`(n, height, width, channels)` `uint8`."""


def read_call(body: bytes, manifest: Manifest, *, max_images: int, max_pixels: int) -> TensorCall:
    """Read the body of a call for one version.

    Args:
        body: JSON with `instances` or `inputs`, and optionally `signature_name`.
        manifest: the manifest of the version.
        max_images: limit on the images in one call.
        max_pixels: limit on the pixels of all image files of a call together.

    Raises:
        BadRequest: the body does not follow TensorFlow Serving's API, or its tensor has the wrong shape or range.
        UnsupportedImage, UnreadableImage, ImageTooLarge: see `preprocess`.
    """
    call = _object(body)
    name = call.get("signature_name") or DEFAULT_SIGNATURE
    signature = manifest.signatures.get(name) if isinstance(name, str) else None
    if signature is None:
        got = name[:40] if isinstance(name, str) else _shown(name)
        known = ", ".join(manifest.signatures)
        raise BadRequest(f"There is no signature {got!r}; version {manifest.version} has: {known}.")
    ((tensor, info),) = signature.inputs.items()
    by_row = "instances" in call
    values = _by_row(call["instances"], tensor) if by_row else _named(call["inputs"], tensor)
    if not isinstance(values, list) or not values:
        raise BadRequest(f"Expected a list of at least one {tensor}; got {_shown(values)}.")
    if len(values) > max_images:
        raise BadRequest(f"A call takes at most {max_images} images; got {len(values)}.")
    if info.dtype == "string":
        images = list(_decoded([_file(value) for value in values], manifest.image, max_pixels))
        return TensorCall(signature, by_row, np.stack(images))
    return TensorCall(signature, by_row, _pixels(values, tensor, info.dtype, manifest.image.shape))


def write_answer(call: TensorCall, rows: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """Return the answer in the form of the call.

    Args:
        call: the call.
        rows: `(n, classes)` or `(n, classes + 1)` `float32`, as `Predictor.answers` returns them.
        class_names: the classes of the version.
    """
    classes = len(class_names)
    outputs: dict[str, list[Any]] = {
        "probabilities": rows[:, :classes].tolist(),
        "ood_score": rows[:, -1].tolist(),
        "classes": [class_names] * len(rows),
    }
    outputs = {name: outputs[name] for name in sorted(call.signature.outputs)}
    if len(outputs) == 1:
        (only,) = outputs.values()
        return {"predictions" if call.by_row else "outputs": only}
    if call.by_row:
        return {
            "predictions": [dict(zip(outputs, values, strict=True)) for values in zip(*outputs.values(), strict=True)]
        }
    return {"outputs": outputs}


def _object(body: bytes) -> dict[str, Any]:
    try:
        call = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(call, dict) or len({"instances", "inputs"} & call.keys()) != 1:
        raise BadRequest("Expected a JSON object with either `instances` or `inputs`.")
    if unknown := call.keys() - {"instances", "inputs", "signature_name"}:
        raise BadRequest(f"There is no field {min(unknown)[:40]!r}; there are: instances, inputs, signature_name.")
    return call


def _by_row(instances: Any, tensor: str) -> Any:
    """Return the rows' values of the one input, with or without its name."""
    if not isinstance(instances, list):
        return instances
    return [_named(row, tensor) for row in instances]


def _named(value: Any, tensor: str) -> Any:
    """Return X for `{"image": X}`, and `value` itself for `{"b64": X}` and anything else without a name."""
    if not isinstance(value, dict) or value.keys() == {"b64"}:
        return value
    if value.keys() != {tensor}:
        raise BadRequest(f"The signature's one input is {tensor!r}; got {', '.join(map(repr, value))[:80]}.")
    return value[tensor]


def _decoded(files: list[bytes], spec: ImageSpec, max_pixels: int) -> Iterator[np.ndarray]:
    """Decode files. All of them together have the limit of pixels that one file has elsewhere."""
    remaining = max_pixels
    for file in files:
        image = open_image(file, spec, max_pixels=max_pixels)
        remaining -= image.width * image.height
        if remaining < 0:
            raise ImageTooLarge(
                f"The images of a call have at most {max_pixels:,} pixels together; send fewer at once."
            )
        yield to_input(image, spec)


def _file(value: Any) -> bytes:
    encoded = value.get("b64") if isinstance(value, dict) and value.keys() == {"b64"} else None
    if not isinstance(encoded, str):
        raise BadRequest(f'An image file comes as {{"b64": "..."}}; got {_shown(value)}.')
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:  # `binascii.Error`, or a character that is not ASCII
        raise BadRequest(f"The value of b64 is not base64: {error}.") from error


def _pixels(values: list[Any], tensor: str, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    expected = f"{dtype} of shape (n, {', '.join(map(str, shape))})"
    try:
        # Objects: in an array of strings, each number would take as much memory as the longest string.
        array = np.asarray(values, dtype=object)
    except ValueError as error:
        raise BadRequest(f"Expected {tensor} as {expected}; got lists of different lengths.") from error
    kinds = set(map(type, array.ravel().tolist()))
    if list in kinds:
        raise BadRequest(f"Expected {tensor} as {expected}; got lists of different lengths.")
    if array.shape[1:] != shape or not kinds <= {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise BadRequest(f"Expected {tensor} as {expected}; got {names} of shape {array.shape}.")
    array = array.astype(np.float64)
    top = 255 if dtype == "uint8" else 1
    if dtype == "uint8" and float in kinds:
        raise BadRequest(f"Expected {tensor} as whole numbers from 0 to 255; got decimal ones.")
    if not (array.min() >= 0 and array.max() <= top):
        raise BadRequest(f"Expected {tensor} in [0, {top}]; got {array.min():g} to {array.max():g}.")
    return array.astype(np.uint8) if dtype == "uint8" else np.rint(array * 255).astype(np.uint8)


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:60]  # limits its depth; `repr` would recurse as deep as the caller's JSON
