"""Training that is interrupted, killed, diverges or runs out of disk space: complete epochs are kept, and runs can be resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import keras
import numpy as np
import pytest
from support.runs import QUICK, colours, colours_folder, config, equal_weights, rows, wait_for_first_epoch
from support.servers import start_with_ctrl_c

from cifar.cli.main import main
from cifar.errors import ExportError, TrainingError
from cifar.files import TEMPORARY_PREFIX
from cifar.settings import Settings
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.run.train import train

EPOCHS = 8


def interrupt(*_, **__):
    """Replaces a function during which the user presses Ctrl-C."""
    raise KeyboardInterrupt


class InterruptsEpochTwo(keras.callbacks.Callback):
    """Raises the exception of Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations > 18:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, whole):
    """Augmentation, order, dropout and optimizer state are the same, so the weights are equal to the last bit."""
    stopped = tmp_path / "stopped"
    fit = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *a, callbacks, **k: fit(self, *a, callbacks=[*callbacks, InterruptsEpochTwo()], **k),
    )
    with pytest.raises(KeyboardInterrupt):
        train(config("fast", seed=5), colours(), stopped)
    monkeypatch.undo()
    assert len(rows(stopped)) == 1
    assert read_source(stopped, Settings()).metrics["history"][-1]["epoch"] == 1, (
        "what has been learned can be exported"
    )
    train(config("fast", seed=5), colours(), stopped, resume=True)
    assert equal_weights(stopped, whole("fast"))
    assert len(rows(stopped)) == len(rows(whole("fast")))
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole("fast").iterdir()} - {"model.h5"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The images of `colours` as an image folder."""
    return colours_folder(tmp_path_factory.mktemp("colours"), 150)


def command(data, out, *more, epochs=EPOCHS) -> list[str]:
    """Return the arguments of a `train` command with short epochs."""
    options = ["--data", data, "--out", out, "--arch", "tutorial", "--epochs", epochs, "--batch-size", 16, *more]
    return ["train", *map(str, options)]


@contextmanager
def under_way(arguments: list[str], run):
    """Run the command in a process until its first epoch is complete; kill it at the end of the block."""
    process = start_with_ctrl_c([sys.executable, "-m", "cifar", *arguments])
    try:
        wait_for_first_epoch(process, run)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, folder):
    """A run of the command that was not interrupted."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(command(folder, run)) == 0
    return run


@pytest.mark.slow
def test_a_run_killed_at_any_moment_can_be_resumed(tmp_path, folder, uninterrupted):
    """SIGKILL leaves no half-written file. The resumed run has the weights of an uninterrupted one, and removes temporary files."""
    run = tmp_path / "killed"
    with under_way(command(folder, run), run) as process:
        os.kill(process.pid, signal.SIGKILL)
    assert not (run / "metrics.json").exists(), "the process was killed too late for this test"
    with pytest.raises(ExportError, match=r"is not a finished run.*--resume"):
        read_source(run, Settings())
    (run / f"{TEMPORARY_PREFIX}killed.keras").write_bytes(b"half of a checkpoint")
    assert main(command(folder, run, "--resume")) == 0
    assert equal_weights(run, uninterrupted)
    assert {path.name for path in run.iterdir()} == {path.name for path in uninterrupted.iterdir()}


@pytest.mark.slow
def test_after_ctrl_c_a_run_can_be_exported_and_resumed(tmp_path, folder, uninterrupted):
    """The command prints how to continue. The resumed run has the weights of an uninterrupted one."""
    run = tmp_path / "stopped"
    with under_way(command(folder, run), run) as process:
        os.kill(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert f"saved in {run}; to continue, add --resume to the same command" in stderr
    assert "Traceback" not in stderr
    assert len(rows(run)) < EPOCHS
    metrics = export(read_source(run, Settings()), tmp_path / "registry", "stopped").manifest.metrics
    assert metrics["history"][-1]["epoch"] == len(rows(run))
    assert main(command(folder, run, "--resume")) == 0
    assert equal_weights(run, uninterrupted)


@pytest.mark.slow
def test_a_loss_of_nan_ends_training_and_keeps_the_epochs_before_it(tmp_path, monkeypatch):
    """The message advises a smaller learning rate, and the earlier epochs can be exported."""
    fit = keras.Model.fit
    run = tmp_path / "run"

    def explode_in_epoch_three(self, *arguments, **options):
        if self.optimizer.iterations > 10:
            self.optimizer.learning_rate = 1e30
        return fit(self, *arguments, **options)

    monkeypatch.setattr(keras.Model, "fit", explode_in_epoch_three)
    with pytest.raises(
        TrainingError, match=r"in epoch 3; the run keeps the 2 epochs before it\..*--learning-rate than 0\.001"
    ):
        train(config("tutorial", epochs=5, batch_size=8), colours(60), run)
    monkeypatch.undo()
    for name in ("checkpoint.keras", "model.keras"):
        assert all(np.isfinite(each).all() for each in keras.saving.load_model(run / name).get_weights())
    assert len(rows(run)) == 2
    assert export(read_source(run, Settings()), tmp_path / "registry", "kept").manifest.version == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte. Only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_kilobytes", [2, 200, 850])
def test_a_full_disk_gives_an_error_message_and_no_half_written_file(
    tmp_path, small_disk, folder, free_kilobytes, capsys
):
    """This holds for each file that may be the first without space. With free space the run can be resumed."""
    run = small_disk / "run"
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(free - free_kilobytes * 1024))
    assert main(command(folder, run, epochs=2)) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert "No space left on device" in printed.err
    assert printed.out == ""
    left = {path.name for path in run.iterdir()} if run.exists() else set()
    assert not {name for name in left if name.startswith(".")}
    assert "metrics.json" not in left
    for name in {"checkpoint.keras", "model.keras"} & left:
        keras.saving.load_model(run / name)
    shutil.copytree(small_disk, tmp_path / "roomy", ignore=shutil.ignore_patterns("ballast"))
    more = ["--resume"] if left else []
    assert main(command(folder, tmp_path / "roomy" / "run", *more, epochs=2)) == 0
    assert len(rows(tmp_path / "roomy" / "run")) == 2


@pytest.mark.slow
def test_a_run_that_reached_its_target_trains_no_further_when_it_is_resumed(tmp_path, monkeypatch):
    """If it was interrupted before the results were written, only the results are missing."""
    aim = config("tutorial", epochs=5, target_accuracy=0.01)
    monkeypatch.setattr("cifar.training.run.train.finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(aim, colours(60), tmp_path / "run")
    monkeypatch.undo()
    assert len(rows(tmp_path / "run")) == 1
    train(aim, colours(60), tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_run_interrupted_in_its_first_epoch_can_begin_again(tmp_path, monkeypatch, capsys):
    """There is nothing to export yet, and the command must not claim that an epoch was saved."""
    monkeypatch.setattr("cifar.training.run.train.save_model", interrupt)
    monkeypatch.setattr("cifar.training.data.dataset.load_dataset", lambda *_, **__: colours(60))
    assert main(["train", "--data", "x", "--out", str(tmp_path / "stopped"), "--arch", "tutorial"]) == 1
    assert "No epoch was finished; to begin again, add --resume to the same command." in capsys.readouterr().err
    monkeypatch.setattr("cifar.training.run.train.write_history", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, colours(60), tmp_path / "run")
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "tensorboard"}
    train(QUICK, colours(60), tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1
