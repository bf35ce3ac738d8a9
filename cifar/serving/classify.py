"""Bytes in, classification out: the one function behind the page, its API and REST."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar.errors import BadParameter, ImageTooLarge, MissingImage
from cifar.predictor import Prediction, Predictor
from cifar.preprocess import preprocess
from cifar.serving.versions import LoadedVersions
from cifar.settings import Settings

_AT_ONCE_BYTES = 16_384
_AT_ONCE_PIXELS = 128 * 128
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Classification:
    """One answer, and what a person may want to know about it."""

    model_name: str
    version: int
    prediction: Prediction
    seen: np.ndarray
    """The model's input, `(height, width, channels)` `uint8`."""
    inference_ms: float
    """Milliseconds in the model alone, without decoding."""

    def as_json(self) -> dict[str, Any]:
        """The answer as every API gives it."""
        label, score = self.prediction.top_k[0]
        return {
            "predicted_class": label,
            "confidence": round(score, 4),
            "class_scores": {name: round(value, 6) for name, value in self.prediction.class_scores.items()},
            "top_k": [{"label": name, "score": round(value, 6)} for name, value in self.prediction.top_k],
            "model": {"name": self.model_name, "version": self.version},
        }


class Classifier:
    """Classifies uploaded files with the loaded versions. Safe to share between threads."""

    def __init__(self, versions: LoadedVersions, settings: Settings) -> None:
        self.versions = versions
        self._settings = settings
        self._places = threading.BoundedSemaphore(settings.max_concurrent_predictions)

    def classify(self, payload: bytes | None, *, top_k: object = None, version: object = None) -> Classification:
        """Classify one image file.

        Args:
            payload: the encoded file, as uploaded.
            top_k: how many classes to rank, an integer or its digits; None or "" for the setting.
            version: the version to ask, an integer or its digits; None or "" for the default one.

        Raises:
            MissingImage: there is no payload.
            BadParameter: `top_k` or `version` is no whole number or out of range.
            CifarError: see `preprocess` and `LoadedVersions.get`.
        """
        if payload is None:
            raise MissingImage(
                "No image came. Send one as the file field `image`, or as the body with Content-Type image/*."
            )
        wanted = _integer("top_k", top_k)
        predictor = self.versions.get(_integer("version", version))
        with self._places:
            return self._classify(predictor, payload, wanted, self._settings.max_image_pixels)

    def classify_at_once(self, payload: bytes | None, *, top_k: object = None) -> Classification | None:
        """Classify a small image with the default version, when that waits for nothing and takes about a millisecond.

        An event loop may call this itself: handing such an image to a thread costs more than classifying it.

        Returns:
            None where `classify` in a thread is due: a large file or picture, or a version that is not loaded or is slow.

        Raises:
            CifarError: as `classify`.
        """
        predictor = self.versions.default_if_loaded()
        if payload is None or len(payload) > _AT_ONCE_BYTES or predictor is None or not predictor.quick:
            return None
        pixels = min(_AT_ONCE_PIXELS, self._settings.max_image_pixels)
        try:
            return self._classify(predictor, payload, _integer("top_k", top_k), pixels)
        except ImageTooLarge:  # known from the header alone
            return None

    def _classify(self, predictor: Predictor, payload: bytes, wanted: int | None, max_pixels: int) -> Classification:
        count = predictor.at_most(self._settings.default_top_k) if wanted is None else wanted
        pixels = preprocess(payload, **predictor.image.model_dump(), max_pixels=max_pixels)
        started = time.perf_counter()
        (prediction,) = predictor.predict(pixels[None], top_k=count)
        inference_ms = (time.perf_counter() - started) * 1000
        return Classification(predictor.version.name, predictor.version.number, prediction, pixels, inference_ms)


def _integer(name: str, value: object) -> int | None:
    """What a form, a JSON body or a slider sent as a whole number."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not _WHOLE_NUMBER.fullmatch(str(value)):
        raise BadParameter(f"{name} must be a whole number; got {str(value)[:40]!r}.")
    return int(str(value))
