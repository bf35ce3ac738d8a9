"""Builders of small models, for Keras 3 and Keras 2 (`k`). `corpus.py` says what each stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (12, 12, 3)
OWN_LAYERS = (Path(__file__).parents[1] / "data" / "own_layers.txt").read_text()
"""Python code of layers, in which {library} stands for keras or tf_keras."""


def unchanged(values: Any) -> Any:
    return values


def head(k: Any, pixels: Any, activation: Any = "softmax", units: int = 3, **options: Any) -> Any:
    features = k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(4, 3, activation="relu")(pixels))
    return k.layers.Dense(units, activation=activation, **options)(features)


def functional(
    k: Any,
    activation: Any = "softmax",
    units: int = 3,
    *,
    shape: tuple[int | None, ...] = SHAPE,
    before: Callable[[Any], Any] = unchanged,
    dtype: str | None = None,
    **options: Any,
) -> Any:
    """Return a small Functional model, with layers `before` the convolution and the last layer in `dtype`."""
    pixels = k.Input(shape, **options)
    return k.Model(pixels, head(k, before(pixels), activation, units, dtype=dtype))


def last_layers(k: Any) -> list[Any]:
    return [k.layers.Flatten(), k.layers.Dense(3, "softmax")]


def own_module(k: Any) -> dict[str, Any]:
    """Return the names in the module `own`, which is named with --import."""
    names: dict[str, Any] = {"__name__": "own"}
    exec(OWN_LAYERS.format(library=k.__name__).replace("tf.keras", k.__name__), names)  # noqa: S102
    return names


def compiled(model: Any, loss: Any) -> Any:
    model.compile("adam", loss)
    return model


def sequential(k: Any) -> Any:
    layers = k.layers
    blocks = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.SeparableConv2D(4, 3), layers.DepthwiseConv2D(3)]
    return k.Sequential([k.Input(SHAPE), *blocks, layers.Flatten(), layers.Dropout(0.3), layers.Dense(3, "softmax")])


def teachable_machine(k: Any) -> Any:
    layers = k.layers
    features = k.Sequential([k.Input(SHAPE), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    top = k.Sequential([k.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(3, "softmax", use_bias=False)])
    return k.Sequential([k.Input(SHAPE), features, top])


def transfer(k: Any) -> Any:
    inner = k.Input(SHAPE)
    base = k.Model(inner, k.layers.BatchNormalization()(k.layers.Conv2D(4, 3)(inner)))
    pixels = k.Input(SHAPE)
    return k.Model(pixels, k.layers.Dense(3, "softmax")(k.layers.GlobalMaxPooling2D()(base(pixels, training=False))))


def augmentation(k: Any) -> Any:
    layers = k.layers
    augment = k.Sequential([k.Input(SHAPE), layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)])
    return functional(k, before=lambda pixels: layers.GaussianNoise(0.5)(layers.Rescaling(1 / 255)(augment(pixels))))


def ensemble(k: Any) -> Any:
    places = k.layers.Conv2D(3, 3, activation="softmax")
    return compiled(k.Sequential([k.Input(SHAPE), places, k.layers.GlobalAveragePooling2D()]), cross_entropy(k))


def largest_of_sigmoids(k: Any) -> Any:
    places = k.layers.Conv2D(1, 3, activation="sigmoid")
    return k.Sequential([k.Input(SHAPE), places, k.layers.GlobalMaxPooling2D()])


def own_predict(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return own_module(k)["Prepares"](pixels, head(k, pixels))


def several_outputs(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    flat = k.layers.Flatten()(pixels)
    return k.Model(pixels, [k.layers.Dense(4, name="box")(flat), k.layers.Dense(3, "softmax", name="label")(flat)])


def dictionary_of_outputs(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, {"zeros": head(k, pixels, None, 4), "label": head(k, pixels)})


def losses_in_a_list(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    label = k.layers.Average(name="label")([head(k, pixels), head(k, pixels)])
    outputs = [k.layers.Dense(4, name="tags")(k.layers.Flatten()(pixels)), label]
    losses = [k.losses.BinaryCrossentropy(from_logits=True), "categorical_crossentropy"]
    return compiled(k.Model(pixels, outputs), losses)


def dictionary_of_inputs(k: Any) -> Any:
    pixels = k.Input(SHAPE, name="image")
    return k.Model({"image": pixels}, head(k, pixels))


def uint8_input(k: Any) -> Any:
    pixels = k.Input(SHAPE, dtype="uint8")
    return k.Model(pixels, head(k, k.layers.Rescaling(1 / 255)(pixels)))


def signed_bytes(k: Any) -> Any:
    pixels = k.Input(SHAPE, dtype="int8")
    return k.Model(pixels, head(k, k.layers.Rescaling(1 / 128)(pixels)))


def mixed_precision(k: Any) -> Any:
    policy = "mixed_float16"
    layers, pixels = k.layers, k.Input(SHAPE)
    features = layers.BatchNormalization(dtype=policy)(layers.Conv2D(4, 3, dtype=policy)(pixels))
    return k.Model(pixels, layers.Dense(3, "softmax", dtype=policy)(layers.GlobalMaxPooling2D(dtype=policy)(features)))


def own_layers(k: Any) -> Any:
    own = own_module(k)
    return functional(k, before=lambda pixels: k.layers.Activation(own["double"])(own["Scale"]()(pixels)))


def outputs_of_one_layer(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(
        pixels, k.ops.split(k.layers.Softmax()(k.layers.Reshape((2, 3))(head(k, pixels, None, 6))), 2, axis=1)
    )


def rows(k: Any) -> Any:
    layers = [k.layers.Conv1D(4, 3, activation="relu"), k.layers.GlobalMaxPooling1D()]
    return k.Sequential([k.Input((None, 12)), *layers, *last_layers(k)])


def pixels_in_sequence(k: Any) -> Any:
    return k.Sequential([k.Input((144, 3)), k.layers.Conv1D(4, 5, activation="relu"), *last_layers(k)])


def subclass(k: Any) -> Any:
    model = own_module(k)["Subclassed"]()
    model(np.zeros((1, *SHAPE), np.float32))
    return model


def lambda_layer(k: Any) -> Any:
    shape = {} if k.__name__ == "tf_keras" else {"output_shape": SHAPE}
    return k.Sequential([k.Input(SHAPE), k.layers.Lambda(lambda x: x * np.float32(2), **shape), *last_layers(k)])


def lambda_of_keras(k: Any) -> Any:
    prepare = k.layers.Lambda(k.applications.mobilenet_v2.preprocess_input, output_shape=SHAPE)
    return functional(k, before=prepare)


def unreadable_by_keras(k: Any) -> Any:
    import tensorflow as tf
    from keras.src.applications.convnext import LayerScale

    return functional(
        k, tf.nn.softmax, before=lambda pixels: k.layers.Activation(tf.nn.silu)(LayerScale(0.5, 3)(pixels))
    )


def several_inputs(k: Any) -> Any:
    pixels, numbers = k.Input(SHAPE), k.Input((3,))
    return k.Model([pixels, numbers], k.layers.Add()([head(k, pixels), numbers]))


def cross_entropy(k: Any) -> Any:
    return k.losses.SparseCategoricalCrossentropy(from_logits=True)
