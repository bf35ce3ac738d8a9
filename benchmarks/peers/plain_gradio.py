"""Gradio as its documentation shows it, with the same SavedModel: one process, `launch()`."""

from __future__ import annotations

import sys

import gradio as gr
import numpy as np
import tensorflow as tf

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
model = tf.saved_model.load("saved_model/cifar_classifier/1")
infer = model.signatures["serving_uint8"]


def predict(image):
    pixels = np.asarray(image.convert("RGB").resize((32, 32)))
    scores = infer(image=tf.constant(pixels[None]))["probabilities"].numpy()[0]
    return dict(zip(CLASSES, scores.tolist(), strict=True))


with gr.Blocks(analytics_enabled=False) as page:
    image = gr.Image(type="pil")
    image.change(predict, image, gr.Label(), api_name="predict", queue=False)

page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), ssr_mode=False, quiet=True)
