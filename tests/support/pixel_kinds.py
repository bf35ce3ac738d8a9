"""Models whose pixel range the layers show, and models where it must be asked, with what their authors did to the pixels."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from support.classifiers import BRIGHTNESSES, L, adapted, augmentation, functional, photos, sequential

ops = keras.ops
preprocess_input = keras.applications.imagenet_utils.preprocess_input


@keras.saving.register_keras_serializable("test")
class Divide(keras.layers.Layer):
    """A layer of somebody's own that only scales."""

    def call(self, images):
        return images / 255.0


@keras.saving.register_keras_serializable("test")
class DivideOneByOne(keras.layers.Layer):
    """Scales in a loop over the images."""

    def call(self, images):
        return ops.map(lambda image: image / 255.0, images)


@keras.saving.register_keras_serializable("test")
class DivideBytes(keras.layers.Layer):
    """Scales images whose values show that they are not scaled."""

    def call(self, images):
        return ops.cond(ops.max(images) > 1, lambda: images / 255.0, lambda: images)


@keras.saving.register_keras_serializable("test")
class ScalingConvolution(keras.layers.Conv2D):
    """A layer of somebody's own that scales and then convolves."""

    def call(self, images):
        return super().call(images / 255.0)


@keras.saving.register_keras_serializable("test")
class HiddenScaling(keras.Model):
    """A Functional model whose subclass does more than its graph shows."""

    def call(self, inputs, **arguments):
        return super().call(inputs / 255.0, **arguments)


def branches(second):
    """Return a network with a branch behind a Rescaling, and another one behind the layer `second`."""
    both = L.Rescaling(1 / 255), second
    return functional(lambda pixels: L.Concatenate()([L.Conv2D(2, 3)(layer(pixels)) for layer in both]))


def created_backwards():
    """Return a model whose Conv2D was created, and therefore named, before the layer that scales for it."""
    convolution, pixels = L.Conv2D(4, 3, name="a_first"), L.Input((16, 16, 3))
    return keras.Model(pixels, L.Dense(3, activation="softmax")(L.Flatten()(convolution(L.Rescaling(1 / 255)(pixels)))))


def transfer(base, **options):
    """Return a head on a network of `keras.applications` without weights, called as the transfer-learning guide does."""
    network = base(weights=None, include_top=False, input_shape=(32, 32, 3), **options)

    def prepare(pixels):
        return network(augmentation()(pixels), training=False)

    pixels = L.Input((32, 32, 3))
    return keras.Model(pixels, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(prepare(pixels))))


def transfer_by_name():
    """Return a head on a network that has the name, and here not the size, of one of `keras.applications`."""
    inside = L.Input((16, 16, 3))
    network = keras.Model(inside, L.Conv2D(4, 3)(inside), name="mobilenetv2_0.35_32")
    return functional(lambda pixels: network(augmentation()(pixels), training=False))


def recurrent(*before):
    """Return a network that reads each image line by line, forwards and backwards. Its loops contain weights."""
    lines = (L.Reshape((16, 48)), L.Bidirectional(L.LSTM(24, return_sequences=True)), L.Reshape((16, 16, 3)))
    return sequential(*before, *lines)


def hidden_in_a_subclass():
    plain = sequential()
    return HiddenScaling(plain.inputs, plain.outputs)


def functional_of_bytes():
    pixels = L.Input((16, 16, 3), dtype="uint8")
    values = L.Conv2D(4, 3, activation="tanh")(ops.cast(pixels, "float32"))
    return keras.Model(pixels, L.Dense(3, activation="softmax")(L.Flatten()(values)))


def channel_means(pixels, means):
    return ops.stack([pixels[..., at] - mean for at, mean in enumerate(means)], axis=-1)


SHADES = tuple(BRIGHTNESSES)
"""The classes of `by_brightness`."""
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
CAFFE = (123.68, 116.779, 103.939)

DERIVED = {
    # scaled from 0..255
    "rescaling": (lambda: sequential(L.Rescaling(1 / 255)), "0,255"),
    "rescaling_to_-1..1": (lambda: sequential(L.Rescaling(1 / 127.5, -1)), "0,255"),
    "rescaling_by_256": (lambda: sequential(L.Rescaling(1 / 256)), "0,255"),
    "rescaling_by_128": (lambda: sequential(L.Rescaling(1 / 128, -1)), "0,255"),
    "rescaling_to_-0.5..0.5": (lambda: sequential(L.Rescaling(1 / 255, -0.5)), "0,255"),
    "augmentation_before": (lambda: sequential(augmentation(), L.Rescaling(1 / 255)), "0,255"),
    "nested_with_augmentation": (
        lambda: sequential(keras.Sequential([L.RandomFlip(), L.RandomContrast(0.1), L.Rescaling(1 / 255)])),
        "0,255",
    ),
    "nested_twice": (
        lambda: sequential(keras.Sequential([augmentation(), keras.Sequential([L.Rescaling(1 / 255)])])),
        "0,255",
    ),
    "seeds_that_change": (
        lambda: sequential(L.RandomSharpness(0.3), L.RandomSaturation(0.3), L.RandomGrayscale(), L.Rescaling(1 / 255)),
        "0,255",
    ),
    "resizing_before": (lambda: sequential(L.Resizing(12, 12), L.Rescaling(1 / 255)), "0,255"),
    "crops_before": (lambda: sequential(L.CenterCrop(14, 14), L.Cropping2D(1), L.Rescaling(1 / 255)), "0,255"),
    "padding_before": (lambda: sequential(L.ZeroPadding2D(2), L.Rescaling(1 / 127.5, -1)), "0,255"),
    "noise_before": (
        lambda: sequential(
            L.GaussianNoise(0.9), L.Dropout(0.1), L.Identity(), L.Activation("linear"), L.Rescaling(1 / 255)
        ),
        "0,255",
    ),
    "permuted_before": (
        lambda: sequential(L.Permute((2, 1, 3)), L.Reshape((16, 16, 3)), L.Rescaling(1 / 255)),
        "0,255",
    ),
    "pooling_before": (lambda: sequential(L.AveragePooling2D(2), L.Rescaling(1 / 255)), "0,255"),
    "divided": (lambda: functional(lambda pixels: pixels / 255.0), "0,255"),
    "divided_then_standardised": (lambda: functional(lambda pixels: (pixels / 255.0 - MEAN) / STD), "0,255"),
    "divided_by_named_arguments": (lambda: functional(lambda pixels: ops.divide(x1=pixels, x2=255.0)), "0,255"),
    "nested_and_layer_by_named_arguments": (
        lambda: functional(lambda pixels: L.Rescaling(1 / 255)(inputs=augmentation()(inputs=pixels))),
        "0,255",
    ),
    "shifted_then_divided": (lambda: functional(lambda pixels: (pixels - 127.5) / 127.5), "0,255"),
    "own_means_subtracted": (lambda: functional(lambda pixels: pixels - np.float32([125.3, 123.0, 113.9])), "0,255"),
    "own_means_by_channel": (lambda: functional(lambda pixels: channel_means(pixels, (125.3, 123.0, 113.9))), "0,255"),
    "negative": (lambda: functional(lambda pixels: (255.0 - pixels) / 255.0), "0,255"),
    "made_grey": (lambda: functional(lambda pixels: ops.image.rgb_to_grayscale(pixels) / 255.0), "0,255"),
    "preprocess_input_tf": (lambda: functional(lambda pixels: preprocess_input(pixels, mode="tf")), "0,255"),
    "preprocess_input_caffe": (lambda: functional(lambda pixels: preprocess_input(pixels, mode="caffe")), "0,255"),
    "preprocess_input_torch": (lambda: functional(lambda pixels: preprocess_input(pixels, mode="torch")), "0,255"),
    "normalization_named": (
        lambda: sequential(L.Normalization(mean=[123.7, 116.3, 103.5], variance=[3409.0, 3262.0, 3291.0])),
        "0,255",
    ),
    "normalization_adapted": (lambda: sequential(adapted(photos().astype(np.float32))), "0,255"),
    "normalization_after_rescaling": (
        lambda: sequential(L.Rescaling(1 / 255), adapted(photos().astype(np.float32) / 255)),
        "0,255",
    ),
    "rescaled_twice": (lambda: sequential(L.Rescaling(1 / 255), L.Rescaling(1 / 255)), "0,255"),
    "rescaled_there_and_back": (lambda: sequential(L.Rescaling(1 / 255), L.Rescaling(255.0)), "0,255"),
    "two_branches": (lambda: branches(L.Rescaling(1 / 127.5, -1)), "0,255"),
    "one_branch_scaled": (lambda: branches(L.Identity()), "0,255"),
    "created_backwards": (created_backwards, "0,255"),
    "layer_of_ones_own": (lambda: sequential(Divide()), "0,255"),
    "scaled_in_a_loop": (lambda: sequential(DivideOneByOne()), "0,255"),
    "scaled_under_a_condition": (lambda: sequential(DivideBytes()), "0,255"),
    "recurrent_after_rescaling": (lambda: recurrent(L.Rescaling(1 / 255)), "0,255"),
    "scaling_inside_a_layer_with_weights": (lambda: sequential(ScalingConvolution(4, 3)), "0,255"),
    "scaling_inside_a_subclass": (hidden_in_a_subclass, "0,255"),
    "grey": (lambda: sequential(L.Rescaling(1 / 255), shape=(16, 16, 1)), "0,255"),
    "no_channel_axis": (lambda: sequential(L.Reshape((16, 16, 1)), L.Rescaling(1 / 255), shape=(16, 16)), "0,255"),
    "rgba": (lambda: sequential(L.Rescaling(1 / 255), shape=(16, 16, 4)), "0,255"),
    "uint8_input": (lambda: sequential(L.Rescaling(1 / 255), dtype="uint8"), "0,255"),
    "uint8_input_unscaled": (functional_of_bytes, "0,255"),
    "mobilenet_v3": (lambda: transfer(keras.applications.MobileNetV3Small), "0,255"),
    # scaled from 0..1
    "doubled_minus_1": (lambda: sequential(L.Rescaling(2.0, -1.0)), "0,1"),
    "minus_a_half": (lambda: functional(lambda pixels: pixels - 0.5), "0,1"),
    "multiplied_to_255": (lambda: sequential(augmentation(), L.Rescaling(255.0)), "0,1"),
    "multiplied_then_caffe": (lambda: functional(lambda pixels: preprocess_input(pixels * 255.0, mode="caffe")), "0,1"),
    "standardised": (lambda: functional(lambda pixels: (pixels - MEAN) / STD), "0,1"),
    "normalization_of_halves": (lambda: sequential(L.Normalization(mean=0.5, variance=0.25)), "0,1"),
    "normalization_of_imagenet": (
        lambda: sequential(L.Normalization(mean=MEAN.tolist(), variance=(STD**2).tolist())),
        "0,1",
    ),
    # scaled from -1..1
    "halved_plus_a_half": (lambda: sequential(L.Rescaling(0.5, 0.5)), "-1,1"),
    "plus_1_halved": (lambda: functional(lambda pixels: (pixels + 1) / 2), "-1,1"),
    "to_bytes": (lambda: functional(lambda pixels: pixels * 127.5 + 127.5), "-1,1"),
}

ASKED = {
    "convolution_first": (sequential, "0,1"),
    "recurrent_first": (recurrent, "0,1"),
    "augmentation_only": (lambda: sequential(augmentation()), "0,255"),
    "resizing_only": (lambda: sequential(L.Resizing(12, 12)), "-1,1"),
    "batch_normalization_first": (lambda: sequential(L.BatchNormalization()), "0,255"),
    "identity": (lambda: sequential(L.Rescaling(1.0)), "0,255"),
    "halved": (lambda: sequential(L.Rescaling(0.5)), "0,1"),
    "doubled": (lambda: sequential(L.Rescaling(2.0)), "0,1"),
    "of_16_bits": (lambda: sequential(L.Rescaling(1 / 65535)), "0,65535"),
    "normalization_of_0..1": (lambda: sequential(adapted(photos().astype(np.float32) / 255)), "0,1"),
    "normalization_of_caffe": (lambda: sequential(adapted(photos().astype(np.float32) - 120)), "caffe"),
    "divided_by_the_maximum": (
        lambda: functional(lambda pixels: pixels / ops.max(pixels, (1, 2, 3), keepdims=True)),
        "0,1",
    ),
    "divided_by_the_maximum_of_the_batch": (lambda: functional(lambda pixels: pixels / ops.max(pixels)), "0,1"),
    "clipped": (lambda: functional(lambda pixels: ops.clip(pixels, 0, 1)), "0,1"),
    "standardised_by_image": (
        lambda: functional(
            lambda x: (x - ops.mean(x, (1, 2, 3), keepdims=True)) / (ops.std(x, (1, 2, 3), keepdims=True) + 1e-5)
        ),
        "0,1",
    ),
    "means_in_the_order_of_bgr": (lambda: functional(lambda pixels: pixels - np.float32(CAFFE[::-1])), "bgr:0,255"),
    "means_in_the_order_of_bgr_by_channel": (lambda: functional(lambda x: channel_means(x, CAFFE[::-1])), "bgr:0,255"),
    "standardised_in_the_order_of_bgr": (
        lambda: functional(lambda pixels: (pixels / 255.0 - MEAN[::-1]) / STD[::-1]),
        "bgr:0,255",
    ),
    "contradicting_branches": (lambda: branches(L.Rescaling(2.0, -1.0)), "0,1"),
    "network_of_keras_applications": (transfer_by_name, "-1,1"),
    "caffe_outside": (sequential, "caffe"),
    "torch_outside": (sequential, "torch"),
    "grey": (lambda: sequential(shape=(16, 16, 1)), "0,1"),
    "normalization_after_the_network": (lambda: sequential(L.Conv2D(3, 3), L.Rescaling(1 / 255)), "0,1"),
}


def as_the_author_prepared(images: np.ndarray, name: str) -> np.ndarray:
    """Prepare `uint8` images by the functions that authors use, not by those under test."""
    pixels = images.astype(np.float32)
    if name in {"caffe", "torch"}:
        return preprocess_input(pixels.copy(), mode=name)
    if "/" in name:
        means, deviations = (np.float32(numbers.split(",")) for numbers in name.split("/"))
        return (pixels - means) / deviations
    low, high = map(float, name.removeprefix("bgr:").split(","))
    return (pixels[..., ::-1] if name.startswith("bgr:") else pixels) / 255 * (high - low) + low


def author_answers(model: keras.Model, images: np.ndarray, name: str) -> np.ndarray:
    prepared = as_the_author_prepared(images, name)
    shape = model.input_shape[1:]
    if len(shape) == 2:
        prepared = prepared[..., 0]
    elif shape[-1] == 4:
        prepared = np.concatenate([prepared, np.full_like(prepared[..., :1], 255)], axis=-1)
    return model.predict(prepared.astype(model.inputs[0].dtype), verbose=0)


def saved(model: keras.Model, folder: Path) -> Path:
    model.save(folder / "model.keras")
    return folder / "model.keras"


def pictures_for(model: keras.Model) -> np.ndarray:
    channels = 1 if len(model.input_shape) == 3 or model.input_shape[-1] == 1 else 3
    return photos(8, model.input_shape[1], channels)
