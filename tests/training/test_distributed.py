"""`train --distribute`: real processes that train together, one that is killed, and what is wrong with TF_CONFIG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import kubernetes_validate
import numpy as np
import pytest
import yaml
from cifar.training.run.context import TrainConfig, prepare
from support.cli import parsed
from support.runs import colours, colours_folder, equal_weights, rows
from support.servers import free_port

from cifar.errors import BadParameter, TrainingError
from cifar.models.predictor import Predictor
from cifar.settings import ROOT, Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.distributed.cluster import read_cluster
from cifar.training.distributed.workers import Workers, join
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.run.train import train

EPOCHS = 4
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

DIES_WHILE_IT_WRITES = """
import os, signal, sys
import cifar.training.run.train
cifar.training.run.train.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from cifar.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Pictures that are red, green or blue, as an image folder."""
    return colours_folder(tmp_path_factory.mktemp("colours"), 240)


@contextmanager
def workers(data, out, *options, each=((), ()), program=("-m", "cifar")):
    """Two processes of one cluster, the chief first; ended in any case. `each` has what one of them gets besides."""
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
    said = [process.communicate(timeout=200) for process in processes]
    return [
        SimpleNamespace(status=process.returncode, out=out, words=words)
        for process, (out, words) in zip(processes, said, strict=True)
    ]


def curves(run) -> np.ndarray:
    return np.array([rows(run)[name] for name in CURVES])


@pytest.fixture(scope="session")
def alone(tmp_path_factory, data):
    """What one process makes of it."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(CONFIG, load_dataset(str(data), Settings()), run)
    return run


@pytest.fixture(scope="session")
def together(tmp_path_factory, data):
    """What two processes make of it, undisturbed."""
    folder = tmp_path_factory.mktemp("together")
    with workers(data, folder) as processes:
        chief, other = ended(processes)
    assert (chief.status, other.status) == (0, 0), chief.words + other.words
    assert chief.out.strip() == str(folder / "0" / "model.keras")
    assert other.out == ""
    return folder / "0"


@pytest.mark.slow
def test_two_workers_give_the_loss_curve_of_one(alone, together):
    """The same batches, gradients added up, normalization by all images: the same run, but for rounding."""
    np.testing.assert_allclose(curves(together), curves(alone), atol=0.02)
    assert rows(together)["steps"].tolist() == rows(alone)["steps"].tolist()


@pytest.mark.slow
def test_the_chief_alone_writes_what_is_served_as_any_other_run(tmp_path, data, alone, together):
    """The other worker leaves no folder; the chief's run is exported, and answers as the run of one process does."""
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
def test_a_worker_that_is_killed_ends_all_and_the_run_goes_on_as_if_it_had_not(tmp_path, data, together):
    """SIGKILL after an epoch: the chief says what to do, and after that the weights are the same to the last bit."""
    with workers(data, tmp_path) as processes:
        deadline = time.monotonic() + 200
        while not (tmp_path / "0" / "checkpoint.keras").exists():
            assert time.monotonic() < deadline, "no epoch was finished"
            assert processes[0].poll() is None, processes[0].stderr.read()
            time.sleep(0.01)
        processes[1].kill()
        chief, _ = ended(processes)
    assert chief.status == 1
    assert "Worker 0 of 2 lost another one" in chief.words
    assert "Traceback" not in chief.words
    assert len(rows(tmp_path / "0")) < EPOCHS, "it was killed too late to show anything"
    with workers(data, tmp_path, "--resume") as processes:
        again = ended(processes)
    assert [process.status for process in again] == [0, 0], again[0].words
    assert equal_weights(tmp_path / "0", together)
    assert np.array_equal(curves(tmp_path / "0"), curves(together))


@pytest.mark.slow
def test_a_chief_that_is_killed_while_it_writes_the_result_leaves_nobody_who_ended_well(tmp_path, data):
    """Kubernetes starts again who failed, and the chief waits for all: a worker that had succeeded would never come."""
    small = ["--arch", "tutorial"]
    with workers(data, tmp_path, *small, program=("-c", DIES_WHILE_IT_WRITES)) as processes:
        chief, other = ended(processes)
    assert (chief.status, other.status) == (-9, 1), other.words
    assert "Worker 1 of 2 lost another one" in other.words
    with workers(data, tmp_path, *small, "--resume") as processes:
        again = ended(processes)
    assert [process.status for process in again] == [0, 0], again[0].words
    assert len(rows(tmp_path / "0")) == EPOCHS


@pytest.mark.slow
def test_workers_that_were_given_different_things_are_told_which(tmp_path, data):
    """Nobody trains on, nothing is written."""
    with workers(data, tmp_path, each=[(), ("--seed", "1")]) as processes:
        chief, other = ended(processes)
    assert (chief.status, other.status) == (1, 1)
    assert "Worker 0 has --seed 0, worker 1 has 1. Start all workers with the same command" in chief.words
    assert "Worker 1 has --seed 1, worker 0 has 0" in other.words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored", "multiworker"])
def test_who_is_alone_needs_no_other(tmp_path, kind):
    """One processor, or a cluster of one, trains as well as without `--distribute`."""
    lonely = cluster({"type": "worker", "index": 0}, worker=["127.0.0.1:1"])
    train(TrainConfig("tutorial", epochs=1, batch_size=15), colours(60), tmp_path / "run", workers=join(kind, lonely))
    assert len(np.atleast_1d(rows(tmp_path / "run"))) == 1


@pytest.mark.slow
def test_two_devices_of_one_process_give_what_two_processes_give(tmp_path, data, together):
    """`mirrored` is the same loop; the processor stands in for two GPUs."""
    command = ["train", "--distribute", "mirrored", "--data", data, "--out", tmp_path / "run", *OPTIONS]
    program = [sys.executable, "-c", TWO_DEVICES, *map(str, command)]
    done = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "eagerly" not in done.stderr, "TensorFlow's advice is for whoever writes the loop"
    np.testing.assert_allclose(curves(tmp_path / "run"), curves(together), atol=1e-3)


@pytest.mark.parametrize("kubernetes", ["1.25", "1.31", "1.37"])
def test_the_kubernetes_job_gives_each_pod_its_place_in_one_cluster(kubernetes):
    """Valid manifests; names, numbers and ports that fit each other; and a command that `cifar` knows."""
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


def cluster(task: dict, **jobs: object) -> str:
    return json.dumps({"cluster": jobs, "task": task})


FIRST = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "it is not set"),
        ("", "it is not set"),
        ("{", "it is no JSON"),
        ("[]", "it needs a cluster, and a task"),
        (cluster(FIRST), "it needs a cluster, and a task"),
        (json.dumps({"cluster": {"worker": ["a:1"]}}), "it needs a cluster, and a task"),
        (cluster({"type": "worker", "index": "0"}, worker=["a:1"]), "it needs a cluster, and a task"),
        (cluster(FIRST, worker=["a:1"], ps=["b:1"]), "'ps' takes no part here; there are: chief, worker"),
        (cluster({"type": "evaluator", "index": 0}, worker=["a:1"]), "'evaluator' takes no part"),
        (cluster(FIRST, worker="a:1"), "cluster.worker must be a list"),
        (cluster(FIRST, worker=[]), "cluster.worker must be a list"),
        (cluster(FIRST, worker=["a"]), "'a' is no address such as host:2222"),
        (cluster(FIRST, worker=["http://a:1"]), "is no address"),
        (cluster(FIRST, worker=[1]), "1 is no address"),
        (cluster(FIRST, worker=["a:1", "a:1"]), "an address is there twice"),
        (cluster(FIRST, chief=["a:1", "b:1"], worker=["c:1"]), "one chief only"),
        (cluster({"type": "worker", "index": 2}, worker=["a:1", "b:1"]), "the task is worker 2, and the cluster has 2"),
        (cluster({"type": "worker", "index": -1}, worker=["a:1"]), "the task is worker -1"),
        (cluster({"type": "chief", "index": 0}, worker=["a:1"]), "the task is chief 0, and the cluster has 0"),
    ],
)
def test_a_tf_config_that_cannot_be_used_is_refused_with_an_example(text, words):
    """The sentence says what is wrong and shows a right one, before TensorFlow waits for anybody."""
    with pytest.raises(TrainingError, match=words) as refused:
        read_cluster(text)
    assert """TF_CONFIG='{"cluster": {"worker": ["host-a:2222""" in str(refused.value)


def test_a_tf_config_counts_the_chief_first():
    """With a chief, the first of the workers is the second process; without one it is the chief."""
    assert read_cluster(cluster(FIRST, worker=["a:1", "b:1"])).index == 0
    both = read_cluster(cluster(FIRST, worker=["[::1]:2"], chief=["cifar-train-0.cifar-train:2222"]))
    assert (both.index, both.addresses) == (1, ("cifar-train-0.cifar-train:2222", "[::1]:2"))


@pytest.mark.parametrize(
    ("devices", "config", "error", "words"),
    [
        (2, {"batch_size": 33}, BadParameter, "33 cannot be shared out evenly among 2 devices; 32 and 34 can"),
        (2, {"time_budget": 60}, BadParameter, "one machine's clock; with several workers give --epochs"),
        (8, {"validation_split": 0.01}, TrainingError, "8 devices need at least as many held-out images; there are 2"),
    ],
)
def test_what_several_workers_cannot_share_is_refused(tmp_path, devices, config, error, words):
    """Before anybody trains."""
    several = Workers(SimpleNamespace(num_replicas_in_sync=devices), count=devices)
    with pytest.raises(error, match=words):
        prepare(TrainConfig(**config), colours(60, classes=2), tmp_path, None, several)


def test_an_epoch_leaves_out_what_cannot_be_shared_out_evenly(tmp_path):
    """54 images among 4 devices are 52, in batches that all divide by 4."""
    four = Workers(SimpleNamespace(num_replicas_in_sync=4), count=4)
    work = prepare(TrainConfig(validation_split=0.1), colours(60), tmp_path, None, four)
    assert (len(work.fit), work.images_an_epoch, work.batch_size % 4) == (54, 52, 0)
