"""Makes the models in old_models.zip, each by the TensorFlow and Keras that were new in its time.

Run it once with each writer, then zip the folder OUT: `python make_old_models.py OUT`, in an environment of its own with

    keras-2.2       Python 3.7, tensorflow==1.15.5, keras==2.2.4 (with `--keras`)
    tensorflow-1.15 Python 3.7, tensorflow==1.15.5
    tensorflow-2.4  Python 3.8, tensorflow-cpu==2.4.4
    tensorflow-2.15 Python 3.10, tensorflow-cpu==2.15.1

Every model takes 12x12 images with values from 0 to 1. `answers.npz` holds what the writer itself answers to `IMAGES`, as
probabilities.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

OUT = sys.argv[1]
if "--keras" in sys.argv:
    import keras

    WRITER = "keras-" + ".".join(keras.__version__.split(".")[:2])
else:
    keras = tf.keras
    WRITER = "tensorflow-" + ".".join(tf.__version__.split(".")[:2])
layers = keras.layers
FOLDER = Path(OUT) / WRITER
IMAGES = np.random.RandomState(5).randint(0, 256, (4, 12, 12, 3)).astype(np.uint8)
ANSWERS = {}


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def save(model, name, prepare=lambda images: images, finish=lambda answer: answer, forms=(".h5", "")):
    """Write a model as HDF5 (`.h5`), as a SavedModel (no ending), or as `.keras`."""
    ANSWERS[name] = finish(model.predict(prepare(IMAGES / np.float32(255))))
    for form in forms:
        path = str(FOLDER / (name + form))
        if form == "" and tf.__version__ < "2":
            tf.keras.experimental.export_saved_model(model, path)
        elif "--keras" in sys.argv:
            model.save(path)
        else:
            model.save(path, save_format={".h5": "h5", ".keras": "keras", "": "tf"}[form])


def network(pixels, activation="softmax", units=3):
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(pixels))
    return layers.Dense(units, activation=activation)(features)


FOLDER.mkdir(parents=True)
EVERY = {"keras": (".h5", ".keras")}.get(
    WRITER.split("-")[0], (".h5", "", ".keras") if "2.15" in WRITER else (".h5", "")
)
sequential = keras.models.Sequential(
    [
        layers.Conv2D(4, 3, input_shape=(12, 12, 3)),
        layers.BatchNormalization(),
        layers.SeparableConv2D(4, 3),
        layers.DepthwiseConv2D(3),
        layers.Dropout(0.2),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ]
)
sequential.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
save(sequential, "sequential", forms=EVERY)
# Teachable Machine's shape: a Sequential of Sequentials.
features = keras.models.Sequential(
    [layers.Conv2D(4, 3, input_shape=(12, 12, 3)), layers.BatchNormalization(), layers.GlobalAveragePooling2D()]
)
head = keras.models.Sequential(
    [layers.Dense(5, input_shape=(4,)), layers.Dense(3, use_bias=False, activation="softmax")]
)
save(keras.models.Sequential([features, head]), "nested", forms=EVERY)
pixels = layers.Input((12, 12, 3))
save(
    keras.models.Model(pixels, network(pixels, "sigmoid", 1)),
    "sigmoid",
    finish=lambda answer: np.concatenate([1 - answer, answer], axis=1),
    forms=EVERY[:1],
)
if WRITER.startswith("tensorflow-2"):
    pixels = layers.Input((12, 12, 3))
    logits = keras.models.Model(pixels, network(pixels, None))
    logits.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    save(logits, "logits", finish=softmax, forms=EVERY)
    pixels = layers.Input((12, 12, 3))
    prepared = tf.keras.applications.mobilenet_v2.preprocess_input(pixels)
    save(keras.models.Model(pixels, network(prepared)), "operations", forms=EVERY)
    preprocessing = layers if "2.15" in WRITER else layers.experimental.preprocessing
    augmented = [preprocessing.RandomFlip(input_shape=(12, 12, 3)), preprocessing.Rescaling(1.0)]
    save(keras.models.Sequential([*augmented, layers.Flatten(), layers.Dense(3, activation="softmax")]), "augmented")
if "2.15" in WRITER:
    save(
        keras.Sequential(
            [layers.Lambda(lambda x: x * 2, input_shape=(12, 12, 3)), layers.Flatten(), layers.Dense(3, "softmax")]
        ),
        "lambda",
        forms=(".h5", ""),
    )
    pixels = layers.Input((12, 12, 3))
    outputs = {"label": network(pixels), "box": network(pixels, None, 4)}
    save(keras.Model(pixels, outputs), "two_outputs", finish=lambda answer: answer["label"], forms=(".keras",))
    sequential.export(str(FOLDER / "exported"))
    ANSWERS["exported"] = ANSWERS["sequential"]
np.savez(str(FOLDER / "answers.npz"), images=IMAGES, **ANSWERS)
