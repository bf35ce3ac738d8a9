"""`cifar.training.train`: the whole loop, on a few images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from pictures import encoded

from cifar.errors import BadParameter, TrainingError
from cifar.settings import ROOT
from cifar.training.data import Dataset
from cifar.training.model import build_model
from cifar.training.train import TrainConfig, train


def colours(count: int = 240, classes: int = 3, size: int = 32) -> Dataset:
    """Pictures that are mostly red, green or blue: a network learns them in seconds."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = random.integers(0, 120, (count, size, size, 3), np.uint8)
    images[np.arange(count), :, :, labels] += 120
    return Dataset("colours", tuple("abc"[:classes]), images, labels, images[:30], labels[:30])


CONFIG = TrainConfig(epochs=3, batch_size=16, validation_split=0.2, seed=5)


def weights(run) -> list[np.ndarray]:
    return keras.saving.load_model(run / "model.keras").get_weights()


def test_the_tutorials_network_has_its_parameters_and_scales_pixels_itself():
    """122,570 parameters; black and white become 0 and 1 inside the graph."""
    model = build_model("tutorial", 10)
    assert model.count_params() == 122_570
    scaled = model.get_layer("to_unit_range")(np.array([0.0, 255.0], np.float32))
    np.testing.assert_allclose(scaled, [0, 1])


@pytest.mark.parametrize(
    ("arch", "classes", "shape", "words"),
    [
        ("resnet", 10, (32, 32, 3), "no architecture 'resnet'; there are: tutorial"),
        ("tutorial", 1, (32, 32, 3), "at least 2 classes"),
        ("tutorial", 10, (8, 8, 3), "cannot take pictures"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(arch, classes, shape, words):
    """The sentence says which part is wrong."""
    with pytest.raises(BadParameter, match=words):
        build_model(arch, classes, image_shape=shape)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"validation_split": 1.0}, {"arch": "resnet"}]
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(wrong):
    """Nothing half-started."""
    with pytest.raises(BadParameter):
        TrainConfig(**wrong)


def test_training_lowers_the_loss_and_writes_a_whole_run(tmp_path):
    """The loss falls, the colours are told apart, and every promised file is there."""
    model_file = train(CONFIG, colours(), tmp_path / "run", h5=True)
    history = np.genfromtxt(tmp_path / "run" / "history.csv", delimiter=",", names=True)
    assert history["loss"][-1] < history["loss"][0]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test_images"] == 30
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "curves.png",
        "history.csv",
        "metrics.json",
        "model.h5",
        "model.keras",
        "samples.npz",
    }
    of_h5 = keras.saving.load_model(tmp_path / "run" / "model.h5", compile=False)
    images = colours().test_images
    np.testing.assert_allclose(
        of_h5(images, training=False), keras.saving.load_model(model_file)(images, training=False), atol=1e-6
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    """A run can be repeated."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(TrainConfig(epochs=1, seed=seed), colours(60), tmp_path / name)
    for a, b in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != c).any() for a, c in zip(weights(tmp_path / "a"), weights(tmp_path / "c"), strict=True))


class StopsInEpochTwo(keras.callbacks.Callback):
    """Presses Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations > 18:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_interrupted_and_resumed_equals_one_that_was_not(tmp_path, monkeypatch):
    """Same images in the same order, same dropout, same optimizer state: the same weights to the last bit."""
    train(CONFIG, colours(), tmp_path / "whole")
    fit = keras.Sequential.fit
    monkeypatch.setattr(
        keras.Sequential,
        "fit",
        lambda self, *a, callbacks, **k: fit(self, *a, callbacks=[*callbacks, StopsInEpochTwo()], **k),
    )
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, colours(), tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model.keras").exists()
    train(CONFIG, colours(), tmp_path / "stopped", resume=True)
    for a, b in zip(weights(tmp_path / "whole"), weights(tmp_path / "stopped"), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("whole", "stopped"):
        history = (tmp_path / name / "history.csv").read_text().splitlines()
        assert len(history) == 1 + CONFIG.epochs


@pytest.mark.slow
def test_a_run_killed_at_any_moment_can_be_resumed(tmp_path):
    """SIGKILL leaves whole files only; resuming gives what an uninterrupted run gives."""
    data = tmp_path / "data"
    dataset = colours(600)
    for i, (image, label) in enumerate(zip(dataset.train_images, dataset.train_labels, strict=True)):
        folder = data / "train" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        from PIL import Image

        (folder / f"{i}.png").write_bytes(encoded(Image.fromarray(image)))

    def command(out, *more):
        return [sys.executable, "-m", "cifar", "train", "--data", str(data), "--out", str(out), "--epochs", "8", *more]

    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    killed = subprocess.Popen(command(tmp_path / "killed"), cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.keras").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists(), "it was killed too late to show anything"
    subprocess.run(command(tmp_path / "killed", "--resume"), cwd=ROOT, check=True, capture_output=True)
    for a, b in zip(weights(tmp_path / "whole"), weights(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    """Somebody's run is worth more than a typing error."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"run exists. Choose another --out, or go on with it: --resume"):
        train(CONFIG, colours(), tmp_path / "run")


def test_resuming_with_other_settings_or_data_says_which_differ(tmp_path):
    """The sentence names each difference, old and new."""
    train(TrainConfig(epochs=1), colours(60), tmp_path / "run")
    with pytest.raises(
        TrainingError,
        match="--epochs was 1, is 2; --seed was 0, is 9; data train_images was 60, is 90; data fingerprint",
    ) as caught:
        train(TrainConfig(epochs=2, seed=9), colours(90), tmp_path / "run", resume=True)
    assert "--batch-size" not in str(caught.value)


def test_resuming_what_is_no_run_says_so(tmp_path):
    """There is nothing to go on with."""
    with pytest.raises(TrainingError, match=r"is no run: it has no config\.json"):
        train(CONFIG, colours(60), tmp_path / "nothing", resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    """Asking twice is harmless; asking for an .h5 file then gives one."""
    train(TrainConfig(epochs=1), colours(60), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    train(TrainConfig(epochs=1), colours(60), tmp_path / "run", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    train(TrainConfig(epochs=1), colours(60), tmp_path / "run", resume=True, h5=True)
    assert (tmp_path / "run" / "model.h5").exists()


@pytest.mark.slow
def test_a_loss_of_nan_stops_with_advice_and_keeps_the_last_good_epoch(tmp_path, monkeypatch):
    """A learning rate far too high is said to be one."""
    fit = keras.Sequential.fit

    def explode_in_epoch_two(self, *arguments, **options):
        if self.optimizer.iterations > 0:
            self.optimizer.learning_rate = 1e30
        return fit(self, *arguments, **options)

    monkeypatch.setattr(keras.Sequential, "fit", explode_in_epoch_two)
    with pytest.raises(TrainingError, match=r"in epoch [23]; the [12] before are kept in .*--learning-rate"):
        train(TrainConfig(epochs=4), colours(60), tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model.keras").exists()
    assert all(
        np.isfinite(w).all() for w in keras.saving.load_model(tmp_path / "run" / "checkpoint.keras").get_weights()
    )


def test_progress_names_epoch_accuracy_and_time_left(tmp_path, capfd):
    """A line for each epoch, on stderr."""
    train(TrainConfig(epochs=2), colours(60), tmp_path / "run")
    captured = capfd.readouterr()
    assert "epoch 1/2: loss" in captured.err
    assert "validation accuracy" in captured.err
    assert "s left" in captured.err
    assert captured.out == ""
