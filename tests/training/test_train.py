"""`cifar.training.run.train`: the whole loop, on a few images, with both networks."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from support.runs import EPOCHS, QUICK, both, colours, config, equal_weights, rows

from cifar.errors import BadParameter, DataError, TrainingError
from cifar.training.data.dataset import Dataset
from cifar.training.network.architectures import build_model
from cifar.training.run import schedule as pace
from cifar.training.run.config import TrainConfig
from cifar.training.run.run_folder import HISTORY, read_history, write_history
from cifar.training.run.train import train


def test_the_tutorials_network_has_its_parameters_and_scales_pixels_itself():
    """122,570 parameters; black and white become 0 and 1 inside the graph."""
    model = build_model("tutorial", 10)
    assert model.count_params() == 122_570
    scaled = model.get_layer("to_unit_range")(np.array([0.0, 255.0], np.float32))
    np.testing.assert_allclose(scaled, [0, 1])


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
        ({"validation_split": 1.0}, "a share between 0 and 1"),
        ({"arch": "resnet"}, "there are: fast, tutorial"),
        ({"epochs": 3, "time_budget": 60.0}, "epochs or a time budget, not both"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(wrong, words):
    """The sentence has the setting's name and what came."""
    with pytest.raises(BadParameter, match=words):
        TrainConfig(**wrong)


@both
def test_training_lowers_the_loss_and_writes_a_whole_run(whole, arch):
    """The loss falls, the colours are told apart, every promised file is there, and nothing else."""
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


@both
def test_the_result_is_loaded_by_keras_alone_and_answers_as_it_was_measured(whole, arch, tmp_path):
    """Whoever gets `model.keras` needs nothing of this project: plain layers, in float32."""
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
        [sys.executable, "-I", "-c", code, whole(arch) / "model.keras", tmp_path / "images.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads((whole(arch) / "metrics.json").read_text())["test_accuracy"]
    assert json.loads(result.stdout.splitlines()[-1]) == [
        pytest.approx(measured, abs=1e-4),
        ["keras"],
        "float32",
        False,
    ]


@both
def test_tensorboard_reads_what_was_logged(whole, arch):
    """Loss and accuracy of each epoch, for training and validation."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    history = rows(whole(arch))
    events = EventMultiplexer({}).AddRunsFromDirectory(str(whole(arch) / "tensorboard")).Reload()
    for part, prefix in (("train", ""), ("validation", "val_")):
        for name in ("loss", "accuracy"):
            logged = {
                each.step: float(make_ndarray(each.tensor_proto)) for each in events.Tensors(part, f"epoch_{name}")
            }
            np.testing.assert_allclose([logged[step] for step in sorted(logged)], history[prefix + name], rtol=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, whole):
    """A run can be repeated."""
    train(config("tutorial", seed=5), colours(), tmp_path / "again")
    assert equal_weights(tmp_path / "again", whole("tutorial"))
    train(config("tutorial", seed=6), colours(), tmp_path / "other")
    assert not equal_weights(tmp_path / "other", whole("tutorial"))


class Clock:
    """A clock that goes on by a tenth of a second whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.1
        return self.now


@pytest.mark.slow
@both
def test_a_time_budget_ends_a_run_annealed_and_in_time(tmp_path, monkeypatch, arch):
    """By its own clock: the rows' seconds fit the budget, most of it is used, and the learning rate has arrived."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    monkeypatch.setattr(pace, "time", Clock())
    train(config(arch, epochs=None, time_budget=60.0), colours(120), tmp_path / "run")
    spent = rows(tmp_path / "run")["seconds"].sum()
    assert 50 < spent <= 60
    events = EventMultiplexer({}).AddRunsFromDirectory(str(tmp_path / "run" / "tensorboard")).Reload()
    rates = [float(make_ndarray(each.tensor_proto)) for each in events.Tensors("train", "epoch_learning_rate")]
    if arch == "fast":
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.05 * 0.24
    else:
        np.testing.assert_allclose(rates, 1e-3, rtol=1e-5)


def test_the_rows_hold_all_the_time_that_a_run_has_spent(tmp_path, monkeypatch):
    """A resumed run begins with their sum: what writing each epoch took would be given once more."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)

    def write_slowly(_: object) -> None:
        clock.now += 5

    train(config("tutorial", epochs=3), colours(60), tmp_path / "run", on_epoch=write_slowly)
    assert rows(tmp_path / "run")["seconds"].sum() == pytest.approx(
        clock.now - 5, abs=0.5
    )  # the last writing is in no row


def test_a_history_that_is_gone_on_with_keeps_its_rows_as_they_were(short, tmp_path):
    """Epochs and steps are whole numbers: not `1` before the interruption and `1.0` after it."""
    write_history(tmp_path, read_history(short))
    assert (tmp_path / HISTORY).read_bytes() == (short / HISTORY).read_bytes()


@pytest.mark.slow
def test_a_time_budget_of_few_steps_makes_more_of_them(tmp_path, monkeypatch):
    """Where the time allows one pass, smaller batches learn more in it; who names a batch size gets it."""
    monkeypatch.setattr(pace, "time", Clock())
    dataset = colours()
    steps = {}
    for name, batch_size in (("left to the recipe", None), ("named", 32)):
        train(config("fast", epochs=None, time_budget=40.0, batch_size=batch_size), dataset, tmp_path / name)
        steps[name] = rows(tmp_path / name)["steps"][0]
    fitted = 240 * 0.8
    assert steps["named"] == fitted // 32
    assert steps["left to the recipe"] == fitted // 8


@pytest.mark.slow
def test_a_target_accuracy_stops_early_with_a_finished_run(tmp_path):
    """Colours are learned in an epoch or two; the other ninety-eight are not trained."""
    train(config("tutorial", epochs=100, target_accuracy=0.9), colours(), tmp_path / "run")
    history = rows(tmp_path / "run")
    assert len(history) < 50
    assert history["val_accuracy"][-1] >= 0.9
    assert (history["val_accuracy"][:-1] < 0.9).all()
    assert not (tmp_path / "run" / "checkpoint.keras").exists()


@pytest.mark.parametrize("content", ["folder", "file"])
def test_a_folder_that_exists_is_not_overwritten(tmp_path, content):
    """Somebody's run is worth more than a typing error."""
    run = tmp_path / "run"
    if content == "folder":
        run.mkdir()
        (run / "notes.txt").write_text("mine")
        words = r"run exists. Choose another --out, or go on with it: --resume"
    else:
        run.write_text("mine")
        words = "run is a file; name a folder with --out"
    with pytest.raises(TrainingError, match=words):
        train(QUICK, colours(), run)


def test_what_cannot_start_leaves_no_folder_behind(tmp_path):
    """A class with one image, pictures too small, nothing to start from: mend it, and the same command works."""
    dataset = colours(31)
    labels = dataset.train_labels.copy()
    labels[labels == 1] = 0
    labels[4] = 1
    lonely = Dataset("lonely", dataset.class_names, dataset.train_images, labels, dataset.test_images, labels[:30])
    with pytest.raises(DataError, match="Class b has one training image; two are needed"):
        train(QUICK, lonely, tmp_path / "run")
    with pytest.raises(BadParameter, match="cannot take pictures"):
        train(QUICK, colours(60, size=8), tmp_path / "run")
    with pytest.raises(TrainingError, match="nothing to start from"):
        train(config("tutorial", init_from=str(tmp_path / "gone")), colours(60), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """A run of one epoch on 60 images."""
    run = tmp_path_factory.mktemp("short") / "run"
    train(QUICK, colours(60), run)
    return run


def test_resuming_with_other_settings_or_data_says_which_differ(short):
    """The sentence names each difference, old and new; a data set that changed between runs is one."""
    with pytest.raises(
        TrainingError,
        match="--epochs was 1, is 2; --seed was 0, is 9; data train_images was 60, is 90; data fingerprint",
    ) as caught:
        train(config("tutorial", epochs=2, seed=9, validation_split=0.05), colours(90), short, resume=True)
    assert "--batch-size" not in str(caught.value)
    changed = colours(60)
    changed.train_images[7, 3, 3, 0] ^= 1
    with pytest.raises(
        TrainingError, match=r"other settings: data fingerprint was [0-9a-f]{64}, is [0-9a-f]{64}\. Rep"
    ):
        train(QUICK, changed, short, resume=True)


def test_resuming_what_is_no_run_says_so(tmp_path):
    """Somebody's other files are not written among."""
    (tmp_path / "letter.txt").touch()
    with pytest.raises(TrainingError, match=r"is no run: it has no config\.json"):
        train(QUICK, colours(60), tmp_path, resume=True)


def test_resuming_where_nothing_is_begins_a_run(tmp_path):
    """So that a job that may be started again has one command."""
    train(QUICK, colours(60), tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1


def test_resuming_a_finished_run_changes_nothing(short):
    """Asking twice is harmless; asking for an .h5 file then gives one."""

    def files():
        return {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}

    before = files()
    train(QUICK, colours(60), short, resume=True)
    assert files() == before
    train(QUICK, colours(60), short, resume=True, h5=True)
    assert (short / "model.h5").exists()


def test_progress_names_epoch_accuracy_and_time_left(tmp_path, capfd):
    """A line for each epoch, on stderr; whoever asked gets the rows too."""
    seen = []
    train(config("tutorial"), colours(60), tmp_path / "run", on_epoch=lambda history: seen.append(len(history)))
    captured = capfd.readouterr()
    assert [line.split(":")[0] for line in captured.err.splitlines() if line.startswith("epoch")] == [
        "epoch 1",
        "epoch 2",
        "epoch 3",
    ]
    assert "validation accuracy" in captured.err
    assert captured.out == ""
    assert seen == [1, 2, 3]


def test_the_bar_names_the_time_left():
    """At the run's own pace; by the clock when there is a budget."""
    by_steps = pace.LearningRateSchedule(steps=100, seconds=None, learning_rate=1, anneal=True, spent_seconds=30)
    assert by_steps.seconds_left(25) == pytest.approx(90, abs=1)
    assert by_steps.seconds_left(0) == 0, "nothing is known yet"
    by_clock = pace.LearningRateSchedule(steps=1, seconds=100, learning_rate=1, anneal=True, spent_seconds=30)
    assert by_clock.seconds_left(0) == pytest.approx(70, abs=1)


def test_the_processor_decides_what_convolutions_compute_in(monkeypatch):
    """bfloat16 where there is a unit for it, unless somebody says otherwise."""
    from cifar.training.run import context as module

    for unit in (True, False):
        monkeypatch.setattr(module, "computes_bfloat16", lambda unit=unit: unit)
        assert module._wants_bfloat16(TrainConfig()) is unit
        assert module._wants_bfloat16(TrainConfig(precision="bfloat16"))
        assert not module._wants_bfloat16(TrainConfig(precision="float32"))


@pytest.mark.slow
def test_two_pictures_of_each_class_are_enough_to_begin(tmp_path):
    """A first try with a handful must not end in a traceback."""
    train(TrainConfig(epochs=1, batch_size=2), colours(6), tmp_path / "run")
    assert (tmp_path / "run" / "model.keras").is_file()
