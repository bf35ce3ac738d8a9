"""LitServe with the same SavedModel, as its documentation shows: one worker process, batches of up to 32."""

import io
import sys

import litserve as ls
import numpy as np
from fastapi import Request
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Classify(ls.LitAPI):
    def setup(self, device):
        import tensorflow as tf

        self.tf = tf
        self.model = tf.saved_model.load("saved_model/cifar_classifier/1")
        self.infer = self.model.signatures["serving_uint8"]

    def decode_request(self, request: Request):
        image = Image.open(io.BytesIO(request["image"].file.read())).convert("RGB").resize((32, 32))
        return np.asarray(image)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.infer(image=self.tf.constant(x))["probabilities"].numpy()

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"predicted_class": CLASSES[int(output.argmax())], "class_scores": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Classify(max_batch_size=32, batch_timeout=0.002), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
