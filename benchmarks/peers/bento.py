"""BentoML with the same SavedModel, as its documentation shows: two workers."""

from __future__ import annotations

import bentoml
import numpy as np
import tensorflow as tf
from PIL.Image import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@bentoml.service(workers=2)
class Classify:
    def __init__(self) -> None:
        self.model = tf.saved_model.load("saved_model/cifar_classifier/1")
        self.infer = self.model.signatures["serving_uint8"]

    @bentoml.api(route="/predict")
    def predict(self, image: Image) -> dict:
        pixels = np.asarray(image.convert("RGB").resize((32, 32)))
        scores = self.infer(image=tf.constant(pixels[None]))["probabilities"].numpy()[0]
        return {"predicted_class": CLASSES[int(scores.argmax())], "class_scores": scores.tolist()}
