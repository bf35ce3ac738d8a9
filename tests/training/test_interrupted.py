"""Training that does not come to its end: stopped, killed, exploded, out of space. What was finished stays, and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import keras
import numpy as np
import pytest
from support.runs import QUICK, both, colours, colours_folder, config, equal_weights, rows
from support.servers import heeding_ctrl_c

from cifar.cli.main import main
from cifar.errors import ExportError, TrainingError
from cifar.settings import ROOT, Settings
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.run.train import train

EPOCHS = 8


class StopsInEpochTwo(keras.callbacks.Callback):
    """Presses Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations > 18:
            raise KeyboardInterrupt


@pytest.mark.slow
@both
def test_a_run_interrupted_and_resumed_equals_one_that_was_not(tmp_path, monkeypatch, whole, arch):
    """Same views in the same order, same dropout, same optimizer state: the same weights to the last bit."""
    stopped = tmp_path / "stopped"
    fit = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *a, callbacks, **k: fit(self, *a, callbacks=[*callbacks, StopsInEpochTwo()], **k),
    )
    with pytest.raises(KeyboardInterrupt):
        train(config(arch, seed=5), colours(), stopped)
    monkeypatch.undo()
    assert len(rows(stopped)) == 1
    exported = export(read_source(stopped, Settings()), tmp_path / "registry", "stopped")
    assert exported.manifest.metrics["history"][-1]["epoch"] == 1
    train(config(arch, seed=5), colours(), stopped, resume=True)
    assert equal_weights(stopped, whole(arch))
    assert len(rows(stopped)) == len(rows(whole(arch)))
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole(arch).iterdir()} - {"model.h5"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The colours as an image folder."""
    return colours_folder(tmp_path_factory.mktemp("colours"), 150)


def command(data, out, *more) -> list[str]:
    """`train`, in steps that are soon done."""
    options = ["--data", data, "--out", out, "--arch", "tutorial", "--epochs", EPOCHS, "--batch-size", 16, *more]
    return [sys.executable, "-m", "cifar", "train", *map(str, options)]


@contextmanager
def under_way(arguments: list[str], run):
    """The command, when its first epoch is done; ended in any case."""
    process = heeding_ctrl_c(arguments)
    try:
        deadline = time.monotonic() + 200
        while not (run / "checkpoint.keras").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, folder):
    """What the command gives when nobody disturbs it."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    subprocess.run(command(folder, run), cwd=ROOT, check=True, capture_output=True)
    return run


@pytest.mark.slow
def test_a_run_killed_at_any_moment_can_be_resumed(tmp_path, folder, uninterrupted):
    """SIGKILL leaves whole files only; resuming gives what an uninterrupted run gives."""
    run = tmp_path / "killed"
    with under_way(command(folder, run), run) as process:
        os.kill(process.pid, signal.SIGKILL)
    assert not (run / "metrics.json").exists(), "it was killed too late to show anything"
    with pytest.raises(ExportError, match=r"is not a finished run.*--resume"):
        read_source(run, Settings())
    subprocess.run(command(folder, run, "--resume"), cwd=ROOT, check=True, capture_output=True)
    assert equal_weights(run, uninterrupted)


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_export_takes_and_resume_goes_on_with(tmp_path, folder, uninterrupted):
    """The real command, the real signal: one sentence, a version, and in the end the same weights."""
    run = tmp_path / "stopped"
    with under_way(command(folder, run), run) as process:
        os.kill(process.pid, signal.SIGINT)
        words = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert f"kept in {run}; go on with the same command and --resume" in words
    assert "Traceback" not in words
    assert len(rows(run)) < EPOCHS
    assert export(read_source(run, Settings()), tmp_path / "registry", "stopped").manifest.version == 1
    subprocess.run(command(folder, run, "--resume"), cwd=ROOT, check=True, capture_output=True)
    assert equal_weights(run, uninterrupted)


@pytest.mark.slow
def test_a_loss_of_nan_stops_with_advice_and_keeps_the_last_good_epoch(tmp_path, monkeypatch):
    """A learning rate far too high is said to be one, and what was good can be exported."""
    fit = keras.Model.fit
    run = tmp_path / "run"

    def explode_in_epoch_three(self, *arguments, **options):
        if self.optimizer.iterations > 10:
            self.optimizer.learning_rate = 1e30
        return fit(self, *arguments, **options)

    monkeypatch.setattr(keras.Model, "fit", explode_in_epoch_three)
    with pytest.raises(
        TrainingError, match=r"in epoch 3; what the 2 before gave is kept in .*--learning-rate than 0.001"
    ):
        train(config("tutorial", epochs=5, batch_size=8), colours(60), run)
    monkeypatch.undo()
    for name in ("checkpoint.keras", "model.keras"):
        assert all(np.isfinite(each).all() for each in keras.saving.load_model(run / name).get_weights())
    assert len(rows(run)) == 2
    assert export(read_source(run, Settings()), tmp_path / "registry", "kept").manifest.version == 1


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of one megabyte; only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_kilobytes", [2, 200, 850])
def test_a_full_disk_gets_a_sentence_and_leaves_nothing_half_written(tmp_path, small_disk, folder, free_kilobytes):
    """Wherever it is full: no stack trace, whole files only, and with room again the run goes on."""
    run = small_disk / "run"
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(free - free_kilobytes * 1024))
    result = subprocess.run(command(folder, run), cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr, result.stderr
    assert "No space left on device" in result.stderr
    assert result.stdout == ""
    left = {path.name for path in run.iterdir()} if run.exists() else set()
    assert not {name for name in left if name.startswith(".")}
    assert "metrics.json" not in left
    for name in {"checkpoint.keras", "model.keras"} & left:
        keras.saving.load_model(run / name)
    shutil.copytree(small_disk, tmp_path / "roomy", ignore=shutil.ignore_patterns("ballast"))
    more = ["--resume"] if left else []
    again = command(folder, tmp_path / "roomy" / "run", *more)
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    assert len(rows(tmp_path / "roomy" / "run")) == EPOCHS


@pytest.mark.slow
def test_a_run_stopped_after_it_reached_its_target_trains_no_further(tmp_path, monkeypatch):
    """What is left to do is to write the result: resumed, it equals a run that was not stopped."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    aim = config("tutorial", epochs=5, target_accuracy=0.01)
    monkeypatch.setattr("cifar.training.run.train.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        train(aim, colours(60), tmp_path / "run")
    monkeypatch.undo()
    assert len(rows(tmp_path / "run")) == 1
    train(aim, colours(60), tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_stop_before_the_first_epoch_leaves_a_run_that_can_begin_again(tmp_path, monkeypatch, capsys):
    """There is nothing to export yet, nothing in the way, and nobody is told that something was kept."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cifar.training.run.train.save_model", stop)
    monkeypatch.setattr("cifar.training.data.dataset.load_dataset", lambda *_, **__: colours(60))
    assert main(["train", "--data", "x", "--out", str(tmp_path / "stopped"), "--arch", "tutorial"]) == 1
    assert "No epoch was finished; begin again with the same command and --resume." in capsys.readouterr().err
    monkeypatch.setattr("cifar.training.run.train.write_history", stop)
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, colours(60), tmp_path / "run")
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "tensorboard"}
    train(QUICK, colours(60), tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1
