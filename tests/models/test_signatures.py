"""SavedModels of other programs, which Keras did not write: what their signatures need and do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cifar.errors import ExportError
from cifar.models.predictor import Predictor
from cifar.training.export.reading.network import ReadOptions
from cifar.training.export.source import read_source
from cifar.training.export.write import export

IMAGES = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)


class Linear(tf.Module):
    """A softmax of the pixels times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(np.random.default_rng(0).normal(size=(192, 3)).astype(np.float32))
        self.seen = tf.Variable(tf.zeros(3))
        names = tf.constant(["ant", "bee", "cow"])
        self.names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.range(3), names), "")

    def rows(self, images: Any) -> Any:
        return tf.reshape(images, (-1, 192)) @ self.weights

    def plain(self, images: Any) -> Any:
        return {"probabilities": tf.nn.softmax(self.rows(images))}

    def with_names(self, images: Any) -> Any:
        label = tf.argmax(self.rows(images), axis=-1, output_type=tf.int32)
        return {"label": self.names.lookup(label), **self.plain(images)}

    def remembering(self, images: Any) -> Any:
        """Add a trace of the pictures before, too small for a comparison of ten pictures to show."""
        rows = self.rows(images) + 1e-6 * self.seen
        self.seen.assign(rows[-1])
        return {"probabilities": tf.nn.softmax(rows)}

    def centred(self, images: Any) -> Any:
        return self.plain(images - tf.reduce_mean(images, axis=0))


def saved(module: Linear, call: Callable[[Any], Any], folder: Path, batch: int | None = None) -> Path:
    function = tf.function(call, input_signature=[tf.TensorSpec((batch, 8, 8, 3), tf.float32, "images")])
    tf.saved_model.save(module, str(folder), signatures=function)
    return folder


@pytest.mark.parametrize(("name", "batch"), [("plain", 1), ("with_names", None)])
def test_a_signature_for_one_image_or_with_a_table_of_names_is_served(settings, tmp_path, name, batch):
    """Called directly, a graph for one image takes two, and then fails in the version. A table belongs to the weights."""
    module = Linear()
    folder = saved(module, getattr(module, name), tmp_path / "model", batch)
    options = ReadOptions(output="probabilities")
    source = read_source(folder, settings, class_names=("a", "b", "c"), input_range=(0.0, 1.0), options=options)
    answers = Predictor.load(export(source, settings.registry, "net", precision="float32")).answers(IMAGES)
    np.testing.assert_allclose(answers, module.plain(IMAGES / np.float32(255))["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("remembering", "answers depend on the pictures before: an RNN with stateful=True"),
        ("centred", "answer to a picture depends on the other pictures of its batch"),
    ],
)
def test_a_network_whose_answers_depend_on_other_pictures_is_refused(settings, tmp_path, name, words):
    """They would depend on what other users send. An RNN with `stateful=True` remembers, too."""
    module = Linear()
    folder = saved(module, getattr(module, name), tmp_path / "model")
    source = read_source(folder, settings, class_names=("a", "b", "c"), input_range=(0.0, 1.0))
    with pytest.raises(ExportError, match=words):
        export(source, settings.registry, "net", precision="float32")
