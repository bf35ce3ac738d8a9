"""Every kind of model that people have: the served answers are those that its author sees, or the refusal says why."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.corpus import DOCUMENT, KINDS, cases, document, saved, softmax

from cifar.errors import ExportError
from cifar.models.predictor import Predictor
from cifar.settings import ROOT, Settings
from cifar.training.export.reading.network import ReadOptions
from cifar.training.export.source import ExportSource, read_source
from cifar.training.export.write import export

pytestmark = pytest.mark.slow

OLD_MODELS = ROOT / "tests" / "data" / "old_models.zip"


def read(path: Path, settings: Settings, options: dict[str, Any], **arguments: Any) -> ExportSource:
    given = {"class_names": ("a", "b", "c"), "input_range": (0.0, 1.0)} | arguments
    return read_source(path, settings, options=ReadOptions(**options), **given)


def answers_of(source: ExportSource, images: np.ndarray, registry: Path | None = None) -> np.ndarray:
    """Return what a version of the model answers or, ten times as fast, the model: every export compares the two."""
    if registry:
        return Predictor.load(export(source, registry, "net", precision="float32")).answers(images)
    rows: np.ndarray = source.model(source.pixels.preparation(images / np.float32(255))).numpy()
    return softmax(rows) if source.model.logits else rows


@pytest.mark.parametrize(
    ("name", "form"), [pytest.param(*case, id="-".join(case).replace(" ", "_")) for case in cases()]
)
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_model_is_served_with_its_authors_answers_or_refused_in_three_lines(
    settings, tmp_path, monkeypatch, name, form
):
    """The author's answer is that of `predict` on the pixels as the author prepares them."""
    kind = KINDS[name]
    path, model, own_layers = saved(name, form, tmp_path / "saved")
    (tmp_path / "own.py").write_text(own_layers)
    monkeypatch.syspath_prepend(tmp_path)
    modules = (str(tmp_path / each) if each.endswith(".py") else each for each in kind.options.get("imports", ()))
    options = kind.options | {"imports": tuple(modules)}
    images = np.random.default_rng(1).integers(0, 256, (4, *kind.shape), np.uint8)
    if kind.refused:
        with pytest.raises(ExportError, match=kind.refused) as refusal:
            answers_of(read(path, settings, options, **kind.arguments), images, settings.registry)
        assert len(str(refusal.value)) <= 400
        return
    prepared = kind.prepare(images / np.float32(255))
    batch = {"batch_size": 1} if name == "fixed_batch" else {}
    expected = kind.finish(model.predict(prepared, verbose=0, **batch))
    source = read(path, settings, options, **kind.arguments)
    registry = settings.registry if form == kind.forms[0] else None
    np.testing.assert_allclose(answers_of(source, images, registry), expected, atol=kind.tolerance)


def old_models() -> list[str]:
    """Return the paths of the models in the archive: files, and folders of SavedModels."""
    with zipfile.ZipFile(OLD_MODELS) as archive:
        names = archive.namelist()
    files = [name for name in names if name.endswith((".h5", ".keras"))]
    return files + [name.removesuffix("/saved_model.pb") for name in names if name.endswith("/saved_model.pb")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(OLD_MODELS) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("model", old_models())
def test_a_model_of_an_old_tensorflow_answers_as_that_tensorflow_did(settings, archive, model):
    """Files of Keras 2.2 to 2.15, and SavedModels of TensorFlow 1.15 to 2.15, written by these releases themselves."""
    path = archive / model
    with np.load(path.parent / "answers.npz") as answers:
        images, expected = answers["images"], answers[path.stem]
    options = {"output": "label"} if path.stem == "two_outputs" else {}
    names = ("a", "b", "c")[: expected.shape[1]]
    if model == "tensorflow-2.15/lambda.h5":
        with pytest.raises(ExportError, match="another version of Python compiled"):
            read(path, settings, {"allow_lambda": True})
        return
    registry = settings.registry if path.stem == "nested" else None
    answers = answers_of(read(path, settings, options, class_names=names), images, registry)
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_the_table_in_the_documents_is_that_of_the_corpus():
    """`cd tests && python -m support.corpus` writes it."""
    assert DOCUMENT.read_text() == document()


def test_a_version_of_ours_can_be_read_again(settings, tmp_path):
    """Its class names and its pixel range are known."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Flatten(), layers.Dense(3, "softmax")])
    model.save(tmp_path / "model.keras")
    first = read_source(tmp_path / "model.keras", settings, class_names=("a", "b", "c"), input_range=(-1.0, 1.0))
    version = export(first, settings.registry, "net", precision="float32")
    again = read_source(version.path, settings)
    assert again.class_names == ("a", "b", "c")
    images = np.random.default_rng(1).uniform(size=(4, 12, 12, 3)).astype(np.float32)
    np.testing.assert_allclose(again.model(images), model.predict(images * 2 - 1, verbose=0), atol=1e-5)
