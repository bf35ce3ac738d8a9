"""Files that are no complete model: recognised by their content, and refused with the reason and the way out."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from support.hostile_files import zipped

from cifar.cli.arguments import image_size
from cifar.cli.main import main
from cifar.errors import ExportError, VersionUnusable
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.settings import ROOT
from cifar.training.export.reading.failures import first_sentence
from cifar.training.export.reading.files import Format, recognise
from cifar.training.export.reading.network import ReadOptions
from cifar.training.export.source import read_source
from cifar.training.export.write import export

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one model as `.keras`, as HDF5, as SavedModel, and its weights alone."""
    folder = tmp_path_factory.mktemp("whole")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, "softmax")])
    for name in ("model.keras", "model.h5"):
        model.save(folder / name)
    model.export(folder / "exported", verbose=False)
    model.save_weights(folder / "model.weights.h5")
    return folder


def hdf5(tmp_path, **attributes: str) -> bytes:
    with h5py.File(tmp_path / "made", "w") as file:
        file["images"] = np.zeros(3)
        file.attrs.update(attributes)
    return (tmp_path / "made").read_bytes()


OTHERS = {
    "a_git_lfs_pointer": ("model.keras", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "an_empty_file": ("model.keras", b"", "is empty"),
    "zeros": ("model.h5", bytes(1000), "zeros only"),
    "a_web_page": ("model.h5", b"<!DOCTYPE html><html>Virus scan warning</html>", "is a web page"),
    "an_error_of_a_store": ("model.keras", b"\n<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
    "text": ("model.keras", b"not a model", "is not a Keras model, judged by its first bytes"),
    "json": ("model.json", b' {"class_name": "Sequential"}', "the architecture without the weights"),
    "a_list_of_weights": ("model.weights.json", b'{"weight_map": {}}', "weights without the architecture"),
    "a_notebook": ("train.ipynb", b'{"cells": []}', "is Python code"),
    "a_pickle": ("model.pkl", pickle.dumps({"weights": 1}), "is a Python pickle, which runs code"),
    "an_old_pytorch_file": ("model.pth", pickle.dumps([1]), "is a PyTorch file"),
    "a_pytorch_file": ("model.keras", zipped([("archive/data.pkl", b"")]), "is a PyTorch file"),
    "a_tflite_file": ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(20), "is a LiteRT"),
    "an_onnx_file": ("model.onnx", b"\x08\x07\x12\x07pytorch", "is an ONNX file"),
    "safetensors": ("model.keras", bytes([9, 0, 0, 0, 0, 0, 0, 0]) + b'{"a": {}}', "is a safetensors file"),
    "a_gzip": ("model.keras.gz", gzip.compress(b"model"), "Unpack it"),
    "a_numpy_archive": ("weights.npz", zipped([("a.npy", b"")]), "weights without the architecture"),
    "teachable_machines_zip": (
        "converted_keras.zip",
        zipped([("keras_model.h5", b""), ("labels.txt", b"")]),
        "keras_model.h5",
    ),
    "another_zip": ("files.zip", zipped([("a.txt", b"")]), "without a Keras model in it"),
    "a_model_of_a_later_keras": (
        "model.keras",
        zipped([("config.json", b"{}"), ("metadata.json", b'{"keras_version": "4.1.0"}')]),
        "written by Keras 4.1.0",
    ),
    "broken_json": ("model.keras", zipped([("config.json", b"{"), ("metadata.json", b"{")]), "is damaged"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_model_is_named(settings, tmp_path, name):
    """By its content: the ending says little, and the library's message for all of these was that the file is not there."""
    file, content, words = OTHERS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ExportError, match=words) as refusal:
        read_source(tmp_path / file, settings, class_names=NAMES)
    assert len(str(refusal.value)) <= 400


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("share", [0.002, 0.3, 0.9, 0.999])
def test_a_cut_file_is_called_cut(settings, tmp_path, whole, name, share):
    """A download that ended early, wherever."""
    content = (whole / name).read_bytes()
    (tmp_path / name).write_bytes(content[: max(9, int(len(content) * share))])
    with pytest.raises(ExportError, match="cut off or damaged"):
        read_source(tmp_path / name, settings, class_names=NAMES)


def test_a_changed_byte_in_the_weights_is_noticed(settings, tmp_path, whole):
    """The zip file holds a checksum; Keras itself may read other weights without a word."""
    content = bytearray((whole / "model.keras").read_bytes())
    content[content.index(b"HDF") + 3000] ^= 255
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(ExportError, match=r"is damaged: model\.weights\.h5 in it has another checksum"):
        read_source(tmp_path / "model.keras", settings, class_names=NAMES)


def test_hdf5_files_without_a_model_are_told_apart(settings, tmp_path, whole):
    """Weights alone need the architecture; other data need another file."""
    with pytest.raises(ExportError, match="holds weights without the architecture"):
        read_source(whole / "model.weights.h5", settings)
    (tmp_path / "cp.index").touch()
    with pytest.raises(ExportError, match="holds weights without the architecture"):
        read_source(tmp_path / "cp", settings)
    (tmp_path / "data.h5").write_bytes(hdf5(tmp_path))
    with pytest.raises(ExportError, match="without a Keras model in it"):
        read_source(tmp_path / "data.h5", settings)
    (tmp_path / "broken.h5").write_bytes(hdf5(tmp_path, model_config="{", keras_version="2.4.0"))
    with pytest.raises(ExportError, match="its configuration cannot be read"):
        read_source(tmp_path / "broken.h5", settings)


@pytest.mark.parametrize(("content", "ending"), [("model.keras", ".h5"), ("model.h5", ".keras"), ("model.h5", "")])
def test_a_model_with_a_wrong_ending_is_read(settings, tmp_path, whole, content, ending):
    """Keras 2 up to 2.12 wrote HDF5 whatever the ending was."""
    path = shutil.copy(whole / content, tmp_path / f"renamed{ending}")
    assert recognise(path) is Format.KERAS3
    assert read_source(path, settings, class_names=NAMES, input_range=(0.0, 1.0)).model.columns == 3


def test_folders_are_told_apart(tmp_path, whole):
    """An unpacked `.keras` file is a model too; a folder of models asks for one; others are no models."""
    zipfile.ZipFile(whole / "model.keras").extractall(tmp_path / "unpacked")
    assert recognise(tmp_path / "unpacked") is Format.KERAS3
    assert recognise(whole / "exported") is Format.SAVED_MODEL
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"is neither a run .* nor a SavedModel"):
        recognise(tmp_path / "empty")
    with pytest.raises(ExportError, match=r"is a folder of models\. Name one: .*exported, .*model\.h5"):
        recognise(whole)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["ViT"]}')
    with pytest.raises(ExportError, match="is neither a run"):
        recognise(tmp_path / "other")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights.index").touch()
    with pytest.raises(ExportError, match="weights without the architecture"):
        recognise(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="does not exist"):
        recognise(tmp_path / "missing.keras")


def test_a_saved_model_that_was_not_copied_whole_is_refused(settings, tmp_path, whole):
    """The weights lie in a folder of their own, which Git LFS and copying lose."""
    folder = shutil.copytree(whole / "exported", tmp_path / "model")
    assert read_source(folder, settings, class_names=NAMES, input_range=(0.0, 1.0))
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )
    with pytest.raises(ExportError, match="git lfs pull"):
        read_source(folder, settings, class_names=NAMES)
    shutil.rmtree(folder / "variables")
    with pytest.raises(ExportError, match="without its weights"):
        read_source(folder, settings, class_names=NAMES)


def test_a_changed_version_is_not_read(settings, whole):
    """A SavedModel can hold any operation, so a version is loaded only if its files are those that were exported."""
    source = read_source(whole / "model.keras", settings, class_names=NAMES, input_range=(0.0, 1.0))
    version = export(source, settings.registry, "net", precision="float32")
    with (version.path / "saved_model.pb").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VersionUnusable, match="SHA-256 differs"):
        read_source(version.path, settings)


def test_a_signature_is_found_or_asked_for(settings, tmp_path):
    """`serving_default` is taken, then the only one that takes images; of several, one must be named."""
    import tensorflow as tf

    module = tf.Module()
    module.dense = tf.Variable(np.random.default_rng(0).normal(size=(192, 3)).astype(np.float32))
    image = tf.TensorSpec((None, 8, 8, 3), tf.float32, "image")
    text = tf.TensorSpec((None,), tf.string, "text")

    def classes(image):
        return {"probabilities": tf.nn.softmax(tf.reshape(image, (-1, 192)) @ module.dense)}

    def words(text):
        return {"length": tf.strings.length(text)}

    def save(name, **signatures):
        functions = {key: tf.function(function, input_signature=[spec]) for key, (function, spec) in signatures.items()}
        tf.saved_model.save(module, str(tmp_path / name), signatures=functions)
        return tmp_path / name

    known = {"class_names": NAMES, "input_range": (0.0, 1.0)}
    one = save("one", classes=(classes, image), words=(words, text))
    assert read_source(one, settings, **known).model.activation == "softmax"
    two = save("two", first=(classes, image), second=(classes, image))
    with pytest.raises(ExportError, match=r"several signatures: .*first.*--signature NAME"):
        read_source(two, settings, **known)
    assert read_source(two, settings, options=ReadOptions(signature="second"), **known)
    with pytest.raises(ExportError, match="has no signature 'third'"):
        read_source(two, settings, options=ReadOptions(signature="third"), **known)
    with pytest.raises(ExportError, match="takes no single image"):
        read_source(save("none", words=(words, text)), settings, **known)


@pytest.mark.slow
def test_layers_that_are_not_of_keras_need_the_file_that_defines_them(settings, tmp_path):
    """The message names the class and the option; a module that fails or lacks the class has its own message."""
    (tmp_path / "own_part.py").write_text(
        "import keras\nclass Double(keras.layers.Layer):\n    def call(self, x):\n        return x * 2\n"
    )
    (tmp_path / "empty_part.py").write_text("")
    (tmp_path / "failing_part.py").write_text("import nothing_of_this_name\n")
    build = (
        "import keras, own_part; keras.Sequential([keras.Input((8, 8, 3)), own_part.Double(), keras.layers.Flatten(), "
        "keras.layers.Dense(3, 'softmax')]).save('model.keras')"
    )
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    known = {"class_names": NAMES, "input_range": (0.0, 1.0)}
    for imports, words in {
        (): r"uses Double, whose code is not in the file.*own_part.*--import FILE\.py",
        (str(tmp_path / "empty_part.py"),): "uses Double, which .* does not define",
        (str(tmp_path / "failing_part.py"),): "fails with ModuleNotFoundError: No module named 'nothing_of_this_name'",
        (str(tmp_path / "missing.py"),): "there is no such file",
        (str(tmp_path / "model.keras"),): r"expected a Python file, which ends in \.py",
    }.items():
        with pytest.raises(ExportError, match=words):
            read_source(tmp_path / "model.keras", settings, options=ReadOptions(imports=imports), **known)
    options = ReadOptions(imports=(str(tmp_path / "own_part.py"),))
    assert read_source(tmp_path / "model.keras", settings, options=options, **known)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_code_inside_a_file_runs_only_if_it_is_allowed(settings, tmp_path, name):
    """Keras has no such guard for HDF5 files."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Lambda(lambda x: x * 2, output_shape=(8, 8, 3)),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.save(tmp_path / name)
    with pytest.raises(ExportError, match=r"Python code in the file.*--allow-lambda"):
        read_source(tmp_path / name, settings, class_names=NAMES, logits=True)


def test_a_name_that_a_lambda_layer_lacks_is_that_of_a_file_to_import(settings, tmp_path):
    """A file has the code of a Lambda layer without what its names stand for; those of the author's script come with that."""
    (tmp_path / "script_of_lambda.py").write_text("LARGEST = 255.0\n")
    divide = eval("lambda x: x / LARGEST", {"LARGEST": 255.0})  # noqa: S307
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Lambda(divide), layers.Flatten(), layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ExportError, match=r"uses LARGEST, .*--import FILE\.py"):
        read_source(tmp_path / "model.keras", settings, class_names=NAMES, options=ReadOptions(allow_lambda=True))
    options = ReadOptions(allow_lambda=True, imports=(str(tmp_path / "script_of_lambda.py"),))
    source = read_source(tmp_path / "model.keras", settings, class_names=NAMES, logits=True, options=options)
    assert source.pixels.preparation.name == "0,255"


def test_a_missing_tf_keras_is_named_with_the_command(settings, monkeypatch):
    """The package is only needed for Keras 2, and installing it with its requirements would bring a second TensorFlow."""
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ExportError, match=r"written by Keras 2\. Install .*: pip install --no-deps tf-keras==2\.21\.0"):
        read_source(ROOT / "tests/data/keras2_tutorial.h5", settings)


def test_a_librarys_exception_becomes_one_sentence():
    """Keras prints the configuration of the model: 162,014 characters for one public file."""
    config = json.dumps({"layers": [{"config": {"name": f"conv2d_{i}"}} for i in range(5000)]})
    error = ValueError(
        f"Exception encountered when calling Sequential.call().\n\n\x1b[1mThe layer is unknown.\x1b[0m {config}\n\nArguments"
    )
    assert first_sentence(error) == "The layer is unknown."
    assert len(first_sentence(ValueError(config))) <= 200
    assert first_sentence(ValueError()) == "ValueError"
    layers = "A total of 4 objects could not be loaded. Example error message for object <Dense name=key>:\n\nIt has no weights.\n"
    assert first_sentence(ValueError(layers)) == "It has no weights."


def test_a_network_that_litert_cannot_run_is_exported_for_tensorflow_and_its_converter_prints_nothing(
    tmp_path, monkeypatch, capfd, caplog
):
    """For this Fourier transform the converter printed 12.7 kB; one line says that TensorFlow serves the version."""
    pixels = keras.Input((8, 8, 3))
    spectrum = keras.ops.fft2((pixels[..., 0], pixels[..., 1]))[0]
    keras.Model(pixels, layers.Dense(3, "softmax")(layers.Flatten()(spectrum))).save(tmp_path / "model.keras")
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path / "registry"))
    options = ["--name", "net", "--classes", "a,b,c", "--input-range", "0,1"]
    assert main(["export", str(tmp_path / "model.keras"), *options]) == 0
    _, printed = capfd.readouterr()
    assert "LiteRT cannot run this network (ConverterError)" in caplog.text
    assert "loc(" not in printed
    assert max(map(len, printed.splitlines())) < 400
    version = Registry(tmp_path / "registry", "net").get()
    assert version.manifest.parity["litert_max_abs_difference"] is None
    predictor = Predictor.load(version)
    assert predictor.engine == "tensorflow"
    assert predictor.predict(np.zeros((1, 8, 8, 3), np.uint8), top_k=1)


def test_an_image_size_that_the_layers_cannot_take_is_refused_briefly(settings, tmp_path):
    """TensorFlow's message names its devices and functions; one sentence of it is enough."""
    pixels = keras.Input((None, None, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(8)(layers.Conv2D(4, 5)(pixels)))
    keras.Model(pixels, layers.Dense(3, "softmax")(pooled)).save(tmp_path / "model.keras")
    with pytest.raises(ExportError, match=r"cannot take images of \(4, 4, 3\)") as refusal:
        read_source(tmp_path / "model.keras", settings, class_names=NAMES, options=ReadOptions(image_size=(4, 4)))
    assert len(str(refusal.value)) <= 400


def test_the_order_of_the_colours_in_a_vector_is_asked(settings, tmp_path):
    """CIFAR's own files have all red pixels first; `numpy.reshape` keeps the colours of a pixel together."""
    keras.Sequential([keras.Input((192,)), layers.Dense(3, "softmax")]).save(tmp_path / "model.keras")
    for size in (None, (8, 8)):
        with pytest.raises(ExportError, match=r"--image-size 8,8,3 if the colours .*, 3,8,8 if all red pixels"):
            read_source(tmp_path / "model.keras", settings, class_names=NAMES, options=ReadOptions(image_size=size))
    for text, colours_first in (("8,8,3", False), ("3,8,8", True), ("8,8", None), ("8,8,1", False)):
        options = ReadOptions(image_size=tuple(image_size(text)))
        assert (options.sides, options.colours_first) == ((8, 8), colours_first)


def test_class_numbers_are_no_probabilities(settings, tmp_path):
    """A model that returns the number of the class would answer 0 or 1 for everything."""
    pixels = keras.Input((8, 8, 3))
    numbers = keras.ops.argmax(layers.Dense(3)(layers.Flatten()(pixels)), axis=-1)
    keras.Model(pixels, numbers).save(tmp_path / "model.keras")
    with pytest.raises(ExportError, match=r"it is of type int.*--output NAME"):
        read_source(tmp_path / "model.keras", settings, class_names=NAMES)
