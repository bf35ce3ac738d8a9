"""The LiteRT file of an export: `cifar.training.export.litert`. Which layers compute in int8, and what other programs read."""

from __future__ import annotations

import io
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from flatbuffers import encode, number_types
from flatbuffers.table import Table
from PIL import Image
from support.folders import put
from support.samples import SHIPPED

from cifar import CLASS_NAMES
from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.images.spec import ImageSpec
from cifar.models.engines import LITERT_FILE, litert_from
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.settings import ROOT
from cifar.training.data.split import split_validation
from cifar.training.export.litert.file import convert, with_metadata
from cifar.training.export.litert.held_out import HeldOut, read_held_out
from cifar.training.export.litert.judge import MIN_IMAGES, Judge
from cifar.training.export.litert.quantize import choose_precision, quantizable, quantized
from cifar.training.export.source import read_source
from cifar.training.measures import measure

pytestmark = pytest.mark.slow  # nearly every test converts a network, several times

layers = keras.layers


def litert(model: keras.Model) -> bytes:
    """Return the float32 LiteRT file of a model that takes pixels in [0, 255]."""
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, "image")
    function = tf.function(lambda image: {"probabilities": model(tf.cast(image, tf.float32))}, input_signature=[spec])
    return convert({"serving_uint8": function.get_concrete_function()})


def shapes(count: int, size: int = 32) -> np.ndarray:
    """Return images of one colour each, with noise."""
    random = np.random.default_rng(0)
    noise = random.integers(-20, 20, (count, size, size, 3))
    return (random.integers(20, 236, (count, 1, 1, 3)) + noise).astype(np.uint8)


def network(*, wide: bool) -> keras.Model:
    """Return a network of three convolutions that tells colours apart.

    With `wide`, the input of the second one has a channel that is a thousand times larger than the others and that no weight
    uses: rounded to 255 steps of that range, the other channels are lost.
    """
    keras.utils.set_random_seed(1)
    pixels = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="second")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="third")(x)
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(pixels, x)
    if wide:
        kernel, bias = model.get_layer("first").get_weights()
        kernel[..., 0] *= 1000
        bias[0] = 1000
        model.get_layer("first").set_weights([kernel, bias])
        kernel, bias = model.get_layer("second").get_weights()
        kernel[:, :, 0] = 0
        model.get_layer("second").set_weights([kernel, bias])
    dense = model.layers[-1]
    kernel, bias = dense.get_weights()
    dense.set_weights([kernel * 20, bias])
    return model


def test_layers_compute_in_int8_if_the_answers_hardly_change():
    """The search keeps what it measured: the figures in the manifest are those of the file."""
    content, images = litert(network(wide=False)), shapes(400)
    labels = litert_from(content)(images).argmax(axis=1)
    result, quantization = choose_precision(content, "auto", HeldOut(images, labels, "colours"), classes=3)
    assert quantization.precision == "int8"
    assert quantization.speedup >= 1.2
    assert len(quantization.int8_layers) >= 2
    before, after = litert_from(content)(images), litert_from(result)(images)
    figures = quantization.figures
    assert all(figure.holds for figure in figures.values())
    assert figures["accuracy"].float32 == 1
    assert figures["accuracy"].int8 == pytest.approx((after.argmax(axis=1) == labels).mean())
    assert figures["labels_changed"].difference == pytest.approx((after.argmax(axis=1) != before.argmax(axis=1)).mean())
    assert (
        0 < np.abs(after - before).mean() == pytest.approx(figures["mean_probability_difference"].difference, abs=1e-6)
    )


def test_a_layer_with_a_wide_input_stays_in_float32():
    """As the layer after the whitening convolution of version 2, which loses five points of accuracy in int8."""
    content, images = litert(network(wide=True)), shapes(400)
    spoiled = litert_from(quantized(content, quantizable(content)))(images)
    assert np.abs(spoiled - litert_from(content)(images)).mean() > 0.05, "all layers in int8 give other answers"
    result, quantization = choose_precision(content, "int8", HeldOut(images, None, "colours"), classes=3)
    assert quantization.precision == "int8"
    assert any("second" in name for name in quantization.float32_layers)
    assert any("third" in name for name in quantization.int8_layers)
    assert np.abs(litert_from(result)(images) - litert_from(content)(images)).mean() < 0.002


def test_too_few_images_leave_the_file_in_float32():
    """With fewer than 300 images nobody can say that fewer than 1 % of the labels change. `int8` is then refused."""
    content, held_out = litert(network(wide=False)), HeldOut(shapes(MIN_IMAGES - 1), None, "comparison images")
    result, quantization = choose_precision(content, "auto", held_out, classes=3)
    assert result == content
    assert quantization.reason == (
        "float32, because int8 must be compared on at least 300 images, and there are 299 (comparison images)."
    )
    with pytest.raises(ExportError, match=r"at least 300 images.* No version was written\. --precision auto"):
        choose_precision(content, "int8", held_out, classes=3)


def test_a_network_that_gains_no_time_stays_in_float32():
    """Rounding the inputs of a small layer takes longer than its multiplications."""
    pixels = keras.Input((8, 8, 3))
    model = keras.Model(pixels, layers.Dense(3, activation="softmax")(layers.Flatten()(pixels)))
    content = litert(model)
    result, quantization = choose_precision(content, "auto", HeldOut(shapes(300, 8), None, "colours"), classes=3)
    assert (result, quantization.precision) == (content, "float32")
    assert "times as fast here; at least 1.2 is required" in quantization.reason


def test_a_network_that_changes_its_answers_stays_in_float32():
    """Here the only large layer has a wide input, so that no int8 file is within the bounds."""
    pixels = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    wide = layers.Concatenate()([x * 1e4, x])
    x = layers.Conv2D(64, 5, activation="relu", name="only")(wide)
    model = keras.Model(pixels, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    kernel, bias = model.get_layer("only").get_weights()
    kernel[:, :, :3] = 0
    model.get_layer("only").set_weights([kernel, bias])
    _, quantization = choose_precision(litert(model), "auto", HeldOut(shapes(300), None, "colours"), classes=3)
    assert quantization.precision == "float32"
    assert quantization.reason.startswith("float32, because int8 changes the answers too much: ")
    assert not all(figure.holds for figure in quantization.figures.values())


class HalvedThreeTimes(layers.Layer):
    """A layer with a loop, which LiteRT keeps as a graph of its own."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda step, _: step < 3, lambda step, value: (step + 1, value / 2), (0, x))[1]


def test_a_network_with_a_loop_has_int8_layers_too():
    """Its file has several graphs; the layers of the first one are tried."""
    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, activation="relu")(pixels)
    x = HalvedThreeTimes()(layers.Conv2D(32, 3, activation="relu")(x))
    model = keras.Model(pixels, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    content, images = litert(model), shapes(300)
    assert len(flatbuffer_utils.read_model_from_bytearray(content).subgraphs) == 3
    first, second = quantizable(content)
    result = quantized(content, [first, second])
    assert len(result) < len(content)
    assert litert_from(result)(images[:2]).shape == (2, 3)
    assert (
        "cannot be quantized" not in choose_precision(content, "auto", HeldOut(images, None, "x"), classes=3)[1].reason
    )


def test_layers_that_share_a_prefix_are_chosen_one_by_one():
    """The quantizer takes regular expressions: `conv` must not choose `conv_2` too, and dots must not match any letter."""
    pixels = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, name="conv", use_bias=False)(pixels)
    x = layers.Conv2D(16, 3, name="conv_2", use_bias=False)(x)
    content = litert(keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    first, second = quantizable(content)
    sizes = [len(quantized(content, some)) for some in ([], [first], [second], [first, second])]
    saved = [sizes[0] - size for size in sizes]
    assert saved[1] > 0
    assert saved[2] > 2 * saved[1]
    assert saved[3] == pytest.approx(saved[1] + saved[2], abs=500)


def test_the_judge_measures_what_evaluate_measures():
    """Accuracy is that of the report; a file that is compared with itself has no difference."""
    content, images = litert(network(wide=False)), shapes(50)
    labels = np.arange(50) % 3
    figures = Judge(content, HeldOut(images, labels, "colours"), 3, multi_label=False, has_score=False).figures(content)
    assert {figure.difference for figure in figures.values()} == {0}
    assert figures["accuracy"].float32 == measure(litert_from(content)(images), labels, ("a", "b", "c"))["accuracy"]
    assert set(figures) == {"accuracy", "calibration_error", "labels_changed", "mean_probability_difference"}


def test_a_thousand_classes_are_compared_by_the_most_probable_ones():
    """The mean over a thousand probabilities is always small: the bound would hold for any answers."""
    pixels = keras.Input((8, 8, 3))
    keras.utils.set_random_seed(1)
    models = [
        litert(keras.Model(pixels, layers.Dense(1000, activation="softmax")(layers.Flatten()(pixels))))
        for _ in range(2)
    ]
    judge = Judge(models[0], HeldOut(shapes(20, 8), None, "colours"), 1000, multi_label=False, has_score=False)
    assert not judge.figures(models[1])["mean_probability_difference"].holds


# --- what other programs read -----------------------------------------------------------------------------------------


def metadata(content: bytes) -> Table:
    """Return the root table of TFLite's metadata."""
    buffer = content[content.index(b"M001") - 4 :]
    return Table(buffer, encode.Get(number_types.UOffsetTFlags.packer_type, buffer, 0))


def field(table: Table, *path: int) -> Table:
    """Follow fields of tables; of a vector of tables, its first entry."""
    for slot in path:
        offset = table.Offset(4 + 2 * slot)
        at = table.Indirect(table.Pos + offset)
        table = Table(table.Bytes, at)
    return table


def first(table: Table, slot: int) -> Table:
    """Return the first table of a vector of tables."""
    start = table.Vector(table.Offset(4 + 2 * slot))
    return Table(table.Bytes, table.Indirect(start))


def text(table: Table, slot: int) -> str:
    return table.String(table.Pos + table.Offset(4 + 2 * slot)).decode()


@pytest.mark.parametrize("int8", [False, True])
def test_the_file_has_a_signature_labels_and_the_input_size(int8):
    """Android Studio, MediaPipe and others use a file by these names, without knowing this project."""
    content = litert(network(wide=False))
    if int8:
        content = quantized(content, quantizable(content))
    content = with_metadata(
        content, name="colours", image=ImageSpec(height=32, width=32, channels=3), class_names=["red", "grün", "b c"]
    )
    interpreter = Interpreter(model_content=content)
    assert interpreter.get_signature_list() == {"serving_uint8": {"inputs": ["image"], "outputs": ["probabilities"]}}
    images = shapes(2)
    named = interpreter.get_signature_runner("serving_uint8")(image=images[:1])["probabilities"]
    np.testing.assert_array_equal(named, litert_from(content)(images)[:1])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().split("\n") == ["red", "grün", "b c"]
    root = metadata(content)
    assert text(root, 0) == "colours"
    graph = first(root, 3)
    image, probabilities = first(graph, 2), first(graph, 3)
    assert (text(image, 0), text(probabilities, 0)) == ("image", "probabilities")
    size = field(image, 3, 1, 1)
    assert [size.Get(number_types.Uint32Flags, size.Pos + size.Offset(4 + 2 * slot)) for slot in (0, 1)] == [32, 32]
    assert text(first(probabilities, 6), 0) == "labels.txt"


def test_the_shipped_file_names_its_two_outputs_and_its_labels():
    """`probabilities` is the first output, because many programs read only that one."""
    content = (SHIPPED.parent / "2" / LITERT_FILE).read_bytes()
    interpreter = Interpreter(model_content=content)
    assert interpreter.get_signature_list()["serving_uint8"]["outputs"] == ["ood_score", "probabilities"]
    assert [output["name"] for output in interpreter.get_output_details()] == ["probabilities", "ood_score"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().split("\n") == list(CLASS_NAMES)


def test_the_shipped_version_2_answers_as_its_float32_saved_model_does():
    """200 test images of the JPEG edition: at most 1 % other labels, and 0.002 in a probability, as the manifest states."""
    version = Registry(SHIPPED.parent.parent, "cifar_classifier").get(2)
    assert version.manifest.quantization.precision == "int8"
    with zipfile.ZipFile(ROOT / "tests" / "data" / "cifar10_200.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        images = np.stack([np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names])
    by_litert = Predictor.load(version, "litert").answers(images)
    by_tensorflow = Predictor.load(version, "tensorflow")
    assert by_tensorflow.precision == "float32"
    expected = by_tensorflow.answers(images)
    assert (by_litert[:, :10].argmax(axis=1) != expected[:, :10].argmax(axis=1)).mean() <= 0.01
    assert np.abs(by_litert[:, :10] - expected[:, :10]).mean() <= 0.002
    assert np.corrcoef(by_litert[:, 10], expected[:, 10])[0, 1] > 0.999


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_says_the_precision_and_inspect_shows_it(monkeypatch, tmp_path, capsys):
    """In the output of the command, in the manifest, and in both forms of `inspect`."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path))
    network(wide=False).save(tmp_path / "model.keras")
    common = ["export", str(tmp_path / "model.keras"), "--classes", "a,b,c", "--name", "net"]
    assert main([*common]) == 0
    said = capsys.readouterr().err
    assert "int8" not in said, "nobody asked for it, and ten images decide nothing"
    assert "Serve it: CIFAR_MODEL_NAME=net make run" in said, "the default model is another one, and stays in service"
    assert main([*common, "--precision", "int8"]) == 1
    assert "No version was written" in capsys.readouterr().err
    assert main([*common, "--precision", "float32"]) == 0
    assert "LiteRT file: float32 was requested." in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "net" / "2")]) == 0
    assert "precision of the LiteRT file: float32 was requested." in capsys.readouterr().out


def test_labelled_pictures_decide_the_precision_of_a_model_without_a_run(monkeypatch, tmp_path, capsys):
    """A model from elsewhere can be int8 too, if somebody has enough pictures with labels."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path))
    model, images = network(wide=False), shapes(320)
    model.save(tmp_path / "model.keras")
    for number, (pixels, label) in enumerate(zip(images, model.predict(images, verbose=0).argmax(axis=1), strict=True)):
        put(tmp_path / "pictures" / "abc"[label] / f"{number}.png", Image.fromarray(pixels))
    command = ["export", str(tmp_path / "model.keras"), "--classes", "a,b,c", "--name", "net"]
    assert main([*command, "--check", str(tmp_path / "pictures"), "--precision", "int8"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "net" / "1")]) == 0
    text_form = capsys.readouterr().out
    assert "compared on 320 images (pictures in pictures):" in text_form
    assert "accuracy: 1.0000 in float32, " in text_form
    assert main(["inspect", str(tmp_path / "net" / "1"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"]["figures"]["accuracy"]["bound"] == 0.001


def test_a_run_keeps_its_held_out_images_and_their_labels(scored_run, settings):
    """They decide the precision of its export, also where the data set is no longer there."""
    run, dataset, positions = scored_run
    held_out = read_held_out(run, read_source(run, settings), settings)
    np.testing.assert_array_equal(held_out.images, dataset.train_images[positions])
    np.testing.assert_array_equal(held_out.labels, dataset.train_labels[positions])
    assert held_out.source == "held-out images of the run"
    assert len(split_validation(dataset.train_labels, 0.2, 5)[1]) == len(held_out.some(10**6).images)


def test_a_version_exported_again_keeps_its_network_and_what_is_known_of_it(monkeypatch, tmp_path):
    """`--precision float32` gives users of version 2 a float32 LiteRT file, with the out-of-distribution score."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path))
    source = SHIPPED.parent / "2"
    assert main(["export", str(source), "--precision", "float32"]) == 0
    old, new = Registry(ROOT / "saved_model", "cifar_classifier").get(2), Registry(tmp_path, "cifar_classifier").get(1)
    for file in ("saved_model.pb", "variables/variables.data-00000-of-00001"):
        assert new.manifest.files[file] == old.manifest.files[file]
    kept = ("metrics", "training", "confidence", "reference", "images_by_class", "signatures", "class_names")
    assert all(getattr(new.manifest, name) == getattr(old.manifest, name) for name in kept)
    assert new.manifest.quantization.precision == "float32"
    predictor = Predictor.load(new, "litert")
    assert (predictor.precision, predictor.has_ood_score) == ("float32", True)
    images = shapes(3)
    exact = Predictor.load(old, "tensorflow").answers(images)
    np.testing.assert_allclose(predictor.answers(images), exact, rtol=1e-3, atol=1e-4)
