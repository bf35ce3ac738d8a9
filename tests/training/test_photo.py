"""`train --arch photo`: a classifier for few photographs on a pretrained network."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import httpx2
import keras
import numpy as np
import pytest
from PIL import Image
from support import cli
from support.folders import put
from support.pictures import encoded, shape, shapes_folder
from support.servers import running

from cifar.errors import BadParameter
from cifar.models.registry import Registry
from cifar.settings import ROOT, Settings
from cifar.training.data.dataset import Dataset, load_dataset
from cifar.training.data.photographs import PHOTO, PHOTO_SHAPE, choose_network
from cifar.training.run.config import TrainConfig
from cifar.training.run.photo.head import fit_head, stratified_parts
from cifar.training.run.photo.network import load_backbone, photo_network
from cifar.training.run.photo.weights import pretrained_weights, read_tensors
from cifar.training.run.train import train

KINDS = ("disc", "square", "star")
IMAGENET = {"airplane": range(404, 405), "bird": range(7, 147), "cat": range(281, 286), "dog": range(151, 269)}
"""Positions of ImageNet's classes of what some examples show."""


def shapes(each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return so many drawn shapes of each kind at 64x64 pixels, and their labels."""
    random = np.random.default_rng(seed)
    images = [np.asarray(shape(kind, random).convert("RGB").resize((64, 64))) for kind in KINDS for _ in range(each)]
    return np.stack(images), np.repeat(np.arange(len(KINDS)), each)


def test_the_network_with_its_own_last_layer_names_imagenet_classes():
    """A transposed kernel, another epsilon or other padding would leave answers that look like answers."""
    weights = pretrained_weights()
    model = photo_network(PHOTO_SHAPE, 1000)
    load_backbone(model, weights)
    pixels = []
    for name in IMAGENET:
        with Image.open(ROOT / "examples" / f"{name}.jpg") as image:
            pixels.append(np.asarray(image.convert("RGB").resize(PHOTO_SHAPE[:2]), np.float32))
    pooled = keras.Model(model.inputs[0], model.get_layer("features").input)(np.stack(pixels)).numpy()
    named = (pooled @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax(axis=1)
    assert all(found in classes for found, classes in zip(named, IMAGENET.values(), strict=True)), named


def test_a_file_of_weights_cannot_run_code():
    """PyTorch's files are pickles, which can call any function when they are loaded."""
    attack = b"".join(pickle.dumps(value) for value in (1, 2, {})) + b"cos\nsystem\n(S'true'\ntR."
    with pytest.raises(pickle.UnpicklingError, match=r"os\.system is not part of a file of weights"):
        read_tensors(attack)


def test_cross_validation_holds_each_picture_out_once_with_all_classes_in_every_part():
    """A part without a class would measure a last layer that never saw it."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 7, 23]))
    parts = stratified_parts(labels, 5, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(35))
    counts = np.array([np.bincount(labels[part], minlength=3) for part in parts])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    assert counts.min() >= 1


@pytest.mark.parametrize("width", [10, 50])
def test_the_head_is_the_minimum_of_its_loss(width):
    """With few pictures it is sought in the span of their features; the gradient of the plain loss must vanish at the result."""
    random = np.random.default_rng(0)
    features, labels, weights = random.normal(size=(24, width)), np.arange(24) % 3, random.uniform(1, 2, 24)
    head = fit_head(features, labels, weights, strength := 0.01)
    centred = features - features.mean(axis=0)
    scale = np.sqrt(np.square(centred).sum(axis=1).mean())
    error = (head.probabilities(features) - np.eye(3)[labels]) * (weights / weights.sum())[:, None]
    np.testing.assert_allclose(centred.T @ error / scale + strength * head.kernel * scale, 0, atol=1e-4)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "size", "options", "expected"),
    [
        (None, None, {}, (None, None)),
        (None, 160, {}, (None, (160, 160, 3))),
        (None, 48, {}, ("fast", (48, 48, 3))),
        (None, None, {"epochs": 3}, ("fast", (32, 32, 3))),
        ("fast", None, {}, ("fast", (32, 32, 3))),
        (PHOTO, None, {"epochs": None}, (PHOTO, PHOTO_SHAPE)),
    ],
)
def test_options_that_photo_does_not_have_choose_another_network(arch, size, options, expected):
    """`train --epochs 3` means what it meant before there was `photo`."""
    choice = choose_network(arch, size, options)
    assert (choice.arch, choice.image_shape) == expected


def test_photo_refuses_options_that_it_would_ignore():
    """An option that has no effect is worse than an error."""
    options = {"epochs": 3, "init_from": "runs/a", "teacher": ("runs/large",)}
    for refuse in (lambda: TrainConfig(arch=PHOTO, **options), lambda: choose_network(PHOTO, None, options)):
        with pytest.raises(BadParameter, match=r"has no --epochs, --init-from, --teacher\. Use --arch fast"):
            refuse()


@pytest.mark.parametrize(("side", "few"), [(30, False), (60, True)])
def test_pictures_larger_than_cifars_get_the_input_of_photo(tmp_path, side, few):
    """Small pictures keep the small network, which is made for them."""
    random = np.random.default_rng(0)
    for kind in KINDS:
        for number in range(3):
            put(tmp_path / kind / f"{number}.png", shape(kind, random).resize((side, side)))
    dataset = load_dataset(str(tmp_path), Settings(), image_shape=None)
    assert dataset.contents.few_photographs is few
    assert dataset.image_shape == (PHOTO_SHAPE if few else (32, 32, 3))


def test_a_validation_part_is_held_out_in_place_of_cross_validation(tmp_path):
    """Whoever set pictures apart wants to know the accuracy on those."""
    images, labels = shapes(each=8)
    validation = np.flatnonzero(np.arange(24) % 4 == 0)
    dataset = Dataset("shapes", KINDS, images, labels, images[:0], labels[:0], validation)
    train(TrainConfig(arch=PHOTO), dataset, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["fitted_images"], metrics["validation_images"]) == (18, 6)
    assert metrics["cross_validation_parts"] == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_folder_of_few_pictures_is_trained_exported_measured_and_served(tmp_path):
    """A run of `photo` is a run like any other, for every command."""
    folder, run = shapes_folder(tmp_path / "shapes", train=20, test=5), tmp_path / "run"
    names = {"CIFAR_REGISTRY": str(tmp_path / "registry"), "CIFAR_MODEL_NAME": "shapes"}

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        result = cli.cifar(*arguments, **names)
        assert result.returncode == 0, result.stderr
        return result

    trained = command("train", "--data", folder, "--out", run)
    assert "A small number of photographs" in trained.stderr
    assert "each is held out once" in trained.stderr
    assert "cross-validation in 5 parts: with 60 pictures" in trained.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["validation_images"] == 60
    assert metrics["test_accuracy"] > 0.8, "chance is a third"
    keras.saving.load_model(run / "model.keras", safe_mode=True)
    command("export", run)
    manifest = Registry(Path(names["CIFAR_REGISTRY"]), "shapes").get(1).manifest
    assert manifest.confidence is not None
    assert manifest.confidence.held_out_images == manifest.reference.images == 60
    command("evaluate", "--data", folder, "--out", tmp_path / "report")
    command("card", tmp_path / "report")
    command("inspect", tmp_path / "registry" / "shapes" / "1")
    picture = encoded(shape("star", np.random.default_rng(9)))
    with running(tmp_path, workers=1, **names) as server:
        answer = httpx2.post(f"{server.address}/predict", files={"image": picture}).json()
        assert answer["labels"] == list(KINDS)
        assert answer["in_distribution"] is not None
        explained = httpx2.post(f"{server.address}/explain", files={"image": picture}, timeout=300)
        assert explained.status_code == 200, explained.text
