"""TensorFlow Serving's JSON for tensors: reads `instances` or `inputs` into images, and writes the answer in the same form.

Each of the three signatures of an export has one input. All of them are converted to the model's `uint8` input: floats are
rounded to the nearest of 255 levels, which is exact for pixels divided by 255, and image files are decoded as for `POST /predict`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from cifar.errors import BadRequest, ImageTooLarge
from cifar.images.decode import open_image, to_input
from cifar.images.spec import ImageSpec
from cifar.models.manifest import Manifest, SignatureInfo
from cifar.serving.rest.json_pieces import decode_base64, let_others_run, parse_json

DEFAULT_SIGNATURE = "serving_default"
_NUMBERS_AT_ONCE = 16_384
"""Numbers that are converted while no other thread can run: about a millisecond."""
_MAX_OBJECTS = 100
"""Objects in a piece of JSON whose lists become arrays. The lists in more of them are short."""
_OTHER_ITEMS = 10_000
"""Values, keys and lists of a call besides its numbers."""
Decode = Callable[[list[Image.Image], bytes, Callable[[Image.Image], np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class TensorCall:
    """The content of one `:predict` call."""

    signature: SignatureInfo
    by_row: bool
    """True for `instances`, which are answered with `predictions`; false for `inputs`, answered with `outputs`."""
    images: np.ndarray
    """`(n, height, width, channels)` `uint8`."""


def read_call(body: bytes, manifest: Manifest, *, max_images: int, max_pixels: int, decode: Decode) -> TensorCall:
    """Read the body of a call for one version: JSON with `instances` or `inputs`, and optionally `signature_name`.

    `max_pixels` limits the pixels of all image files of a call together. `decode` is `Decoder.finish`.

    Raises:
        BadRequest: the body does not follow TensorFlow Serving's API, or its tensor has the wrong shape or range.
        UnsupportedImage, UnreadableImage, ImageTooLarge: see `preprocess`.
    """
    call = parse_call(body, manifest, max_images)
    if not isinstance(call, dict) or len({"instances", "inputs"} & call.keys()) != 1:
        raise BadRequest("Expected a JSON object with either `instances` or `inputs`.")
    name = call.get("signature_name") or DEFAULT_SIGNATURE
    signature = manifest.signatures.get(name) if isinstance(name, str) else None
    if signature is None:
        got = name[:40] if isinstance(name, str) else shown(name)
        known = ", ".join(manifest.signatures)
        raise BadRequest(f"There is no signature {got!r}; version {manifest.version} has: {known}.")
    ((tensor, info),) = signature.inputs.items()
    by_row = "instances" in call
    values = _by_row(call["instances"], tensor) if by_row else _named(call["inputs"], tensor)
    if not isinstance(values, list) or not values:
        raise BadRequest(f"Expected a list of at least one {tensor}; got {shown(values)}.")
    if len(values) > max_images:
        raise BadRequest(f"A call takes at most {max_images} images; got {len(values)}.")
    if info.dtype == "string":
        images = list(decoded_files([_file(value) for value in values], manifest.image, max_pixels, decode))
        return TensorCall(signature, by_row, np.stack(images))
    return TensorCall(signature, by_row, pixels(values, tensor, info.dtype, manifest.image.shape))


def write_answer(call: TensorCall, rows: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """Return the answer in the form of the call. `rows` are those of `Predictor.answers`, one for each image."""
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


def parse_call(body: bytes, manifest: Manifest, max_images: int) -> Any:
    """Return the JSON of a call with at most `max_images` images; lists of numbers in a large one are arrays."""
    numbers = max_images * math.prod(manifest.image.shape)
    # For each number a comma, and for one channel a bracket too.
    return parse_json(body, max_items=2 * numbers + _OTHER_ITEMS, shrink=as_arrays)


def _by_row(instances: Any, tensor: str) -> Any:
    """Return the value of each row, which may be `{name of the input: value}` or the value itself."""
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


def decoded_files(files: list[bytes], spec: ImageSpec, max_pixels: int, decode: Decode) -> Iterator[np.ndarray]:
    """Decode files. All of them together have the limit of pixels that one file has elsewhere."""
    remaining = max_pixels
    for file in files:
        box = [open_image(file, spec, max_pixels=max_pixels)]
        remaining -= box[0].width * box[0].height
        if remaining < 0:
            raise ImageTooLarge(
                f"The images of a call have at most {max_pixels:,} pixels together; send fewer at once."
            )
        yield decode(box, file, partial(to_input, spec=spec))


def _file(value: Any) -> bytes:
    encoded = value.get("b64") if isinstance(value, dict) and value.keys() == {"b64"} else None
    if not isinstance(encoded, str):
        raise BadRequest(f'An image file comes as {{"b64": "..."}}; got {shown(value)}.')
    try:
        return decode_base64(encoded, needs_padding=False)  # as TensorFlow Serving reads it
    except ValueError as error:  # `binascii.Error`, or a character that is not ASCII
        raise BadRequest(f"The value of b64 is not base64: {error}.") from error


def pixels(values: list[Any], tensor: str, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Return `(n, height, width, channels)` `uint8`. Numbers are converted in small parts; between them, other threads can run."""
    images = np.empty((len(values), *shape), np.uint8)
    lines = max(1, _NUMBERS_AT_ONCE // (shape[1] * shape[2]))
    for image, value in zip(images, values, strict=True):
        if not isinstance(value, list | np.ndarray) or len(value) != shape[0]:
            raise _wrong_shape(value, len(values), tensor, dtype, shape)
        for top in range(0, shape[0], lines):
            part = value[top : top + lines]
            converted = _converted(part, (len(part), *shape[1:]), tensor, dtype)
            if converted is None:
                raise _wrong_shape(value, len(values), tensor, dtype, shape)
            image[top : top + lines] = converted
    return images


def flat_pixels(values: list[Any], tensor: str, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the same as `pixels` for the numbers of all images in one list, in row-major order."""
    flat = np.empty(len(values), np.uint8)
    for start in range(0, len(values), _NUMBERS_AT_ONCE):
        part = values[start : start + _NUMBERS_AT_ONCE]
        converted = _converted(part, (len(part),), tensor, dtype)
        if converted is None:
            got = ", ".join(sorted({type(value).__name__ for value in part}))
            raise BadRequest(f"Expected {tensor} as {dtype}; got {got} in one flat list.")
        flat[start : start + len(part)] = converted
        if start:
            let_others_run()
    return flat.reshape(-1, *shape)


def as_arrays(values: list[Any]) -> list[Any]:
    """Return nested lists of numbers among the elements as arrays of `int64` or `float64`, and others as they are.

    In a few objects of one key, its value becomes an array too.
    """
    if len(values) > _MAX_OBJECTS or not any(isinstance(each, dict) for each in values):
        return list(_smaller(values))
    return [
        {key: _smaller(each[key]) for key in each} if isinstance(each, dict) and len(each) == 1 else each
        for each in values
    ]


def _smaller(value: Any) -> Any:
    array = _array(value) if isinstance(value, list) else None
    return value if array is None or array.ndim == 1 else array


def _array(values: Any) -> np.ndarray | None:
    """Return an array of `int64`, or of `float64` if a decimal is among the numbers; None if there is something else, or lists of different lengths."""
    if isinstance(values, np.ndarray):
        return values
    try:
        # Objects: in an array of strings, each number would take as much memory as the longest string.
        array = np.asarray(values, dtype=object)
    except ValueError:
        return None
    kinds = _kinds(array)
    if not kinds <= {int, float}:
        return None
    try:
        return array.astype(np.float64 if float in kinds else np.int64)
    except OverflowError:  # out of every range, so the difference does not matter
        return array.astype(np.float64)


def _converted(part: Any, shape: tuple[int, ...], tensor: str, dtype: str) -> np.ndarray | None:
    """Return numbers as `uint8`; None if the values are not numbers, or have another shape."""
    array = _array(part)
    if array is None or array.shape != shape:
        return None
    return levels(array, tensor, dtype, decimals=array.dtype == np.float64)


def levels(array: np.ndarray, tensor: str, dtype: str, *, decimals: bool) -> np.ndarray:
    top = 255 if dtype == "uint8" else 1
    if not (array.min() >= 0 and array.max() <= top):
        raise BadRequest(f"Expected {tensor} in [0, {top}]; got {array.min():g} to {array.max():g}.")
    if dtype == "uint8" and decimals:
        raise BadRequest(f"Expected {tensor} as whole numbers from 0 to 255; got decimal ones.")
    return array.astype(np.uint8) if dtype == "uint8" else np.rint(array * 255).astype(np.uint8)


def _wrong_shape(value: Any, count: int, tensor: str, dtype: str, shape: tuple[int, int, int]) -> BadRequest:
    """Return the error about one of `count` images."""
    expected = f"Expected {tensor} as {dtype} of shape (n, {', '.join(map(str, shape))})"
    try:
        array = np.asarray(value, dtype=object)
    except ValueError:
        return BadRequest(f"{expected}; got lists of different lengths.")
    kinds = _kinds(array)
    if list in kinds:
        return BadRequest(f"{expected}; got lists of different lengths.")
    if kinds == {dict}:
        return BadRequest(f'{expected}; got objects. Files in base64 belong to `"signature_name": "serving_bytes"`.')
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    return BadRequest(f"{expected}; got {names} of shape {(count, *array.shape)}.")


def _kinds(array: np.ndarray) -> set[type]:
    flat = array.ravel()
    starts = range(0, len(flat), _NUMBERS_AT_ONCE)
    return {kind for start in starts for kind in set(map(type, flat[start : start + _NUMBERS_AT_ONCE].tolist()))}


def shown(value: Any) -> str:
    return reprlib.repr(value)[:60]  # limits its depth; `repr` would recurse as deep as the caller's JSON
