"""The pixel values that a model expects: derived from its layers, or asked. Never guessed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.classifiers import NAMES, L, functional, photos, sequential
from support.pixel_kinds import (
    ASKED,
    DERIVED,
    as_the_author_prepared,
    author_answers,
    functional_of_bytes,
    ops,
    pictures_for,
    preprocess_input,
    saved,
)

from cifar.errors import ExportError
from cifar.models.predictor import Predictor
from cifar.training.export.pixels.decide import probabilities
from cifar.training.export.pixels.preparation import parse_preparation
from cifar.training.export.source import read_source
from cifar.training.export.write import export

FAST_DERIVED = {
    "augmentation_before",
    "divided_then_standardised",
    "preprocess_input_caffe",
    "standardised",
    "to_bytes",
}
FAST_ASKED = {"convolution_first", "means_in_the_order_of_bgr", "contradicting_branches"}


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


def fast_and_slow(kinds: dict[str, Any], fast: set[str]) -> list[Any]:
    """Return the names of the kinds as parameters: `make test-fast` tries some of them."""
    return [kind if kind in fast else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", fast_and_slow(DERIVED, FAST_DERIVED))
def test_a_range_that_the_layers_show_is_derived_and_the_answers_are_keras_own(settings, tmp_path, kind):
    """Layers that do not scale are passed, nested models too, and the first arithmetic on the pixels decides."""
    make, expected = DERIVED[kind]
    model = make()
    source = read_source(saved(model, tmp_path), settings, class_names=NAMES)
    assert (source.pixels.preparation.name, source.pixels.found_by) == (expected, "layers")
    images = pictures_for(model)
    answers = probabilities(source.model, source.pixels.preparation, images)
    np.testing.assert_allclose(answers, author_answers(model, images, expected), atol=2e-5)


@pytest.mark.parametrize("kind", fast_and_slow(ASKED, FAST_ASKED))
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


@pytest.mark.parametrize(("kind", "expected"), [("preprocess_input_caffe", "0,255"), ("doubled_minus_1", "0,1")])
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
@pytest.mark.parametrize("kind", fast_and_slow(KERAS2, {"operations"}))
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


@pytest.mark.parametrize("name", ["caffe", "torch", "bgr:0,1", "tf", "125.3,123,113.9/63,62.1,66.7"])
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
    assert "--input-range=0,1 is used, as you asked, but the layers show --input-range=0,255: rescaling" in caplog.text
    with pytest.raises(ExportError, match="--input-range=0,1 does not fit: the model takes integers"):
        read_source(saved(functional_of_bytes(), tmp_path), settings, class_names=NAMES, input_range=(0, 1))
