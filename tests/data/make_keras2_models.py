"""Makes the Keras 2 files beside this script: `pip install tf-keras` in an environment of its own, then run it.

They stand for the `.h5` files people have lying about: inputs in [0, 1], no rescaling layer, layer names of their own.
"""

import pathlib
import sys

import numpy as np
import tf_keras as keras

assert keras.__version__.startswith("2."), keras.__version__
folder = pathlib.Path(sys.argv[0]).parent
keras.utils.set_random_seed(7)

tutorial = keras.Sequential(
    [
        keras.layers.Conv2D(32, 3, activation="relu", input_shape=(32, 32, 3), name="first/conv"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax", name="answer"),
    ]
)
tutorial.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
tutorial.save(folder / "keras2_tutorial.h5", include_optimizer=False)

pixels = keras.Input((64, 64, 3), name="my input")
features = keras.layers.DepthwiseConv2D(3, strides=4, activation="relu")(pixels)
features = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(features))
logits = keras.layers.Dense(3, name="my_logits")(features)
three = keras.Model(pixels, logits)
three.save(folder / "keras2_64px_3classes_logits.h5")

# Keras 2's own answers to the same images, for the tests to compare with.
images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
answers = {
    "keras2_tutorial": tutorial(images[:, ::2, ::2] / 255.0).numpy(),
    "keras2_64px_3classes_logits": three(images / 255.0).numpy(),
}
np.savez(folder / "keras2_answers.npz", images=images, **answers)
