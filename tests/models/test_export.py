"""Export of a Keras model as a version: `cifar.training.export`."""

from __future__ import annotations

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.corpus import softmax
from support.pictures import encoded, noise

from cifar import CLASS_NAMES
from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.images.decode import preprocess
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.settings import ROOT
from cifar.training.export import publish as publish_module
from cifar.training.export import write as export_module
from cifar.training.export.litert import write as litert_module
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.network.architectures import build_model

KERAS2 = ROOT / "tests" / "data"


@pytest.fixture
def tutorial(settings):
    """Return an untrained tutorial network, read from a `.keras` file."""
    keras.utils.set_random_seed(3)
    path = settings.registry.parent / "model.keras"
    build_model("tutorial", 10).save(path)
    return read_source(path, settings)


def test_a_model_with_other_classes_needs_an_explicit_name(small_version, monkeypatch, capsys):
    """Otherwise a forgotten --name would change the classes of a running service."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(small_version.path.parent.parent))
    monkeypatch.setenv("CIFAR_MODEL_NAME", "shapes")
    command = ["export", str(KERAS2 / "keras2_64px_3classes_logits.h5"), "--logits", "--input-range", "0,1"]
    assert main([*command, "--classes", "ant,bee,cow"]) == 1
    message = capsys.readouterr().err
    assert "shapes has 3 classes (circle, square, star), and this model has 3 classes (ant, bee, cow)" in message
    assert "--name ant-bee-cow. To replace the model all the same: --name shapes" in message
    assert main([*command, "--classes", "circle,square,star"]) == 0
    path, message = capsys.readouterr()
    assert path.endswith("/shapes/2\n")
    assert "It is the stable version and serves all users." in message
    monkeypatch.setenv("MODEL_VERSION", "1")
    assert main([*command, "--classes", "circle,square,star"]) == 0
    assert "Version 1 stays in service" in capsys.readouterr().err, "version 1 is pinned"
    monkeypatch.delenv("MODEL_VERSION")
    assert main([*command, "--classes", "ant,bee,cow", "--name", "shapes"]) == 0
    for number in (2, 3, 4):
        shutil.rmtree(small_version.path.parent / str(number))


def test_serving_bytes_decodes_jpeg_and_resizes_almost_like_preprocess(settings, tutorial):
    """TensorFlow and Pillow decode and resample differently, which changes a probability by less than 0.01."""
    version = export(tutorial, settings.registry, "net")
    payload = encoded(noise(20, 20).resize((200, 150)), "JPEG", quality=95)
    signature = tf.saved_model.load(str(version.path)).signatures["serving_bytes"]
    in_graph = signature(image_bytes=tf.constant([payload]))["probabilities"].numpy()
    pixels = preprocess(payload, version.manifest.image, max_pixels=10**6)
    np.testing.assert_allclose(Predictor.load(version).answers(pixels[None]), in_graph, atol=0.01)


def test_the_manifest_describes_the_exported_version(settings, tutorial):
    """The manifest holds names, sizes, signatures, parity, library versions, and the checksum of every file."""
    version = export(tutorial, settings.registry, "net")
    manifest = json.loads((version.path / "manifest.json").read_text())
    assert manifest["class_names"] == list(CLASS_NAMES)
    assert manifest["image"] == {"height": 32, "width": 32, "channels": 3}
    signatures = manifest["signatures"]
    assert signatures["serving_uint8"]["inputs"] == {"image": {"dtype": "uint8", "shape": [None, 32, 32, 3]}}
    assert signatures["serving_bytes"]["outputs"]["classes"] == {"dtype": "string", "shape": [None, 10]}
    assert manifest["parity"]["images"] == 10
    assert manifest["parity"]["max_abs_difference"] < 1e-5
    assert manifest["parity"]["litert_max_abs_difference"] < 1e-5
    assert "assets.extra/model.tflite" in manifest["files"]
    assert manifest["libraries"]["keras"] == keras.__version__
    version.verify()


def test_versions_count_up_and_none_is_overwritten(settings, tutorial):
    """The next number is one more than the highest in use, also if that version is incomplete."""
    first = export(tutorial, settings.registry, "net")
    before = (first.path / "manifest.json").read_bytes()
    (settings.registry / "net" / "4").mkdir()
    assert export(tutorial, settings.registry, "net").number == 5
    assert (first.path / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_two_exports_at_once_get_different_numbers(settings, tutorial, monkeypatch):
    """An export whose number was taken in the meantime uses the next one."""
    numbers = iter([1, 1, 2])
    monkeypatch.setattr(publish_module, "next_number", lambda _: next(numbers))
    assert export(tutorial, settings.registry, "net").number == 1
    assert export(tutorial, settings.registry, "net").number == 2
    assert Registry(settings.registry, "net").numbers() == [1, 2]


def test_a_saved_model_with_other_outputs_leaves_no_version(settings, tutorial, monkeypatch):
    """The message names the signature, the image and the difference."""
    keras.utils.set_random_seed(99)
    path = settings.registry.parent / "other.keras"
    build_model("tutorial", 10).save(path)
    other = read_source(path, settings).model
    write = export_module.write_saved_model

    def write_another_model(source, folder):
        write(type(source)(**{**source.__dict__, "model": other}), folder)

    monkeypatch.setattr(export_module, "write_saved_model", write_another_model)
    with pytest.raises(ExportError, match=r"serving_uint8 differs from the model by 0\.\d+ on .*\.jpg; at most 5e-05"):
        export(tutorial, settings.registry, "net")
    assert list((settings.registry / "net").iterdir()) == []


def test_a_litert_file_with_other_outputs_is_left_out(settings, tutorial, monkeypatch, caplog):
    """It must agree with the model within the same tolerance as the SavedModel. Steps, as `x > 127`, enlarge its rounding."""
    monkeypatch.setattr(litert_module, "litert_from", lambda _: lambda images: np.full((len(images), 10), np.nan))
    version = export(tutorial, settings.registry, "net")
    assert "(its answers differ). The version is served with TensorFlow" in caplog.text
    assert Predictor.load(version).engine == "tensorflow"


@pytest.mark.parametrize(
    ("file", "options", "size"),
    [
        ("keras2_tutorial.h5", {}, 32),
        ("keras2_64px_3classes_logits.h5", {"class_names": ("circle", "square", "star"), "logits": True}, 64),
    ],
)
def test_an_exported_keras_2_file_gives_the_outputs_of_keras_2(settings, file, options, size):
    """Such files have slashes in names, arguments that Keras 3 does not know, and inputs in [0, 1]."""
    version = export(read_source(KERAS2 / file, settings, input_range=(0, 1), **options), settings.registry, "old")
    with np.load(KERAS2 / "keras2_answers.npz") as answers:
        images = answers["images"][:, :: 64 // size, :: 64 // size]
        expected = answers[file.removesuffix(".h5")]
    expected = softmax(expected) if options.get("logits") else expected
    np.testing.assert_allclose(Predictor.load(version).answers(images), expected, atol=1e-5)


def test_a_model_with_nan_outputs_is_refused(settings, tmp_path):
    """The weights of a failed training can be NaN; they must not become a version."""
    model = build_model("tutorial", 10)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ExportError, match="NaN"):
        export(read_source(tmp_path / "model.keras", settings), settings.registry, "net")
