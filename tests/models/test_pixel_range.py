"""The pixel values that a model expects: derived from its layers, measured on labelled pictures, or asked. Never guessed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image
from support.classifiers import (
    BRIGHTNESSES,
    NAMES,
    L,
    adapted,
    augmentation,
    by_brightness,
    functional,
    photos,
    sequential,
)
from support.pictures import encoded

from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.images.spec import ImageSpec
from cifar.models.predictor import Predictor
from cifar.settings import ROOT
from cifar.training.export.pixels.decide import probabilities
from cifar.training.export.pixels.labelled import read_labelled
from cifar.training.export.pixels.preparation import parse_preparation
from cifar.training.export.source import read_source
from cifar.training.export.write import export

ops = keras.ops
preprocess_input = keras.applications.imagenet_utils.preprocess_input


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


@keras.saving.register_keras_serializable("test")
class Divide(keras.layers.Layer):
    """A layer of somebody's own that only scales."""

    def call(self, images):
        return images / 255.0


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


def branches(first, second):
    def prepare(pixels):
        return L.Concatenate()([L.Conv2D(2, 3)(first(pixels)), L.Conv2D(2, 3)(second(pixels))])

    return functional(prepare)


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
    "two_branches": (lambda: branches(L.Rescaling(1 / 255), L.Rescaling(1 / 127.5, -1)), "0,255"),
    "one_branch_scaled": (lambda: branches(L.Rescaling(1 / 255), L.Identity()), "0,255"),
    "created_backwards": (created_backwards, "0,255"),
    "layer_of_ones_own": (lambda: sequential(Divide()), "0,255"),
    "scaling_inside_a_layer_with_weights": (lambda: sequential(ScalingConvolution(4, 3)), "0,255"),
    "scaling_inside_a_subclass": (hidden_in_a_subclass, "0,255"),
    "grey": (lambda: sequential(L.Rescaling(1 / 255), shape=(16, 16, 1)), "0,255"),
    "no_channel_axis": (lambda: sequential(L.Reshape((16, 16, 1)), L.Rescaling(1 / 255), shape=(16, 16)), "0,255"),
    "rgba": (lambda: sequential(L.Rescaling(1 / 255), shape=(16, 16, 4)), "0,255"),
    "uint8_input": (lambda: sequential(L.Rescaling(1 / 255), dtype="uint8"), "0,255"),
    "uint8_input_unscaled": (functional_of_bytes, "0,255"),
    "slow_mobilenet_v3": (lambda: transfer(keras.applications.MobileNetV3Small), "0,255"),
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
    "contradicting_branches": (lambda: branches(L.Rescaling(1 / 255), L.Rescaling(2.0, -1.0)), "0,1"),
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


def saved(model: keras.Model, folder):
    model.save(folder / "model.keras")
    return folder / "model.keras"


def pictures_for(model: keras.Model) -> np.ndarray:
    channels = 1 if len(model.input_shape) == 3 or model.input_shape[-1] == 1 else 3
    return photos(8, model.input_shape[1], channels)


def kinds(table):
    return [pytest.param(kind, marks=pytest.mark.slow) if kind.startswith("slow_") else kind for kind in table]


@pytest.mark.parametrize("kind", kinds(DERIVED))
def test_a_range_that_the_layers_show_is_derived_and_the_answers_are_keras_own(settings, tmp_path, kind):
    """Layers that do not scale are passed, nested models too, and the first arithmetic on the pixels decides."""
    make, expected = DERIVED[kind]
    model = make()
    source = read_source(saved(model, tmp_path), settings, class_names=NAMES)
    assert (source.pixels.preparation.name, source.pixels.found_by) == (expected, "layers")
    images = pictures_for(model)
    answers = probabilities(source.model, source.pixels.preparation, images)
    np.testing.assert_allclose(answers, author_answers(model, images, expected), atol=2e-5)


@pytest.mark.parametrize("kind", kinds(ASKED))
def test_a_range_that_the_layers_do_not_show_is_asked_and_never_guessed(settings, tmp_path, kind):
    """A wrong guess gives wrong answers to everybody, and no comparison with the same wrong input can notice it."""
    make, truth = ASKED[kind]
    model = make()
    file = saved(model, tmp_path)
    with pytest.raises(ExportError, match=r"--input-range=LOW,HIGH: 0,255 .* 0,1 .* -1,1 ") as refusal:
        read_source(file, settings, class_names=NAMES)
    assert len(str(refusal.value).splitlines()) <= 3
    assert ("--preprocessing=bgr:0,255" in str(refusal.value)) == truth.startswith("bgr")
    assert ("(mobilenetv2_0.35_32 was published with --input-range=-1,1)" in str(refusal.value)) == (
        kind == "network_of_keras_applications"
    )
    source = read_source(file, settings, class_names=NAMES, input_range=parse_preparation(truth))
    images = pictures_for(model)
    answers = probabilities(source.model, source.pixels.preparation, images)
    np.testing.assert_allclose(answers, author_answers(model, images, truth), atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "expected"), [("rescaling", "0,255"), ("preprocess_input_caffe", "0,255"), ("doubled_minus_1", "0,1")]
)
def test_the_graph_of_a_saved_model_shows_the_range_as_layers_do(settings, tmp_path, kind, expected):
    """`model.export` of Keras 3 keeps no layers."""
    model = DERIVED[kind][0]()
    model.export(tmp_path / "model", verbose=False)
    source = read_source(tmp_path / "model", settings, class_names=NAMES)
    assert (source.pixels.preparation.name, source.pixels.found_by) == (expected, "layers")
    answers = probabilities(source.model, source.pixels.preparation, photos(8))
    np.testing.assert_allclose(answers, author_answers(model, photos(8), expected), atol=2e-5)


K2 = tf_keras.layers

KERAS2 = {
    "augmentation": (lambda pixels: K2.Rescaling(1 / 255)(K2.RandomBrightness(0.2)(K2.RandomFlip()(pixels))), "0,255"),
    "operations": (lambda pixels: tf.cast(pixels, "float32") / 127.5 - 1, "0,255"),
    "preprocess_input": (tf_keras.applications.resnet50.preprocess_input, "0,255"),
    "doubled_minus_1": (lambda pixels: pixels * 2.0 - 1.0, "0,1"),
    "nothing": (K2.RandomFlip(), None),
}


@pytest.mark.parametrize("suffix", [".h5", ""])
@pytest.mark.parametrize("kind", KERAS2)
def test_the_layers_of_keras_2_show_the_range_as_those_of_keras_3(settings, tmp_path, kind, suffix):
    """Operations are layers there, TFOpLambda and SlicingOpLambda, and a SavedModel keeps its layers too."""
    prepare, expected = KERAS2[kind]
    pixels = K2.Input((16, 16, 3))
    values = K2.Flatten()(K2.Conv2D(4, 3, activation="tanh")(prepare(pixels)))
    model = tf_keras.Model(pixels, K2.Dense(3, activation="softmax")(values))
    model.save(tmp_path / f"model{suffix}")
    if expected is None:
        with pytest.raises(ExportError, match="--input-range=LOW,HIGH"):
            read_source(tmp_path / f"model{suffix}", settings, class_names=NAMES)
        return
    source = read_source(tmp_path / f"model{suffix}", settings, class_names=NAMES)
    assert (source.pixels.preparation.name, source.pixels.found_by) == (expected, "layers")
    answers = probabilities(source.model, source.pixels.preparation, photos(8))
    author = model.predict(as_the_author_prepared(photos(8), expected), verbose=0)
    np.testing.assert_allclose(answers, author, atol=2e-5)


def brightness_pictures(folder, count: int = 4, *, labels=tuple(BRIGHTNESSES), wrong: int = 0):
    """Write plain pictures into folders named after the classes, the first `wrong` of each class into another one."""
    dice = np.random.default_rng(1)
    for at, label in enumerate(labels):
        for number in range(count):
            name = labels[(at + 1) % len(labels) if number < wrong else at]
            value = BRIGHTNESSES[label]
            pixels = dice.integers(value - 8, value + 8, (20, 24, 3)).astype(np.uint8)
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{label}_{number}.png").write_bytes(encoded(Image.fromarray(pixels)))
    return folder


def flat(folder):
    """Move the pictures of class folders into one folder, named after their classes."""
    for file in sorted(folder.glob("*/*.png")):
        file.rename(folder / f"{file.parent.name.title()} {file.stem[-1]}.png")
    return folder


@pytest.mark.parametrize("truth", ["0,255", "0,1", "-1,1", "caffe", "torch"])
def test_labelled_pictures_decide_and_their_counts_are_recorded(settings, tmp_path, truth, caplog):
    """A user who does not know the range has pictures, and the true range gets them right."""
    black, white = {"caffe": (-116, 139), "torch": (-2.0, 2.4)}.get(truth) or map(float, truth.split(","))
    file = saved(by_brightness(black, white), tmp_path)
    pictures = brightness_pictures(tmp_path / "pictures")
    source = read_source(file, settings, class_names=SHADES, check=pictures)
    assert (source.pixels.preparation.name, source.pixels.found_by) == (truth, "check")
    assert f"of 20 labelled pictures, right are: {truth} 20, " in source.pixels.evidence
    assert source.pixels.evidence in caplog.text


def test_labelled_pictures_may_bear_their_class_in_their_names(settings, tmp_path):
    """Photos in one folder are often named after what they show, with a number, in any case."""
    pictures = flat(brightness_pictures(tmp_path / "pictures"))
    (pictures / "darkness.png").write_bytes((pictures / "White 0.png").read_bytes())  # is another word than dark
    source = read_source(saved(by_brightness(-1, 1), tmp_path), settings, class_names=SHADES, check=pictures)
    assert source.pixels.evidence.startswith("of 20 labelled pictures, right are: -1,1 20, ")


@pytest.mark.parametrize(
    ("labels", "wrong", "named"),
    [
        (("black", "grey", "white"), 0, "--input-range=-1,1 or --preprocessing=torch"),
        (SHADES, 3, "--preprocessing=torch"),
    ],
    ids=["a tie", "mostly wrong labels"],
)
def test_labelled_pictures_that_do_not_decide_are_an_error_with_their_counts(settings, tmp_path, labels, wrong, named):
    """A tie, a narrow lead and mostly wrong pictures are no reason to take a range."""
    pictures = brightness_pictures(tmp_path / "pictures", labels=labels, wrong=wrong)
    expected = (
        rf"--check does not decide: of {4 * len(labels)} labelled pictures, right are: .*\n.*{named} \(caffe is for"
    )
    with pytest.raises(ExportError, match=expected) as refusal:
        read_source(saved(by_brightness(-1, 1), tmp_path), settings, class_names=SHADES, check=pictures)
    assert len(str(refusal.value).splitlines()) <= 3


def test_labelled_pictures_confirm_what_the_layers_show_or_contradict_it(settings, tmp_path):
    """A model that was trained on pixels divided twice shows 0..255, and its pictures show 0..1."""
    pictures = brightness_pictures(tmp_path / "pictures")
    right = read_source(
        saved(by_brightness(0, 1, L.Rescaling(1 / 255)), tmp_path), settings, class_names=SHADES, check=pictures
    )
    assert right.pixels.found_by == "layers"
    assert "turns 0,255 into 0,1; of 20 labelled pictures" in right.pixels.evidence
    divided_twice = by_brightness(0, 1 / 255, L.Rescaling(1 / 255))
    with pytest.raises(
        ExportError, match=r"--check contradicts the model(.|\n)*--input-range=0,255 or --input-range=0,1"
    ):
        read_source(saved(divided_twice, tmp_path), settings, class_names=SHADES, check=pictures)


def test_a_folder_without_labelled_pictures_is_refused(settings, tmp_path):
    """The message names the expected folders; a thousand classes do not make it longer."""
    file = saved(by_brightness(0, 1), tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "cat.jpg").write_bytes(b"no picture")
    with pytest.raises(
        ExportError, match=r"holds no picture of a class of the model.*\(black, dark, grey, \.\.\.\).*black_1\.jpg"
    ):
        read_source(file, settings, class_names=SHADES, check=tmp_path / "cats")
    with pytest.raises(ExportError, match="is no folder"):
        read_source(file, settings, class_names=SHADES, check=tmp_path / "missing")


def without_biases(scale: float) -> keras.Model:
    """Return a network of which larger pixels change no label and make it surer: pink is what has twice as much red as blue."""
    model = keras.Sequential(
        [L.Input((16, 16, 3)), L.GlobalAveragePooling2D(), L.Dense(2, use_bias=False), L.Softmax()]
    )
    model.layers[1].set_weights([np.float32([[0, 2], [0, 0], [0, -1]]) * scale])
    return model


def coloured_pictures(folder, wrong: int):
    """Write ten pictures of each colour, of which the first `wrong` blue ones are labelled as pink."""
    for name, colour in {"blue": (80, 0, 200), "pink": (150, 0, 200)}.items():
        for number in range(10):
            label = "pink" if number < wrong else name
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{name}_{number}.png").write_bytes(encoded(Image.new("RGB", (16, 16), colour)))
    return folder


@pytest.mark.parametrize(
    ("scale", "wrong", "found"), [(8, 1, "0,1"), (8 / 255, 1, "0,255"), (8 / 255, 0, "0,255"), (8, 0, None)]
)
def test_a_tie_of_the_labels_is_broken_by_the_confidences_where_they_tell(settings, tmp_path, scale, wrong, found):
    """A ReLU network without biases gives the same labels for 0 to 255 as for 0 to 1, and wrong confidences for one of them."""
    pictures = coloured_pictures(tmp_path / "pictures", wrong)
    file = saved(without_biases(scale), tmp_path)
    if found:
        source = read_source(file, settings, class_names=("blue", "pink"), check=pictures)
        assert (source.pixels.preparation.name, source.pixels.found_by) == (found, "check")
        assert "the labels agree and the confidences differ" in source.pixels.evidence
        return
    with pytest.raises(ExportError, match="the labels agree and the confidences differ") as refusal:
        read_source(file, settings, class_names=("blue", "pink"), check=pictures)
    assert len(str(refusal.value).splitlines()) <= 3


@pytest.mark.parametrize("folder", ["T-shirt_top", "t shirt top", "T-SHIRT-TOP", "T-shirt - top"])
def test_folders_of_check_match_class_names_that_no_folder_can_have(tmp_path, folder):
    """Fashion-MNIST has a class T-shirt/top; on a disk it is written with another sign."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "1.png").write_bytes(encoded(Image.new("RGB", (8, 8))))
    (tmp_path / folder / "2.jpg").write_bytes(b"damaged")
    (tmp_path / folder / "notes.txt").write_text("no picture")
    (tmp_path / "Hat").mkdir()
    (tmp_path / "Hat" / "3.png").write_bytes(encoded(Image.new("RGB", (8, 8))))
    read = read_labelled(tmp_path, ("T-shirt/top", "Bag"), ImageSpec(height=8, width=8, channels=3), max_pixels=10**6)
    assert read.labels.tolist() == [0]
    assert "1 whose folder and name fit no class (Hat/3.png)" in read.left_out
    assert f"1 that cannot be read ({folder}/2.jpg)" in read.left_out


def test_one_label_for_the_examples_is_no_matter_where_labelled_pictures_are_given(settings, tmp_path, caplog):
    """The examples show nothing that a model of other subjects knows; the pictures of --check do."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        (images / f"{number}.png").write_bytes(encoded(Image.new("RGB", (16, 16), (128,) * 3)))
    pictures = brightness_pictures(tmp_path / "pictures")
    file = saved(by_brightness(0, 1), tmp_path)
    options = {"class_names": SHADES, "images": images, "check": pictures}
    source = read_source(file, settings, **options)
    assert "one label" not in caplog.text
    assert sum(str(pictures) in name for name in source.images) == 10, "they are compared too"
    read_source(file, settings, **options, input_range=(0, 1))
    assert "Taking 0,1: of 20 labelled pictures, right are: 0,1 20," in caplog.text
    assert "one label" not in caplog.text
    read_source(file, settings, **options, input_range=(0, 255))
    assert "All 20 pictures of --check get one label, 'white'" in caplog.text


def test_no_answer_to_the_examples_is_called_wrong_for_a_model_of_other_classes(settings, tmp_path):
    """All ten examples may rightly be of one class of it, so the true preparation was marked as probably wrong."""
    questions = []

    def ask(question):
        questions.append(question)
        return next(iter(question.answers))

    file = saved(by_brightness(0, 1), tmp_path)
    read_source(file, settings, class_names=SHADES, ask=ask)
    assert not any(questions[0].gives_one_label(each) for each in questions[0].answers)
    tied = brightness_pictures(tmp_path / "pictures", labels=("black", "white"), wrong=2)
    read_source(file, settings, class_names=SHADES, ask=ask, check=tied)
    assert str(tied) in questions[1].images[0], "the labelled pictures are shown instead"
    assert any(questions[1].gives_one_label(each) for each in questions[1].answers)


@pytest.mark.parametrize(
    ("prepare", "shown"),
    [
        (lambda pixels: pixels / 127.5 - 1, "turns 0,255 into -1,1"),
        (L.Rescaling(1 / 127.5, -1), "turns 0,255 into -1,1"),
        (lambda pixels: preprocess_input(pixels, mode="tf"), "turns 0,255 into -1,1"),
        (lambda pixels: pixels / 255.0, "turns 0,255 into 0,1"),
        (lambda pixels: pixels * 2.0 - 1, "turns 0,1 into -1,1"),
    ],
)
def test_the_range_after_all_the_arithmetic_is_named(settings, tmp_path, prepare, shown):
    """The first step alone, 0,255 into 0,2, is the range of no network."""
    source = read_source(saved(functional(prepare), tmp_path), settings, class_names=NAMES)
    assert source.pixels.evidence.endswith(shown)


@keras.saving.register_keras_serializable("test")
class OtherwiseInAGraph(keras.layers.Layer):
    """Answers otherwise in a graph than when it is called, as deep networks do by rounding."""

    def call(self, answers):
        return answers if tf.executing_eagerly() else answers + ops.cast([1e-4, -1e-4, 0.0], "float32")


def test_answers_are_those_of_predict_and_a_model_that_differs_from_itself_has_a_wider_tolerance(settings, tmp_path):
    """A MobileNetV2 that was called directly differed from its own `predict` by 7e-5, and was refused."""
    model = functional(lambda pixels: pixels / 255.0)
    model = keras.Model(model.input, OtherwiseInAGraph()(model.output))
    version = export(read_source(saved(model, tmp_path), settings, class_names=NAMES), settings.registry, "net")
    expected = author_answers(model, photos(5), "0,255")
    np.testing.assert_allclose(Predictor.load(version).answers(photos(5)), expected, atol=2e-5)
    assert version.manifest.parity["tolerance"] == pytest.approx(5e-4, rel=0.02)


def test_a_person_is_shown_what_each_candidate_answers(settings, tmp_path):
    """The right column can be told by looking; a column of one label is marked."""
    questions = []

    def ask(question):
        questions.append(question)
        return list(question.answers)[1]

    pictures = flat(brightness_pictures(tmp_path / "pictures", count=1))
    model = by_brightness(0, 1)
    source = read_source(saved(model, tmp_path), settings, class_names=SHADES, ask=ask, images=pictures)
    (question,) = questions
    assert [each.name for each in question.answers] == ["0,255", "0,1", "-1,1", "caffe", "torch"]
    assert [label for label, _ in question.answers[parse_preparation("0,1")]] == [
        "black",
        "bright",
        "dark",
        "grey",
        "white",
    ]
    assert [each.name for each in question.answers if question.gives_one_label(each)] == ["0,255"]
    assert (source.pixels.preparation.name, source.pixels.found_by) == ("0,1", "answer")


@pytest.mark.slow
def test_export_asks_at_a_terminal_and_takes_a_number(tmp_path):
    """A newcomer at a terminal sees the answers and chooses, without starting again."""
    file = saved(by_brightness(-1, 1), tmp_path)
    pictures = flat(brightness_pictures(tmp_path / "pictures", count=1))
    person, terminal = pty.openpty()
    command = [sys.executable, "-m", "cifar", "export", str(file), "--name", "light", "--classes", ",".join(SHADES)]
    environment = os.environ | {"CIFAR_REGISTRY": str(tmp_path / "registry"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [*command, "--images", str(pictures)],
        stdin=terminal,
        stderr=terminal,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    os.close(terminal)
    os.write(person, b"\n6\n3\n")
    output, _ = process.communicate(timeout=120)
    shown = os.read(person, 100_000).decode()
    os.close(person)
    assert process.returncode == 0, shown
    assert "1  0,255   as they are.  All images get one label: probably wrong." in shown
    assert "Black 0.png" in shown
    assert "Type the number of a row, such as 1." in shown, "only Enter was pressed"
    assert "expected caffe, tf, torch" in shown, "6 is none of the answers, and it asks again"
    manifest = json.loads((tmp_path / "registry/light/1/manifest.json").read_text())
    assert output.decode().strip() == str(tmp_path / "registry/light/1")
    assert manifest["input_range"] == [-1, 1]
    assert manifest["pixels"]["found_by"] == "answer"


@pytest.mark.parametrize("name", ["caffe", "torch", "bgr:0,1", "tf"])
def test_a_named_preparation_is_part_of_the_exported_graph(settings, tmp_path, name):
    """Serving sends uint8 RGB pixels for every version, so no client can get the means or the order of channels wrong."""
    model = sequential()
    source = read_source(saved(model, tmp_path), settings, class_names=NAMES, input_range=parse_preparation(name))
    version = export(source, settings.registry, "prepared")
    images = photos(5)
    expected = author_answers(model, images, {"tf": "-1,1"}.get(name, name))
    np.testing.assert_allclose(Predictor.load(version).answers(images), expected, atol=2e-5)
    recorded = {"preparation": {"tf": "-1,1"}.get(name, name), "found_by": "option", "evidence": ""}
    assert version.manifest.pixels.model_dump() == recorded
    assert version.manifest.input_range == {"tf": (-1, 1), "bgr:0,1": (0, 1)}.get(name)


def test_a_named_range_is_taken_although_the_layers_show_another_but_not_for_integers(settings, tmp_path, caplog):
    """Somebody may have scaled twice in training. A network of integers cannot take 0 to 1: every pixel would be 0 or 1."""
    file = saved(sequential(L.Rescaling(1 / 255)), tmp_path)
    source = read_source(file, settings, class_names=NAMES, input_range=(0, 1))
    assert source.pixels.preparation.name == "0,1"
    assert "--input-range=0,1 is taken as you say, but the layers show --input-range=0,255: rescaling" in caplog.text
    with pytest.raises(ExportError, match="--input-range=0,1 does not fit: the model takes integers"):
        read_source(saved(functional_of_bytes(), tmp_path), settings, class_names=NAMES, input_range=(0, 1))


def test_the_command_line_names_a_preparation_and_warns_of_one_label(tmp_path, monkeypatch, capsys, caplog):
    """Exit status 0 with one answer to everything is what a wrong range looks like."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path / "registry"))
    file = saved(by_brightness(0, 1), tmp_path)
    command = ["export", str(file), "--name", "light", "--classes", ",".join(SHADES)]
    command += ["--images", str(flat(brightness_pictures(tmp_path / "pictures", count=1)))]
    assert main([*command, "--input-range", "0,255"]) == 0
    assert "All 5 comparison images get one label, 'white'" in caplog.text
    caplog.clear()
    assert main([*command, "--preprocessing=0,1"]) == 0
    assert "one label" not in caplog.text
    assert main([*command, "--input-range", "1,0"]) == 2
    assert main([*command, "--input-range", "-1,1", "--check", str(tmp_path / "pictures")]) == 0
    assert (
        "The pictures of --check speak against --input-range=-1,1: of 5 labelled pictures, right are: 0,1 5,"
        in caplog.text
    )
    assert main([*command, "--preprocessing", "vgg"]) == 2
    assert "expected caffe, tf, torch, LOW,HIGH or bgr:LOW,HIGH; got 'vgg'" in capsys.readouterr().err
