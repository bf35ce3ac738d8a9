"""`train --distribute`: real processes that train together, workers that are killed, and errors in TF_CONFIG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import kubernetes_validate
import numpy as np
import pytest
import yaml
from support.cli import parsed
from support.runs import colours, colours_folder, equal_weights, rows, wait_for_first_epoch
from support.servers import free_port

from cifar.errors import BadParameter, TrainingError
from cifar.models.predictor import Predictor
from cifar.settings import ROOT, Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.distributed.cluster import read_cluster
from cifar.training.distributed.together import make_plan, train_together
from cifar.training.distributed.workers import Workers, join
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.run.config import TrainConfig
from cifar.training.run.train import train

EPOCHS = 3
OPTIONS = ["--epochs", str(EPOCHS), "--batch-size", "32", "--validation-split", "0.2"]
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=32, validation_split=0.2)
CURVES = ["loss", "accuracy", "val_loss", "val_accuracy"]
TWO_DEVICES = """
import sys
import tensorflow as tf
(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from cifar.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

KILLED_WHILE_WRITING = """
import os, signal, sys
import cifar.training.run.train
cifar.training.run.train.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from cifar.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The images of `colours` as an image folder."""
    return colours_folder(tmp_path_factory.mktemp("colours"), 240)


@contextmanager
def workers(data, out, *options, each=((), ()), program=("-m", "cifar")):
    """Run two workers, the chief first; kill them at the end of the block. `each` has additional options of each worker."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in each]
    started = []
    try:
        for index, more in enumerate(each):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            command = [*program, "train", "--distribute", "multiworker", "--data", data, "--out", out / str(index)]
            started.append(
                subprocess.Popen(
                    [sys.executable, *map(str, [*command, *OPTIONS, *options, *more])],
                    cwd=ROOT,
                    env={**os.environ, "TF_CONFIG": json.dumps(task)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ended(processes) -> list[SimpleNamespace]:
    outputs = [process.communicate(timeout=200) for process in processes]
    return [
        SimpleNamespace(status=process.returncode, out=out, err=err)
        for process, (out, err) in zip(processes, outputs, strict=True)
    ]


def curves(run) -> np.ndarray:
    return np.array([rows(run)[name] for name in CURVES])


@pytest.fixture(scope="session")
def alone(tmp_path_factory, data):
    """A run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(CONFIG, load_dataset(str(data), Settings()), run)
    return run


@pytest.fixture(scope="session")
def together(tmp_path_factory, data):
    """The chief's folder of an undisturbed run of two workers."""
    folder = tmp_path_factory.mktemp("together")
    with workers(data, folder) as processes:
        chief, other = ended(processes)
    assert (chief.status, other.status) == (0, 0), chief.err + other.err
    assert chief.out.strip() == str(folder / "0" / "model.keras")
    assert other.out == ""
    return folder / "0"


@pytest.mark.slow
def test_two_workers_have_the_loss_curve_of_one_process(alone, together):
    """They share out the same batches, so the runs differ only by rounding."""
    np.testing.assert_allclose(curves(together), curves(alone), atol=0.02)
    assert rows(together)["steps"].tolist() == rows(alone)["steps"].tolist()


@pytest.mark.slow
def test_only_the_chief_writes_a_run_and_it_can_be_exported_like_any_other(tmp_path, data, alone, together):
    """The other worker leaves no folder. The exported model answers like that of one process."""
    assert [path.name for path in together.parent.iterdir()] == ["0"]
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    images = load_dataset(str(data), Settings()).train_images[::5]
    answers = []
    for run in (alone, together):
        version = export(read_source(run, Settings()), tmp_path / "registry", "colours")
        answers.append(Predictor.load(version).answers(images)[:, : len(version.manifest.class_names)])
    assert np.array_equal(answers[0].argmax(-1), answers[1].argmax(-1))
    np.testing.assert_allclose(answers[0], answers[1], atol=0.1)


@pytest.mark.slow
def test_a_killed_worker_ends_all_workers_and_the_resumed_run_equals_an_undisturbed_one(tmp_path, data, together):
    """The others print what to do. After --resume the weights are equal to the last bit.

    No worker succeeds if the chief is killed while it writes the result: Kubernetes restarts only failed workers, and the
    restarted chief would wait forever for one that had succeeded.
    """
    with workers(data, tmp_path) as processes:
        wait_for_first_epoch(processes[0], tmp_path / "0")
        processes[1].kill()
        chief, _ = ended(processes)
    assert chief.status == 1
    assert "Worker 0 of 2 lost another worker" in chief.err
    assert "Traceback" not in chief.err
    assert len(rows(tmp_path / "0")) < EPOCHS, "the worker was killed too late for this test"
    with workers(data, tmp_path, "--resume", program=("-c", KILLED_WHILE_WRITING)) as processes:
        chief, other = ended(processes)
    assert (chief.status, other.status) == (-9, 1), other.err
    assert "Worker 1 of 2 lost another worker" in other.err
    with workers(data, tmp_path, "--resume") as processes:
        resumed = ended(processes)
    assert [process.status for process in resumed] == [0, 0], resumed[0].err
    assert equal_weights(tmp_path / "0", together)
    assert np.array_equal(curves(tmp_path / "0"), curves(together))


@pytest.mark.slow
def test_workers_with_different_settings_are_refused(tmp_path, data):
    """The messages name the difference. No worker trains, and nothing is written."""
    with workers(data, tmp_path, each=[(), ("--seed", "1")]) as processes:
        chief, other = ended(processes)
    assert (chief.status, other.status) == (1, 1)
    assert "Worker 0 has --seed 0, worker 1 has 1. Start all workers with the same command" in chief.err
    assert "Worker 1 has --seed 1, worker 0 has 0" in other.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored", "multiworker"])
def test_a_single_worker_needs_no_other(tmp_path, kind):
    """One CPU or a cluster of one worker trains as it does without `--distribute`."""
    one_worker = tf_config({"type": "worker", "index": 0}, worker=["127.0.0.1:1"])
    config = TrainConfig("tutorial", epochs=1, batch_size=15)
    result = train_together(config, colours(60), tmp_path / "run", join(kind, one_worker))
    assert result == tmp_path / "run" / "model.keras"
    assert len(np.atleast_1d(rows(tmp_path / "run"))) == 1


@pytest.mark.slow
def test_two_devices_of_one_process_equal_two_workers(tmp_path, data, together):
    """`mirrored` uses the same loop. Two logical CPU devices replace two GPUs here."""
    command = ["train", "--distribute", "mirrored", "--data", data, "--out", tmp_path / "run", *OPTIONS]
    program = [sys.executable, "-c", TWO_DEVICES, *map(str, command)]
    done = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "eagerly" not in done.stderr, "TensorFlow's warnings must not reach the user"
    np.testing.assert_allclose(curves(tmp_path / "run"), curves(together), atol=1e-3)


@pytest.mark.parametrize("kubernetes", ["1.25", "1.31", "1.37"])
def test_the_kubernetes_job_gives_each_pod_its_own_task_in_one_cluster(kubernetes):
    """The manifests are valid, their names, counts and ports agree, and the command is one that `cifar` accepts."""
    service, job = yaml.safe_load_all((ROOT / "deploy/kubernetes/train.yaml").read_text())
    for manifest in (service, job):
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    pods, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pods["containers"]
    task, configuration = container["env"]
    assert "job-completion-index" in task["valueFrom"]["fieldRef"]["fieldPath"]
    count, port = job["spec"]["completions"], container["ports"][0]["containerPort"]
    for index in range(count):
        found = read_cluster(configuration["value"].replace(f"$({task['name']})", str(index)))
        assert found.index == index
        assert found.addresses == tuple(f"{name}-{i}.{pods['subdomain']}:{port}" for i in range(count))
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["parallelism"] == count
    options = parsed(*container["args"][3:])
    assert (options["distribute"], options["resume"], options["batch_size"] % count) == ("multiworker", True, 0)


def tf_config(task: dict, **jobs: object) -> str:
    return json.dumps({"cluster": jobs, "task": task})


FIRST = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it is not set"),
        ("", "it is not set"),
        ("{", "it is not JSON"),
        ("[]", "it must have a cluster, and a task"),
        (tf_config(FIRST), "it must have a cluster, and a task"),
        (json.dumps({"cluster": {"worker": ["a:1"]}}), "it must have a cluster, and a task"),
        (tf_config({"type": "worker", "index": "0"}, worker=["a:1"]), "it must have a cluster, and a task"),
        (tf_config(FIRST, worker=["a:1"], ps=["b:1"]), "'ps' is not supported; there are: chief, worker"),
        (tf_config({"type": "evaluator", "index": 0}, worker=["a:1"]), "'evaluator' is not supported"),
        (tf_config(FIRST, worker="a:1"), "cluster.worker must be a list"),
        (tf_config(FIRST, worker=[]), "cluster.worker must be a list"),
        (tf_config(FIRST, worker=["a"]), "'a' is not an address such as host:2222"),
        (tf_config(FIRST, worker=["http://a:1"]), "is not an address"),
        (tf_config(FIRST, worker=[1]), "1 is not an address"),
        (tf_config(FIRST, worker=["a:1", "a:1"]), "an address appears twice"),
        (tf_config(FIRST, chief=["a:1", "b:1"], worker=["c:1"]), "only one chief"),
        (
            tf_config({"type": "worker", "index": 2}, worker=["a:1", "b:1"]),
            "the task is worker 2, but the cluster has 2",
        ),
        (tf_config({"type": "worker", "index": -1}, worker=["a:1"]), "the task is worker -1"),
        (tf_config({"type": "chief", "index": 0}, worker=["a:1"]), "the task is chief 0, but the cluster has 0"),
    ],
)
def test_an_unusable_tf_config_is_refused_with_an_example(text, message):
    """The message says what is wrong and has a correct example. It comes before TensorFlow waits for other workers."""
    with pytest.raises(TrainingError, match=message) as refused:
        read_cluster(text)
    assert """TF_CONFIG='{"cluster": {"worker": ["host-a:2222""" in str(refused.value)


def test_the_chief_in_tf_config_is_worker_0():
    """With a chief, the first entry of the job `worker` is worker 1; without one it is the chief itself."""
    assert read_cluster(tf_config(FIRST, worker=["a:1", "b:1"])).index == 0
    both = read_cluster(tf_config(FIRST, worker=["[::1]:2"], chief=["cifar-train-0.cifar-train:2222"]))
    assert (both.index, both.addresses) == (1, ("cifar-train-0.cifar-train:2222", "[::1]:2"))


@pytest.mark.parametrize(
    ("devices", "config", "error", "message"),
    [
        (2, {"batch_size": 33}, BadParameter, "33 cannot be divided evenly among 2 devices; 32 and 34 can"),
        (2, {"time_budget": 60}, BadParameter, "the clock of one machine; with several workers use --epochs"),
        (8, {"validation_split": 0.01}, TrainingError, "8 devices need at least as many held-out images; there are 2"),
    ],
)
def test_work_that_cannot_be_shared_evenly_is_refused(devices, config, error, message):
    """The error comes before the training begins."""
    several = Workers(SimpleNamespace(num_replicas_in_sync=devices), count=devices)
    with pytest.raises(error, match=message):
        make_plan(TrainConfig(**config), colours(60, classes=2), several)


def test_an_epoch_leaves_out_images_that_cannot_be_shared_evenly():
    """Of 54 images 4 devices use 52, in batches that are multiples of 4."""
    four = Workers(SimpleNamespace(num_replicas_in_sync=4), count=4)
    plan = make_plan(TrainConfig(validation_split=0.1), colours(60), four)
    assert (len(plan.fit), plan.images_per_epoch, plan.batch_size % 4) == (54, 52, 0)
