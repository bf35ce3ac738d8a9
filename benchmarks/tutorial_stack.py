"""The tutorial's service as the tutorial describes it: Flask, Pillow's resize, the SavedModel's signature, one image a call.

It serves the highest version of the registry, which the Space serves by default too.

Run with `gunicorn -c /dev/null -w 4 benchmarks.tutorial_stack:app`, sync workers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from flask import Flask, jsonify, request
from PIL import Image

from cifar import CLASS_NAMES
from cifar.models.registry import Registry

app = Flask(__name__)
model = tf.saved_model.load(str(Registry(Path("saved_model"), "cifar_classifier").get().path))
infer = model.signatures["serving_default"]


@app.post("/predict")
def predict():
    if "image" not in request.files:
        return jsonify({"error": "no image"}), 400
    image = Image.open(request.files["image"].stream).convert("RGB").resize((32, 32))
    batch = np.asarray(image, np.float32)[None] / 255
    scores = infer(input_image=tf.constant(batch))["probabilities"].numpy()[0]
    return jsonify(
        {
            "predicted_class": CLASS_NAMES[int(scores.argmax())],
            "confidence": round(float(scores.max()), 4),
            "class_scores": dict(zip(CLASS_NAMES, scores.tolist(), strict=True)),
        }
    )
