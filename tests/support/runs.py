"""Small data sets and training configurations."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.folders import put

from cifar.training.data.dataset import Dataset
from cifar.training.run.config import TrainConfig

# TensorFlow fixes its number of threads at its first computation, and another number adds in another order. Without this
# line, a test that loads a version earlier in the same process would change the weights of a run to the last bit.
tf.constant(0)


def colours(count: int = 250, classes: int = 3, size: int = 32) -> Dataset:
    """Return images that are mostly red, green or blue, which a network learns in seconds."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = random.integers(0, 120, (count, size, size, 3), np.uint8)
    images[np.arange(count), :, :, labels] += 120
    return Dataset("colours", tuple("abc"[:classes]), images, labels, images[:30], labels[:30])


def colours_folder(folder: Path, count: int) -> Path:
    """Write the training images of `colours` as an image folder, and return it."""
    dataset = colours(count)
    for i, (image, label) in enumerate(zip(dataset.train_images, dataset.train_labels, strict=True)):
        put(folder / "train" / "abc"[label] / f"{i}.png", Image.fromarray(image))
    return folder


EPOCHS = {"fast": 3, "tutorial": 3}


QUICK = TrainConfig(arch="tutorial", epochs=1, batch_size=16)


def config(arch: str, **other: object) -> TrainConfig:
    return TrainConfig(**{"arch": arch, "epochs": EPOCHS[arch], "batch_size": 16, "validation_split": 0.2, **other})


def weights(run) -> list[np.ndarray]:
    return keras.saving.load_model(run / "model.keras").get_weights()


def equal_weights(run, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(weights(run), weights(other), strict=True))


def rows(run) -> np.ndarray:
    return np.atleast_1d(np.genfromtxt(run / "history.csv", delimiter=",", names=True))


def wait_for_first_epoch(process: subprocess.Popen[str], run: Path) -> None:
    """Wait until a training command has completed its first epoch."""
    deadline = time.monotonic() + 200
    while not (run / "checkpoint.keras").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no epoch was completed"
        time.sleep(0.01)


both = pytest.mark.parametrize("arch", ["tutorial", pytest.param("fast", marks=pytest.mark.slow)])
