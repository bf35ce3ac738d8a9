"""The tutorial's service as the tutorial describes it: Flask, Pillow's resize, the SavedModel's signature, one image a call.

It serves the version with the number `BENCH_VERSION`. Run with `gunicorn -c /dev/null -w 4 benchmarks.tutorial_stack:app`, sync workers.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from flask import Flask, jsonify, request
from PIL import Image

from cifar.models.registry import Registry
from cifar.settings import Settings

app = Flask(__name__)
version = Registry(Settings().registry, Settings().model_name).get(int(os.environ["BENCH_VERSION"]))
infer = tf.saved_model.load(str(version.path)).signatures["serving_default"]
class_names = version.manifest.class_names


@app.post("/predict")
def predict():
    if "image" not in request.files:
        return jsonify({"error": "no image"}), 400
    image = Image.open(request.files["image"].stream).convert("RGB").resize((32, 32))
    batch = np.asarray(image, np.float32)[None] / 255
    scores = infer(input_image=tf.constant(batch))["probabilities"].numpy()[0]
    return jsonify(
        {
            "predicted_class": class_names[int(scores.argmax())],
            "confidence": round(float(scores.max()), 4),
            "class_scores": dict(zip(class_names, scores.tolist(), strict=True)),
        }
    )
