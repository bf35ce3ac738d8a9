"""The function that is exported: preparation of the pixels, network, probabilities and out-of-distribution score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from cifar.training.export.source import ExportSource
from cifar.training.run.calibration import calibrated, raw_score, scaled_score, with_features


def exported_function(source: ExportSource, arrays: Mapping[str, Any] | None = None) -> Callable[[Any], dict[str, Any]]:
    """Return the function that is exported: from float images in [0, 1] to output tensors by name.

    `arrays` are the parameters of the out-of-distribution score as variables; by default, those of the confidence are constants.
    """
    confidence = source.confidence
    scored = with_features(source.model.layers) if confidence else None

    def answer(unit_images: Any) -> dict[str, Any]:
        pixels = source.pixels.preparation(unit_images)
        if confidence is None or scored is None:
            outputs = source.model(pixels)
            to_probabilities = keras.ops.sigmoid if source.multi_label else keras.ops.softmax
            return {"probabilities": to_probabilities(outputs) if source.model.logits else outputs}
        features, probabilities = scored(pixels, training=False)
        return {
            "probabilities": calibrated(probabilities, confidence.temperature),
            "ood_score": scaled_score(raw_score(features, arrays or confidence.arrays), confidence),
        }

    return answer
