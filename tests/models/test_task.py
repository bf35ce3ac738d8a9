"""Single-label or multi-label: what the outputs of a model are, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from support.corpus import sigmoid

from cifar.errors import ExportError
from cifar.models.predictor import Predictor
from cifar.settings import Settings
from cifar.training.export.source import read_source
from cifar.training.export.write import export

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


class FocalLoss(keras.losses.Loss):
    """A loss of somebody's own, of whose name nobody can tell whether it compares each class by itself."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.losses.binary_crossentropy(y_true, y_pred, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"from_logits": True}


def saved(path: Path, *ends: str, loss: str | None = None, library: Any = keras, name: str = "model.keras") -> Path:
    """Save a network with a dense layer for each activation, of which there is one or one for each of three classes."""
    library.utils.set_random_seed(7)
    layers = library.layers
    pixels = layers.Input((8, 8, 3))
    flat = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    outputs = [layers.Dense(3 // len(ends), activation=end)(flat) for end in ends]
    model = library.Model(pixels, layers.Concatenate()(outputs) if len(outputs) > 1 else outputs[0])
    if loss:
        model.compile(loss=getattr(library.losses, loss)(from_logits=True))
    model.save(path / name)
    return path / name


def served(file: Path, settings: Settings, **options) -> tuple[str, np.ndarray]:
    """Export a model, and return its task and the version's answers."""
    source = read_source(file, settings, class_names=("a", "b", "c"), input_range=(0.0, 255.0), **options)
    version = export(source, settings.registry, "net")
    return version.manifest.task, Predictor.load(version).answers(PICTURES)


def of_keras(file: Path) -> np.ndarray:
    return keras.saving.load_model(file, compile=False).predict(PICTURES.astype(np.float32), verbose=0)


def test_sigmoids_are_served_as_they_are_and_announced(settings, tmp_path, caplog):
    """A softmax over them would change every answer without an error."""
    file = saved(tmp_path, "sigmoid")
    task, answers = served(file, settings)
    assert task == "multi_label"
    np.testing.assert_allclose(answers, of_keras(file), atol=1e-5)
    assert "The model has a sigmoid as its last layer: it is exported as multi-label" in caplog.text


def test_logits_of_a_binary_loss_get_a_sigmoid_each(settings, tmp_path):
    """Their loss compared each class by itself. Those of a loss over all classes get a softmax."""
    binary = saved(tmp_path, "linear", loss="BinaryCrossentropy", name="binary.keras")
    task, answers = served(binary, settings)
    assert task == "multi_label"
    np.testing.assert_allclose(answers, sigmoid(of_keras(binary)), atol=1e-5)
    one_of_all = saved(tmp_path, "linear", loss="CategoricalCrossentropy", name="all.keras")
    task, answers = served(one_of_all, settings)
    assert task == "single_label"
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)


def test_logits_without_a_loss_get_a_sigmoid_each_on_request(settings, tmp_path):
    """The file does not say which it is, nor does the name of a loss that is not of Keras."""
    file = saved(tmp_path, "linear")
    model = keras.saving.load_model(file)
    model.compile(loss=FocalLoss())
    model.save(tmp_path / "own_loss.keras")
    for each in (file, tmp_path / "own_loss.keras"):
        with pytest.raises(ExportError, match="add --logits, and --multi-label if an image can be of several classes"):
            served(each, settings)
    task, answers = served(file, settings, logits=True, multi_label=True)
    assert task == "multi_label"
    np.testing.assert_allclose(answers, sigmoid(of_keras(file)), atol=1e-5)
    model.compile(loss="mse")
    model.save(tmp_path / "quantities.keras")
    with pytest.raises(ExportError, match=r"trained on quantities, .* so its outputs are no logits"):
        served(tmp_path / "quantities.keras", settings, logits=True)


@pytest.mark.parametrize("ends", [("sigmoid", "sigmoid", "sigmoid"), ("hard_sigmoid",)])
def test_what_could_be_multi_label_is_asked_and_never_called_logits(settings, tmp_path, ends):
    """A softmax over probabilities is a wrong answer that looks right."""
    file = saved(tmp_path, *ends)
    with pytest.raises(ExportError, match="do not add up to 1") as refused:
        served(file, settings)
    assert "add --multi-label" in str(refused.value)
    assert "--logits" not in str(refused.value)
    task, answers = served(file, settings, multi_label=True)
    assert task == "multi_label"
    np.testing.assert_allclose(answers, of_keras(file), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "folder"])
def test_sigmoids_of_keras_2_are_recognised_too(settings, tmp_path, name):
    """Also in a SavedModel."""
    file = saved(tmp_path, "sigmoid", library=tf_keras, name=name)
    expected = tf_keras.models.load_model(file).predict(PICTURES.astype(np.float32), verbose=0)
    task, answers = served(file, settings)
    assert task == "multi_label"
    np.testing.assert_allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("ends", "options", "words"),
    [
        (("softmax",), {"multi_label": True}, "a softmax as its last layer, so its probabilities add up to 1"),
        (("sigmoid",), {"logits": True}, "ends in a sigmoid, so its outputs are no logits"),
        (("relu",), {"multi_label": True}, "they range from 0 to [0-9.]+. If the model returns logits, add --logits"),
    ],
)
def test_an_option_that_contradicts_the_model_is_refused(settings, tmp_path, ends, options, words):
    """It would be served with wrong answers."""
    with pytest.raises(ExportError, match=words):
        served(saved(tmp_path, *ends), settings, **options)
