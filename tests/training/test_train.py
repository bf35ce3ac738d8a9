"""`cifar.training.run.train`: the whole training loop, on a few images, with both architectures."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from support.runs import EPOCHS, QUICK, both, colours, config, equal_weights, rows

from cifar.errors import BadParameter, DataError, TrainingError
from cifar.training.data.dataset import Dataset
from cifar.training.run.config import TrainConfig, TrainingPlan, choose_precision
from cifar.training.run.devices import Devices
from cifar.training.run.run_folder import HISTORY, read_history, write_history
from cifar.training.run.schedule import LearningRateSchedule
from cifar.training.run.train import make_schedule, train


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "epochs must be positive; got 0"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"time_budget": 0.0}, "time_budget must be positive"),
        ({"time_budget": float("inf")}, "time_budget must be positive"),
        ({"target_accuracy": 90.0}, "a share, such as 0.9; got 90"),
        ({"photo_views": 1.5}, "a share, such as 0.5; got 1.5"),
        ({"validation_split": 1.0}, "a share between 0 and 1"),
        ({"arch": "resnet"}, "there are: fast, deep, large, tutorial"),
        ({"epochs": 3, "time_budget": 60.0}, "Set epochs or a time budget, not both"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(wrong, words):
    """The message has the name of the setting and its value."""
    with pytest.raises(BadParameter, match=words):
        TrainConfig(**wrong)


@both
def test_training_lowers_the_loss_and_writes_a_complete_run(whole, arch):
    """The loss falls, the colours are recognised, and the folder has all the documented files and no others."""
    run = whole(arch)
    history = rows(run)
    assert history["loss"][-1] < history["loss"][0]
    assert history["epoch"].tolist() == list(range(1, EPOCHS[arch] + 1))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test"]["images"] == metrics["test_images"] == 30
    assert [row["epoch"] for row in metrics["history"]] == history["epoch"].tolist()
    assert 0 <= metrics["data_wait_share"] < 1
    assert {path.name for path in run.iterdir()} == {
        "confidence.npz",
        "config.json",
        "curves.png",
        "history.csv",
        "metrics.json",
        "model.h5",
        "model.keras",
        "reference.json",
        "samples.npz",
        "tensorboard",
    }
    images = colours().test_images
    of_h5 = keras.saving.load_model(run / "model.h5", compile=False)
    of_keras = keras.saving.load_model(run / "model.keras")
    np.testing.assert_allclose(of_h5(images, training=False), of_keras(images, training=False), atol=1e-6)


def test_the_result_can_be_loaded_by_keras_alone_and_has_the_measured_accuracy(whole, tmp_path):
    """`model.keras` has only layers of Keras, in float32, so it can be used without this package."""
    np.savez(tmp_path / "images.npz", images=colours().test_images, labels=colours().test_labels)
    code = """
import json, sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
test = np.load(sys.argv[2])
answers = model.predict(test["images"], verbose=0)
modules = sorted({type(layer).__module__.split(".")[0] for layer in model.layers})
print(json.dumps([float((answers.argmax(1) == test["labels"]).mean()), modules, str(answers.dtype), "cifar" in sys.modules]))
"""
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, whole("fast") / "model.keras", tmp_path / "images.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads((whole("fast") / "metrics.json").read_text())["test_accuracy"]
    accuracy, *others = json.loads(result.stdout.splitlines()[-1])
    assert accuracy == pytest.approx(measured, abs=1e-4)
    assert others == [["keras"], "float32", False]


def logged(run, part: str, name: str) -> list[float]:
    """Return the values of a metric that TensorBoard reads from a run, in the order of the epochs."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    events = EventMultiplexer({}).AddRunsFromDirectory(str(run / "tensorboard")).Reload().Tensors(part, name)
    return [float(make_ndarray(event.tensor_proto)) for event in sorted(events, key=lambda event: event.step)]


def test_tensorboard_can_read_the_logged_metrics(whole):
    """Loss and accuracy of each epoch are logged for training and validation, with the values of the history."""
    history = rows(whole("fast"))
    for part, prefix in (("train", ""), ("validation", "val_")):
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(logged(whole("fast"), part, f"epoch_{name}"), history[prefix + name], rtol=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others(tmp_path, whole):
    """A run can be repeated exactly."""
    train(config("tutorial", seed=5), colours(), tmp_path / "again")
    assert equal_weights(tmp_path / "again", whole("tutorial"))
    train(config("tutorial", seed=6), colours(), tmp_path / "other")
    assert not equal_weights(tmp_path / "other", whole("tutorial"))


@pytest.mark.slow
@both
def test_a_time_budget_ends_a_run_in_time_with_a_learning_rate_near_zero(tmp_path, clock, arch):
    """The epochs use most of the budget and no more. Where the recipe lowers the learning rate, it ends near zero."""
    clock.step = 0.3
    train(config(arch, epochs=None, time_budget=60.0), colours(120), tmp_path / "run")
    spent = rows(tmp_path / "run")["seconds"].sum()
    assert 50 < spent <= 60
    rates = logged(tmp_path / "run", "train", "epoch_learning_rate")
    if arch == "fast":
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.05 * 0.24
    else:
        np.testing.assert_allclose(rates, 1e-3, rtol=1e-5)


@pytest.mark.slow
def test_the_history_counts_all_the_time_that_a_run_has_spent(tmp_path, clock):
    """A resumed run starts from the sum of the rows, so the time for writing results must be in them."""
    clock.step = 0.1
    began = clock.now

    def write_slowly(_: object) -> None:
        clock.now += 5

    train(config("tutorial", epochs=3), colours(60), tmp_path / "run", on_epoch=write_slowly)
    until_last_write = clock.now - began - 5  # no row follows it
    assert rows(tmp_path / "run")["seconds"].sum() == pytest.approx(until_last_write, abs=0.5)


def test_a_history_that_is_read_and_written_again_does_not_change(short, tmp_path):
    """Epochs and steps stay integers: a resumed run must not turn `1` into `1.0`."""
    write_history(tmp_path, read_history(short))
    assert (tmp_path / HISTORY).read_bytes() == (short / HISTORY).read_bytes()


def test_a_time_budget_that_reading_has_used_up_is_refused_before_anything_is_written(tmp_path):
    """The budget counts from the start of the command: an empty run helps nobody."""
    began = time.monotonic() - 100
    with pytest.raises(TrainingError, match="took 100 s, and the time budget is 90 s"):
        train(config("fast", epochs=None, time_budget=90.0), colours(60), tmp_path / "run", began=began)
    assert not (tmp_path / "run").exists()


def test_reading_the_data_counts_in_a_time_budget():
    """Training gets what is left of it."""
    plan = TrainingPlan.make(config("fast", epochs=None, time_budget=90.0), colours(60), Devices())
    assert make_schedule(plan, [], lost_seconds=60.0).seconds_left(0) == pytest.approx(30, abs=1)


class EndOfTest(Exception):
    """Ends a training whose further epochs do not matter."""


@pytest.mark.slow
def test_a_time_budget_that_allows_few_steps_uses_smaller_batches(tmp_path, clock):
    """If the time allows one pass only, more and smaller steps learn more. A batch size that the user sets is kept."""
    clock.step = 0.1
    steps = {}
    for name, batch_size in (("default", None), ("chosen", 32)):

        def stop_after_one_epoch(history, name=name):
            steps[name] = history[0]["steps"]
            raise EndOfTest

        few = config("fast", epochs=None, time_budget=40.0, batch_size=batch_size)
        with pytest.raises(EndOfTest):
            train(few, colours(120), tmp_path / name, on_epoch=stop_after_one_epoch)
    fitted = 120 * 0.8
    assert steps["chosen"] == fitted // 32
    assert steps["default"] == fitted // 8


@pytest.mark.slow
def test_training_stops_at_the_target_accuracy_with_a_finished_run(tmp_path):
    """Colours are learned in one or two epochs; the other epochs are not trained."""
    train(config("tutorial", epochs=100, target_accuracy=0.9), colours(), tmp_path / "run")
    history = rows(tmp_path / "run")
    assert len(history) < 50
    assert history["val_accuracy"][-1] >= 0.9
    assert (history["val_accuracy"][:-1] < 0.9).all()
    assert not (tmp_path / "run" / "checkpoint.keras").exists()


@pytest.mark.parametrize(
    ("file", "resume", "words"),
    [
        ("run/notes.txt", False, r"run exists\. Choose another --out, or continue the run with --resume"),
        ("run/notes.txt", True, r"is not a run: it has no config\.json"),
        ("run", False, "run is a file; name a folder with --out"),
    ],
)
def test_an_existing_folder_or_file_is_not_overwritten(tmp_path, file, resume, words):
    """A mistyped --out must not destroy another run, nor write a run among unrelated files."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(TrainingError, match=words):
        train(QUICK, colours(), tmp_path / "run", resume=resume)


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    """After an error in the data or in --init-from, the corrected command works without --resume."""
    dataset = colours(31)
    labels = dataset.train_labels.copy()
    labels[labels == 1] = 0
    labels[4] = 1
    lonely = Dataset("lonely", dataset.class_names, dataset.train_images, labels, dataset.test_images, labels[:30])
    with pytest.raises(DataError, match="Class b has one training image; at least two are needed"):
        train(QUICK, lonely, tmp_path / "run")
    with pytest.raises(BadParameter, match="cannot take images"):
        train(QUICK, colours(60, size=8), tmp_path / "run")
    with pytest.raises(TrainingError, match="No model could be loaded from"):
        train(config("tutorial", init_from=str(tmp_path / "gone")), colours(60), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """A run of one epoch on 60 images."""
    run = tmp_path_factory.mktemp("short") / "run"
    train(QUICK, colours(60), run)
    return run


def test_resuming_with_other_settings_or_data_names_the_differences(short):
    """The message gives the old and the new value of each difference, including a changed data set."""
    with pytest.raises(
        TrainingError,
        match="--epochs was 1, is 2; --seed was 0, is 9; data train_images was 60, is 90; data fingerprint",
    ) as caught:
        train(config("tutorial", epochs=2, seed=9, validation_split=0.05), colours(90), short, resume=True)
    assert "--batch-size" not in str(caught.value)
    changed = colours(60)
    changed.train_images[7, 3, 3, 0] ^= 1
    with pytest.raises(
        TrainingError, match=r"other settings: data fingerprint was [0-9a-f]{64}, is [0-9a-f]{64}\. Use the same"
    ):
        train(QUICK, changed, short, resume=True)


def test_resuming_in_a_new_folder_begins_a_run(tmp_path):
    """A job that may be restarted can use one command with --resume."""
    train(QUICK, colours(60), tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1


def test_resuming_a_finished_run_changes_nothing(short):
    """Repeating the command is harmless; with h5 it adds the missing .h5 file."""

    def files():
        return {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}

    before = files()
    train(QUICK, colours(60), short, resume=True)
    assert files() == before
    train(QUICK, colours(60), short, resume=True, h5=True)
    assert (short / "model.h5").exists()


@pytest.mark.slow
def test_progress_shows_each_epoch_and_its_accuracy(tmp_path, capfd):
    """One line per epoch is written to stderr, and `on_epoch` gets the rows."""
    seen = []
    train(config("tutorial"), colours(60), tmp_path / "run", on_epoch=lambda history: seen.append(len(history)))
    out, err = capfd.readouterr()
    lines = [line.split(":")[0] for line in err.splitlines() if line.startswith("epoch")]
    assert lines == ["epoch 1", "epoch 2", "epoch 3"]
    assert "validation accuracy" in err
    assert out == ""
    assert seen == [1, 2, 3]


def test_the_remaining_time_is_estimated_from_steps_or_from_the_budget():
    """Without a budget the speed so far is extrapolated; with one the clock decides."""
    by_steps = LearningRateSchedule(steps=100, seconds=None, learning_rate=1, anneal=True, spent_seconds=30)
    assert by_steps.seconds_left(25) == pytest.approx(90, abs=1)
    assert by_steps.seconds_left(0) == 0, "before the first step nothing is known"
    by_clock = LearningRateSchedule(steps=1, seconds=100, learning_rate=1, anneal=True, spent_seconds=30)
    assert by_clock.seconds_left(0) == pytest.approx(70, abs=1)


def test_convolutions_use_bfloat16_if_the_processor_supports_it(monkeypatch):
    """The setting `precision` overrides the choice."""
    for supported, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("cifar.training.run.config.computes_bfloat16", lambda supported=supported: supported)
        assert choose_precision(TrainConfig()) == expected
        assert choose_precision(TrainConfig(precision="bfloat16")) == "bfloat16"
        assert choose_precision(TrainConfig(precision="float32")) == "float32"


@pytest.mark.slow
def test_two_images_per_class_are_enough_to_train(tmp_path):
    """A first try with a handful of images must not end in a traceback."""
    train(TrainConfig(epochs=1, batch_size=2), colours(6), tmp_path / "run")
    assert (tmp_path / "run" / "model.keras").is_file()
