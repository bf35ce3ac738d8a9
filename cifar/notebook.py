"""`cifar.show(image)` classifies an image in a notebook and draws the result as the page does, without a server."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from cifar.errors import BadParameter, MissingImage
from cifar.format import data_url, png
from cifar.images.decode import preprocess_views
from cifar.images.spec import Views
from cifar.models.predictor import Prediction, Predictor
from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.settings import load_settings

_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

Photo = str | PathLike[str] | bytes | Image.Image | np.ndarray

# The text keeps the notebook's colour, so that it can be read in light and in dark themes.
_STYLE = (
    ".cifar{display:flex;flex-wrap:wrap;gap:1.5em;align-items:flex-start;font:14px system-ui,sans-serif;margin:.5em 0}"
    ".cifar figure{margin:0}.cifar img{width:128px;height:auto;image-rendering:pixelated;border-radius:4px}"
    ".cifar figcaption,.cifar p{margin:.4em 0 0;opacity:.75;font-size:12px}"
    ".cifar ol{list-style:none;margin:0;padding:0;min-width:240px;flex:1;max-width:420px}"
    ".cifar li{margin:0 0 .5em}.cifar li div{display:flex;justify-content:space-between}"
    ".cifar i{display:block;height:8px;border-radius:4px;background:#0d9488;min-width:1px}"
    ".cifar s{display:block;border-radius:4px;background:color-mix(in srgb,currentColor 15%,transparent);text-decoration:none}"
)

_DOUBTS = {"none": "Probably none of the classes.", "unsure": "Unsure: it may be another class, or none."}
"""The sentences about an answer, by its grade."""


@dataclass(frozen=True)
class ShownPrediction:
    """The prediction for one image. A notebook draws it as HTML; everywhere else it prints as text."""

    model_name: str
    version: int
    prediction: Prediction
    seen: np.ndarray
    """The model's input, `(height, width, channels)` `uint8`."""

    def __repr__(self) -> str:
        ranked = ", ".join(f"{label} {score:.1%}" for label, score in self.prediction.top_k)
        return f"{ranked} ({self.model_name}, version {self.version})"

    def _repr_html_(self) -> str:
        """Return the bars and the model's input as HTML, without scripts and without requests."""
        height, width = self.seen.shape[:2]
        bars = "".join(
            f"<li><div><span>{html.escape(label)}</span><span>{score:.1%}</span></div>"
            f'<s><i style="width:{100 * score:.1f}%"></i></s></li>'
            for label, score in self.prediction.top_k
        )
        grade = self.prediction.grade
        warning = f"<p><strong>{_DOUBTS[grade]}</strong></p>" if grade in _DOUBTS else ""
        return (
            f'<style>{_STYLE}</style><div class="cifar"><figure><img src="{data_url(png(self.seen))}" '
            f'alt="The image at {width} x {height} pixels"><figcaption>What the model saw: {width} x {height} pixels'
            f"</figcaption></figure><ol>{bars}</ol></div>"
            f'<div class="cifar" style="display:block">{warning}<p>{html.escape(self.model_name)}, version {self.version}</p></div>'
        )


def show(image: Photo, *, top_k: int | None = None, version: int | None = None, views: Views = 1) -> ShownPrediction:
    """Classify one image with the model that would be served.

    The first call loads the model, which takes a tenth of a second with LiteRT.

    Args:
        image: a path, the bytes of an image file, a Pillow image, or an array `(height, width)` or
            `(height, width, 1, 3 or 4)`, `uint8` in [0, 255] or floats in [0, 1].
        top_k: number of classes to rank. Default: the setting `default_top_k`.
        version: number of the version. Default: the one that the server would serve.
        views: number of views to average, 1, 2, 6 or `auto`: see `cifar.images.views`.

    Raises:
        MissingImage: there is no file at the path.
        BadParameter: `image` is none of the above, or `top_k` is out of range, or `views` is none of these.
        CifarError: see `preprocess` and `Registry.get`.
    """
    settings = load_settings()
    number = RolloutLog.of(settings).current().stable if version is None else version
    predictor = _load(settings.registry, settings.model_name, number)
    wanted_views = predictor.views_for(views)
    inputs = preprocess_views(_encoded(image), predictor.image, wanted_views, max_pixels=settings.max_image_pixels)
    wanted = predictor.clamp_top_k(settings.default_top_k) if top_k is None else top_k
    prediction = predictor.rank(predictor.answers_of([inputs])[0], wanted)
    return ShownPrediction(predictor.version.name, predictor.version.number, prediction, inputs[0])


@lru_cache(maxsize=2)
def _load(registry: Path, name: str, number: int) -> Predictor:
    return Predictor.load(Registry(registry, name).get(number))


def _encoded(image: Photo) -> bytes:
    """Return `image` as an image file, so that it is decoded like an upload."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise MissingImage(f"The image {str(image)!r} cannot be read: {error.strerror}.") from error
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise BadParameter(
            f"Expected a path, bytes, a Pillow image or a NumPy array; got {type(image).__module__}.{type(image).__name__}."
        )
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _from_array(array: np.ndarray) -> Image.Image:
    description = f"{array.dtype} of shape {array.shape}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating) and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise BadParameter(
            f"Expected an array (height, width) or (height, width, 1, 3 or 4), uint8 or floats in [0, 1]; got {description}."
        )
    return Image.fromarray(array)
