"""The files of a version for other programs: ONNX, Keras, and TensorFlow Serving's warm-up requests."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf_keras
from support.cli import cifar_process
from tensorflow.core.framework import tensor_pb2

from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.models.tfserving_client import message_types
from cifar.settings import ROOT, Settings
from cifar.training.export.formats.onnx import write_onnx
from cifar.training.export.source import read_source
from cifar.training.export.write import export, write_saved_model

pytestmark = pytest.mark.slow  # nearly every test exports a version

CLASSES = ("ant", "bee", "cow", "dog")
KERAS2 = ROOT / "tests/data/keras2_64px_3classes_logits.h5"
L = keras.layers


def saved(path: Path, *hidden: keras.layers.Layer) -> Path:
    """Save a network of four classes for 16x16 images, with random weights."""
    keras.utils.set_random_seed(7)
    ends = [L.Flatten(), L.Dense(4, activation="softmax", dtype="float32")]
    keras.Sequential([L.Input((16, 16, 3)), L.Rescaling(1 / 255), *hidden, *ends]).save(path / "given.keras")
    return path / "given.keras"


def exported(file: Path, settings: Settings, also: Sequence[str]) -> Version:
    return export(read_source(file, settings, class_names=CLASSES), settings.registry, "net", also=also)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def test_an_onnx_file_gives_the_answers_of_the_version_and_says_what_a_program_must_know(settings, tmp_path):
    """A program has nothing but the file: it needs no scaling and no list of names from elsewhere."""
    version = exported(saved(tmp_path, L.Conv2D(4, 3, activation="relu")), settings, ("onnx",))
    onnx = onnxruntime.InferenceSession(version.path / "assets.extra/model.onnx")
    (source,), (output,) = onnx.get_inputs(), onnx.get_outputs()
    assert (source.name, source.type, source.shape) == ("image", "tensor(uint8)", ["batch", 16, 16, 3])
    assert (output.name, output.shape) == ("probabilities", ["batch", 4])
    (found,) = onnx.run(None, {"image": pictures()})
    np.testing.assert_allclose(found, Predictor.load(version).answers(pictures()), atol=1e-5)
    metadata = onnx.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    assert (metadata["name"], metadata["task"], metadata["preparation"]) == ("net", "single_label", "0,255")
    assert "do not normalize" in metadata["image"]
    assert version.manifest.parity["onnx_max_abs_difference"] < 1e-5


def test_the_onnx_file_of_a_run_returns_the_out_of_distribution_score(settings, scored_run):
    """The Keras file is the network alone, without score and calibration."""
    version = export(read_source(scored_run[0], settings), settings.registry, "colours", also=("onnx", "keras"))
    onnx = onnxruntime.InferenceSession(version.path / "assets.extra/model.onnx")
    images = scored_run[1].train_images[:5]
    probabilities, scores = onnx.run(["probabilities", "ood_score"], {"image": images})
    expected = Predictor.load(version).answers(images)
    np.testing.assert_allclose(probabilities, expected[:, :-1], atol=1e-5)
    np.testing.assert_allclose(scores, expected[:, -1], rtol=1e-3, atol=1e-3)
    model = keras.saving.load_model(version.path / "assets.extra/model.keras")
    assert [output.shape for output in model.outputs] == [(None, 3)]


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param([L.Conv2D(6, 3, groups=3, activation="gelu")], id="grouped_and_gelu"),
        pytest.param([L.RandomFlip(), L.Resizing(12, 12), L.CenterCrop(8, 8), L.ZeroPadding2D()], id="resizing"),
        pytest.param([L.Conv2DTranspose(4, 3, strides=2), L.SeparableConv2D(4, 3)], id="transposed"),
        pytest.param([L.Reshape((16, 48)), L.LSTM(8)], id="lstm"),
        pytest.param([L.Conv2D(8, 3, activation="hard_swish"), L.GroupNormalization(2)], id="hard_swish"),
    ],
)
def test_common_layers_can_be_written_as_onnx(settings, tmp_path, hidden):
    """The converter lacks some of them, and drops weights of others."""
    source = read_source(saved(tmp_path, *hidden), settings, class_names=CLASSES)
    write_saved_model(source, tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    run = write_onnx(loaded.signatures, {}, tmp_path / "model.onnx")
    expected = loaded.signatures["serving_uint8"](image=tf.constant(pictures()))["probabilities"]
    np.testing.assert_allclose(run(pictures())["probabilities"], expected, atol=1e-5)


def test_a_network_that_onnx_cannot_hold_is_refused_with_its_operations(settings, tmp_path):
    """A file that no program can load must not become part of a version."""
    pixels = keras.Input((16, 16, 3))
    spectrum = keras.ops.fft2((pixels[..., 0] / 255, pixels[..., 1]))[0]
    model = keras.Model(pixels, L.Dense(4, activation="softmax")(L.Flatten()(spectrum)))
    model.save(tmp_path / "model.keras")
    source = read_source(tmp_path / "model.keras", settings, class_names=CLASSES, input_range=(0.0, 255.0))
    with pytest.raises(
        ExportError, match=r"cannot be written as ONNX: ONNX lacks Complex, FFT2D, Real\. Export it without"
    ):
        export(source, settings.registry, "net", also=("onnx",))
    assert list((settings.registry / "net").iterdir()) == []


def test_the_missing_packages_are_named_before_the_model_is_read(monkeypatch, capsys):
    """They are no part of an installation, and an export can take minutes."""
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    assert main(["export", "missing.keras", "--also", "onnx"]) == 1
    assert (
        "--also onnx needs packages that are not installed. Install them: pip install tf2onnx"
        in capsys.readouterr().err
    )


def test_a_keras_file_can_be_loaded_and_trained_further(settings, tmp_path):
    """It is the network alone, in float32, also if it was trained in mixed precision."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        file = saved(tmp_path, L.Conv2D(4, 3, activation="relu"))
    finally:
        keras.config.set_dtype_policy(policy)
    version = exported(file, settings, ("keras",))
    model = keras.saving.load_model(version.path / "assets.extra/model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    answers = model.predict(pictures().astype(np.float32), verbose=0)
    np.testing.assert_allclose(answers, Predictor.load(version).answers(pictures()), atol=1e-5)
    assert version.manifest.parity["keras_max_abs_difference"] < 1e-5
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(pictures(), np.arange(5) % 4, verbose=0).history["loss"]).all()


def test_the_keras_file_of_a_keras_2_model_is_read_as_any_file_of_keras_2(settings):
    """The library that read the model writes it."""
    options = {"class_names": ("circle", "square", "star"), "logits": True, "input_range": (0.0, 1.0)}
    version = export(read_source(KERAS2, settings, **options), settings.registry, "first", also=("keras",))
    again = read_source(version.path / "assets.extra/model.keras", settings, **options)
    second = export(again, settings.registry, "second")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(
        Predictor.load(second).answers(images), Predictor.load(version).answers(images), atol=1e-6
    )


def test_a_keras_file_needs_a_model_with_layers_and_is_copied_with_its_version(settings, tmp_path, monkeypatch, capsys):
    """A SavedModel has none. A version that already has the file keeps it when it is exported again."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(settings.registry))
    plain = exported(saved(tmp_path, L.Dense(2)), settings, ())
    assert main(["export", str(plain.path), "--name", "net", "--also", "keras"]) == 1
    assert "--also keras needs a Sequential or Functional model" in capsys.readouterr().err
    pixels = tf_keras.Input((8, 8, 3))
    top = tf_keras.layers.Dense(2, activation="softmax")(tf_keras.layers.Flatten()(pixels[..., ::-1]))
    tf_keras.Model(pixels, top).save(tmp_path / "sliced.h5")
    options = ["--name", "sliced", "--classes", "a,b", "--input-range", "0,1", "--also", "keras"]
    assert main(["export", str(tmp_path / "sliced.h5"), *options]) == 1
    assert "cannot be written as a .keras file: Cannot serialize object Ellipsis" in capsys.readouterr().err
    with_keras = exported(saved(tmp_path, L.Dense(2)), settings, ("keras",))
    assert main(["export", str(with_keras.path), "--name", "net", "--also", "onnx,keras"]) == 0
    copy = Registry(settings.registry, "net").get(3)
    copy.verify()
    assert {"assets.extra/model.keras", "assets.extra/model.onnx"} <= copy.manifest.files.keys()


def test_an_export_prints_none_of_the_libraries_texts(settings, tmp_path):
    """TensorFlow reports its processor, and tf2onnx the stack traces of optimizations that it leaves out, as of this activation."""
    file = saved(tmp_path, L.Conv2D(8, 3, activation="hard_swish"), L.Conv2D(8, 3))
    options = ("--name", "net", "--classes", ",".join(CLASSES), "--also", "onnx,keras")
    done = cifar_process("export", file, *options, CIFAR_REGISTRY=settings.registry)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith(("cifar: ", "INFO: Created TensorFlow Lite"))] == []
    assert len(lines) < 6


def test_tensorflow_serving_is_warmed_up_through_every_signature(settings, tmp_path):
    """The file was also read with the stubs of tensorflow-serving-api 2.21 (2026-11-26), which need the large TensorFlow."""
    version = exported(saved(tmp_path), settings, ())
    signatures = tf.saved_model.load(str(version.path)).signatures
    file = version.path / "assets.extra/tf_serving_warmup_requests"
    assert file.stat().st_size < 500
    warmed = set()
    for record in tf.data.TFRecordDataset(str(file)):
        request = message_types()["PredictionLog"].FromString(record.numpy()).predict_log.request
        tensors = {
            each.key: tensor_pb2.TensorProto.FromString(each.value.SerializeToString()) for each in request.inputs
        }
        name = request.model.signature_name
        outputs = signatures[name](**{key: tf.constant(tf.make_ndarray(value)) for key, value in tensors.items()})
        assert outputs["probabilities"].shape == (1, 4)
        assert request.model.name == "net"
        warmed.add(name)
    assert warmed == set(version.manifest.signatures)
