"""Class weights: classes of different sizes count the same in training."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from support.runs import QUICK, colours

from cifar.errors import TrainingError
from cifar.training.data.dataset import Dataset
from cifar.training.network.losses import WeightedCrossentropy
from cifar.training.run.config import TrainConfig, TrainingPlan
from cifar.training.run.devices import Devices
from cifar.training.run.run_folder import check_folder
from cifar.training.run.train import train


@pytest.fixture(scope="module")
def uneven() -> Dataset:
    """48 red images, 8 green ones and 4 blue ones."""
    whole = colours(240)
    chosen = np.concatenate(
        [np.flatnonzero(whole.train_labels == label)[:count] for label, count in enumerate((48, 8, 4))]
    )
    images, labels = whole.train_images[chosen], whole.train_labels[chosen]
    return Dataset("uneven", whole.class_names, images, labels, whole.test_images, whole.test_labels)


def test_the_weights_are_in_inverse_proportion_to_the_number_of_images(uneven):
    """Together, the images of each class weigh the same, and the mean weight is 1, so that the learning rate fits."""
    plan = TrainingPlan.make(TrainConfig(class_weights=True, validation_split=0.25), uneven, Devices())
    counts = np.bincount(uneven.train_labels[plan.fit])
    assert counts.tolist() == [36, 6, 3]
    np.testing.assert_allclose(plan.class_weights * counts, 15)


def test_the_loss_of_each_image_is_multiplied_by_the_weight_of_its_class():
    """Label smoothing is applied before the weight, or the smoothed share would count with the weight of other classes."""
    labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    answers = np.float32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    plain = keras.losses.CategoricalCrossentropy(label_smoothing=0.2, reduction="none")(labels, answers)
    weighted = WeightedCrossentropy([0.5, 1.0, 4.0], label_smoothing=0.2, reduction="none")(labels, answers)
    np.testing.assert_allclose(np.asarray(weighted), np.asarray(plain) * [0.5, 1.0, 4.0, 4.0], rtol=1e-6)


@pytest.mark.slow
def test_a_run_records_the_weights_and_reports_the_balanced_accuracy(tmp_path, uneven, capsys):
    """Accuracy alone hides that a small class is never predicted."""
    config = TrainConfig(**{**QUICK.__dict__, "class_weights": True, "validation_split": 0.25})
    train(config, uneven, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    per_class = [entry["accuracy"] for entry in metrics["test"]["per_class"].values()]
    assert metrics["test_balanced_accuracy"] == pytest.approx(np.mean(per_class), abs=1e-4)
    assert 0 <= metrics["validation_balanced_accuracy"] <= 1
    assert "The balanced accuracy is the mean over the classes." in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["class_weights"] is True


def test_a_run_of_before_there_were_class_weights_can_be_resumed_without_them(tmp_path):
    """Its config.json has no such setting, which means that it was off."""
    before = {
        "config": {"seed": 0},
        "data": {"train_images": 3, "fingerprint": "f"},
        "class_names": [],
        "image_shape": [],
    }
    (tmp_path / "config.json").write_text(json.dumps(before))
    now = {**before, "data": {**before["data"], "teachers": []}}
    check_folder(tmp_path, {**now, "config": {"seed": 0, "class_weights": False}}, resume=True)
    with pytest.raises(TrainingError, match="--class-weights was False, is True"):
        check_folder(tmp_path, {**now, "config": {"seed": 0, "class_weights": True}}, resume=True)
