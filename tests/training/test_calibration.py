"""`cifar.training.run.calibration`: the fitted temperature and score, and that every signature and engine uses them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.pictures import encoded
from support.runs import colours

from cifar.errors import ExportError
from cifar.models.engines import LITERT_FILE
from cifar.models.inspection import as_text, inspect_version
from cifar.models.predictor import Predictor
from cifar.training.data.photo_views import photo_views
from cifar.training.export import write as export_module
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.measures import measure
from cifar.training.run import calibration as module
from cifar.training.run.calibration import (
    CONFIDENCE_FILE,
    calibrated,
    fit_temperature,
    read_confidence,
    write_confidence,
)
from cifar.training.run.config import TrainConfig
from cifar.training.run.train import train


def miscalibrated(factor: float, count: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities whose logits are too large by `factor`, and labels drawn from the correct probabilities."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, 5))
    right = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (right.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    wrong = np.exp(factor * logits)
    return wrong / wrong.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_corrects_an_overconfident_or_underconfident_network(factor):
    """The right temperature is found within 6 %, and the remaining calibration error is due to chance."""
    probabilities, labels = miscalibrated(factor)
    temperature = fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(factor, rel=0.06)
    corrected = np.asarray(calibrated(probabilities.astype(np.float32), temperature))
    np.testing.assert_allclose(corrected.sum(axis=1), 1, atol=1e-5)
    assert (corrected.argmax(axis=1) == probabilities.argmax(axis=1)).all(), "the predicted labels must not change"
    assert measure(corrected, labels, "abcde")["ece"] < 0.02
    if factor == 3:
        assert measure(probabilities, labels, "abcde")["ece"] > 0.1


def test_a_few_correct_answers_do_not_make_a_network_certain():
    """Nine correct answers alone would be fitted best by a temperature near zero, which they cannot justify."""
    probabilities = np.tile([0.9, 0.05, 0.05], (9, 1))
    assert 0.8 < fit_temperature(probabilities, np.zeros(9, int)) < 1


def test_probabilities_of_zero_and_one_stay_finite():
    """Probabilities can be exactly 0 or 1 in float32; the logarithm of zero must not give NaN."""
    certain = np.array([[1, 0, 0], [0, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(calibrated(certain, 1.0), certain, atol=1e-6)
    assert np.isfinite(calibrated(certain, 0.3)).all()


def test_95_percent_of_the_held_out_images_are_in_distribution(scored_run):
    """This is the documented meaning of the threshold. Noise is out of distribution."""
    run, dataset, held_out = scored_run
    fitted = read_confidence(run)
    network = module.with_features(keras.saving.load_model(run / "model.keras"))

    def scores(images: np.ndarray) -> np.ndarray:
        features, _ = network(images.astype(np.float32))
        return np.asarray(module.scaled_score(module.raw_score(features, fitted.arrays), fitted))

    inside = (scores(dataset.train_images[held_out]) <= 1).mean()
    assert inside == pytest.approx(0.95, abs=2 / len(held_out))
    assert (scores(np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3))) > 1).mean() > 0.9
    assert fitted.report["held_out_images"] == len(held_out)
    assert sum(fitted.images_by_class) == len(dataset.train_labels) - len(held_out)


def test_the_score_of_a_network_trained_on_changed_copies_knows_such_and_its_threshold_is_that_of_unchanged_images(
    scored_run, tmp_path
):
    """Otherwise blurred and dark photographs of a class would be called none, or strange ones would not be caught."""
    run, dataset, held_out = scored_run
    model = keras.saving.load_model(run / "model.keras")
    fitted = dataset.train_images[:100], dataset.train_labels[:100]
    part = dataset.train_images[held_out], dataset.train_labels[held_out]
    plain, changed = (
        write_confidence(tmp_path, model, fitted=fitted, held_out=part, photo_views=share) for share in (0.0, 0.5)
    )
    network = module.with_features(model)
    copies = photo_views(part[0], np.random.default_rng(3))

    def flagged(confidence: module.Confidence, images: np.ndarray) -> float:
        features, _ = network(images.astype(np.float32))
        return float((np.asarray(module.raw_score(features, confidence.arrays)) > confidence.high).mean())

    assert flagged(changed, copies) < flagged(plain, copies)
    for confidence in (plain, changed):
        assert flagged(confidence, part[0]) == pytest.approx(0.05, abs=2 / len(held_out))


def test_the_score_adds_the_energy_of_the_logits_to_a_linear_score():
    """Of two images that differ only in how large the logits are, the one with the smaller logits is more unlike the training images."""
    random = np.random.default_rng(0)
    kernel, bias = np.eye(4, 3), np.zeros(3)
    inside, outside = random.normal([4, 0, 0, 0], 1, (200, 4)), random.normal([4, 0, 0, 3], 1, (200, 4))
    arrays = module.fit_score(inside, outside, kernel, bias)
    typical, small_logits, like_outliers = np.asarray(
        module.raw_score(np.array([[4, 0, 0, 0], [1, 0, 0, 0], [4, 0, 0, 3]], np.float32), arrays)
    )
    assert small_logits > typical
    assert like_outliers > typical
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_a_crash_while_writing_leaves_no_confidence_file(scored_run, tmp_path, monkeypatch):
    """A half-written file would make the export fail."""
    run, dataset, held_out = scored_run
    model = keras.saving.load_model(run / "model.keras")
    part = dataset.train_images[held_out], dataset.train_labels[held_out]

    def crash(file, **_):
        file.write(b"half of the content")
        raise OSError("No space left on device")

    monkeypatch.setattr(module.np, "savez", crash)
    with pytest.raises(OSError, match="No space left"):
        write_confidence(tmp_path, model, fitted=part, held_out=part)
    assert read_confidence(tmp_path) is None


def test_a_network_without_a_dense_layer_gets_no_calibration(tmp_path):
    """It has no features to compare, so it is exported without a score."""
    pixels = keras.Input((8, 8, 3))
    model = keras.Model(pixels, keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(pixels)))
    part = np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 3
    assert write_confidence(tmp_path, model, fitted=part, held_out=part) is None
    assert not (tmp_path / CONFIDENCE_FILE).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("held_out", "scored"), [(48, False), (51, True)])
def test_too_few_held_out_images_give_no_score_and_train_and_export_say_so(
    settings, tmp_path, capsys, caplog, held_out, scored
):
    """Of 20 images one decides the threshold, so pictures of the right classes were called none of them."""
    config = TrainConfig(epochs=1, batch_size=50, validation_split=held_out / 150, seed=5)
    train(config, colours(150), tmp_path / "run")
    sentence = f"{held_out} held-out images are too few"
    assert (sentence in capsys.readouterr().err) != scored
    source = read_source(tmp_path / "run", settings)
    assert (source.confidence is not None) == scored
    assert (sentence in caplog.text) != scored


@pytest.mark.parametrize("earlier", [{"held_out_images": 20}, {"method": "Mahalanobis distance"}])
def test_the_score_of_a_run_of_an_earlier_release_is_left_out(tmp_path, scored_run, earlier):
    """Those have one from any number of images, or one that is computed from other arrays."""
    with np.load(scored_run[0] / CONFIDENCE_FILE) as file:
        arrays = dict(file)
    about = json.loads(str(arrays.pop("about")))
    about["report"] |= earlier
    np.savez(tmp_path / CONFIDENCE_FILE, about=np.array(json.dumps(about)), **arrays)
    assert read_confidence(tmp_path) is None


def test_every_signature_and_engine_gives_the_same_score_and_calibrated_probabilities(scored_run, scored_version):
    """The calibration is part of the graph, so no client can get uncalibrated probabilities."""
    run, dataset, held_out = scored_run
    images = dataset.train_images[held_out][:5]
    fitted = read_confidence(run)
    raw = np.asarray(keras.saving.load_model(run / "model.keras")(images.astype(np.float32))).astype(np.float64)
    expected = raw ** (1 / fitted.temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    signatures = tf.saved_model.load(str(scored_version.path)).signatures
    asked = {
        "serving_default": {"input_image": tf.constant(images / np.float32(255))},
        "serving_uint8": {"image": tf.constant(images)},
        "serving_bytes": {"image_bytes": tf.constant([encoded(Image.fromarray(image)) for image in images])},
    }
    scores = Predictor.load(scored_version, "tensorflow").answers(images)[:, -1]
    for name, inputs in asked.items():
        outputs = signatures[name](**inputs)
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
        np.testing.assert_allclose(outputs["ood_score"], scores, rtol=1e-3, atol=1e-3)
        assert outputs["ood_score"].dtype == tf.float32
    assert [name.decode() for name in outputs["classes"].numpy()[4]] == list(dataset.class_names)  # of serving_bytes
    on_litert = Predictor.load(scored_version, "litert").answers(images)
    np.testing.assert_allclose(on_litert, np.column_stack((expected, scores)), rtol=1e-3, atol=1e-3)


def test_the_manifest_and_inspect_describe_the_calibration(scored_run, scored_version):
    """They have temperature, threshold, image counts and the output `ood_score`."""
    _, dataset, held_out = scored_run
    manifest = scored_version.manifest
    assert manifest.confidence.threshold == 1
    assert manifest.confidence.model_dump()["held_out_images"] == len(held_out)
    assert sum(manifest.images_by_class.values()) == len(dataset.train_labels) - len(held_out)
    assert list(manifest.images_by_class) == list(dataset.class_names)
    for signature in manifest.signatures.values():
        assert signature.outputs["ood_score"].model_dump() == {"dtype": "float32", "shape": [None]}
    assert manifest.parity["ood_score_max_difference"] < 1e-3
    text = as_text(inspect_version(scored_version.path))
    assert "ood_score" in text
    assert f"temperature {manifest.confidence.temperature:g}" in text


def test_an_export_with_a_different_score_leaves_no_version(scored_run, settings, monkeypatch):
    """The exported score is compared with the model, as the probabilities are."""
    source = read_source(scored_run[0], settings)
    write = export_module.write_saved_model

    def write_another_score(source, folder):
        fitted = source.confidence
        other = replace(fitted, low=fitted.low - (fitted.high - fitted.low) / 10)
        write(replace(source, confidence=other), folder)

    monkeypatch.setattr(export_module, "write_saved_model", write_another_score)
    with pytest.raises(
        ExportError, match=r"The reloaded ood_score of serving_uint8 differs from the model by .* at most 0\.001"
    ):
        export(source, settings.registry, "net")
    assert list((settings.registry / "net").iterdir()) == []


def test_a_run_without_calibration_is_exported_without_a_score(scored_run, settings, tmp_path):
    """Runs that were trained before there was a score can still be exported; the score is None."""
    run = tmp_path / "run"
    shutil.copytree(scored_run[0], run, ignore=shutil.ignore_patterns(CONFIDENCE_FILE))
    version = export(read_source(run, settings), settings.registry, "net")
    assert version.manifest.confidence is None
    assert version.manifest.images_by_class is None
    assert list(version.manifest.signatures["serving_uint8"].outputs) == ["probabilities"]
    for engine in ("tensorflow", "litert"):
        (prediction,) = Predictor.load(version, engine).predict(np.zeros((1, 32, 32, 3), np.uint8), top_k=1)
        assert (prediction.ood_score, prediction.in_distribution) == (None, None)


def test_the_parameters_of_the_score_are_stored_once(scored_version):
    """The three signatures share them. A constant in each would make the version much larger."""
    files = scored_version.manifest.files
    assert files["saved_model.pb"].bytes < files[LITERT_FILE].bytes / 2
    assert json.loads((scored_version.path / "manifest.json").read_text())["confidence"]["threshold"] == 1
