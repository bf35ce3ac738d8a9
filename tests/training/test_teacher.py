"""Distillation: `train --teacher`."""

from __future__ import annotations

import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from support.runs import colours, config, equal_weights

from cifar.errors import TrainingError
from cifar.training.network.architectures import build_model
from cifar.training.run.calibration import calibrated, read_confidence
from cifar.training.run.config import TrainingPlan
from cifar.training.run.devices import Devices
from cifar.training.run.loader import make_epoch
from cifar.training.run.run_folder import MODEL
from cifar.training.run.train import train


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An untrained network for the classes of `colours`, as a file that is no run."""
    path = tmp_path_factory.mktemp("teacher") / "untrained.keras"
    build_model("tutorial", 3).save(path)
    return path


def test_the_targets_are_the_mean_calibrated_answers_to_the_changed_images_and_a_tenth_of_the_label(whole, file):
    """A teacher's answer to the unchanged image would be wrong for one that was shifted, darkened or cut."""
    run = whole("tutorial")
    settings = {"arch": "tutorial", "photo_views": 0.5, "seed": 5, "epochs": 1}
    labelled, taught = (
        TrainingPlan.make(config(**settings, teacher=teacher), colours(), Devices())
        for teacher in ((), (str(run), str(file)))
    )
    (images, labels), (same, targets) = (make_epoch(plan, 1, few_steps=False).pairs for plan in (labelled, taught))
    np.testing.assert_array_equal(images, same)
    answers = keras.saving.load_model(run / MODEL).predict(images, verbose=0)
    if confidence := read_confidence(run):
        answers = np.asarray(calibrated(answers, confidence.temperature))
    mean = (answers + keras.saving.load_model(file).predict(images, verbose=0)) / 2
    np.testing.assert_allclose(targets, 0.9 * mean + 0.1 * labels, atol=1e-5)


@pytest.mark.slow
def test_a_network_learns_from_its_teacher_also_if_resumed_and_only_from_the_same_one(tmp_path, whole):
    """The labels here are worthless, so what it knows came from the teacher; a resumed run has the same weights to the last bit."""
    teacher = tmp_path / "teacher"
    shutil.copytree(whole("tutorial"), teacher)
    data = colours()
    wrong = replace(data, train_labels=np.random.default_rng(0).permutation(data.train_labels))
    settings = config("tutorial", teacher=(str(teacher),), epochs=3)

    def stop(_):
        raise KeyboardInterrupt

    train(settings, wrong, tmp_path / "student")
    with pytest.raises(KeyboardInterrupt):
        train(settings, wrong, tmp_path / "stopped", on_epoch=stop)
    train(settings, wrong, tmp_path / "stopped", resume=True)
    assert equal_weights(tmp_path / "stopped", tmp_path / "student")
    student = keras.saving.load_model(tmp_path / "student" / MODEL)
    right = student.predict(data.test_images, verbose=0).argmax(1) == data.test_labels
    assert right.mean() > 0.9

    (tmp_path / "stopped" / "metrics.json").unlink()
    build_model("tutorial", 3).save(teacher / MODEL)
    with pytest.raises(TrainingError, match="the teachers' files was"):
        train(settings, wrong, tmp_path / "stopped", resume=True)


@pytest.mark.parametrize(
    ("teacher", "data", "words"),
    [
        ("run", colours(60, classes=2), r"has other classes \(a, b, c\) than the data \(a, b\)"),
        ("file", colours(60, classes=2), r"has other classes \(3 outputs\) than the data \(a, b\)"),
        ("file", colours(60, size=40), r"takes images of \(32, 32, 3\); those of this run have \(40, 40, 3\)"),
        (
            "run",
            colours(),
            r"was trained on images that this run holds out: it had --seed 5 and --validation-split 0\.2",
        ),
        ("gone", colours(60), "gone: No such file or directory. Name a finished run or a .keras file"),
        (
            "no_model",
            colours(60),
            "No model could be loaded from .* Name a finished run or a .keras file with --teacher",
        ),
    ],
)
def test_a_teacher_of_other_classes_sizes_or_held_out_images_is_refused_before_the_run_has_a_folder(
    teacher, data, words, tmp_path, whole, file
):
    """Its answers would be about something else; or the held-out images, which fit the confidence, would not be new."""
    (tmp_path / "no_model").write_bytes(b"text")
    source = {"run": whole("tutorial"), "file": file}.get(teacher, tmp_path / teacher)
    with pytest.raises(TrainingError, match=words):
        train(config("tutorial", teacher=(str(source),)), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
