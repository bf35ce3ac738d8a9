"""The files of a version for other programs: `cifar.training.export.formats`."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.settings import ROOT, Settings
from cifar.training.export.formats.warmup import WARMUP_FILE
from cifar.training.export.source import read_source
from cifar.training.export.write import export

CLASSES = ("ant", "bee", "cow", "dog")
layers = keras.layers


def network(*hidden: keras.layers.Layer, size: int = 16) -> keras.Model:
    """Return a network of four classes that ends in a softmax, with random weights."""
    keras.utils.set_random_seed(7)
    ends = [layers.Flatten(), layers.Dense(4, activation="softmax")]
    return keras.Sequential([layers.Input((size, size, 3)), layers.Rescaling(1 / 255), *hidden, *ends])


def exported(model: keras.Model, settings: Settings, **options) -> Version:
    """Export a model with all formats."""
    file = settings.registry.parent / "given.keras"
    model.save(file)
    source = read_source(file, settings, class_names=CLASSES, input_range=(0.0, 255.0), **options)
    return export(source, settings.registry, "net", also=("onnx", "keras"))


def pictures(size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)


def session(version: Version) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(version.path / "assets.extra/model.onnx")


def test_an_onnx_file_gives_the_answers_of_the_version_and_carries_what_a_program_must_know(settings):
    """A program has nothing but the file: it needs no scaling and no list of names from elsewhere."""
    version = exported(network(layers.Conv2D(4, 3, activation="relu")), settings)
    onnx = session(version)
    (source,), (output,) = onnx.get_inputs(), onnx.get_outputs()
    assert (source.name, source.type, source.shape) == ("image", "tensor(uint8)", ["batch", 16, 16, 3])
    assert (output.name, output.shape) == ("probabilities", ["batch", 4])
    (found,) = onnx.run(None, {"image": pictures()})
    np.testing.assert_allclose(found, Predictor.load(version).answers(pictures()), atol=1e-5)
    metadata = onnx.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    assert json.loads(metadata["input_range"]) == [0, 255]
    assert metadata["task"] == "single_label"
    assert "do not normalize" in metadata["image"]
