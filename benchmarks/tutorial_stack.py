"""The tutorial's service as the tutorial describes it: Flask, Pillow's resize, the SavedModel's signature, one image a call.

It serves the SavedModel in the folder `BENCH_MODEL`, and imports nothing of this project. Run with `gunicorn -c /dev/null -w 4 benchmarks.tutorial_stack:app`, sync workers.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from flask import Flask, jsonify, request
from PIL import Image

app = Flask(__name__)
model = tf.saved_model.load(os.environ["BENCH_MODEL"])
infer = model.signatures["serving_default"]
class_names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


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
            "class_scores": scores.tolist(),
        }
    )
