"""TensorFlow Serving as the engine: `CIFAR_ENGINE=tfserving`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.pictures import encoded, example_pixels, noise
from support.samples import write_two_versions
from support.servers import CAT, free_port, running, wait_until_ready
from support.waiting import until

from app import create_app
from cifar.errors import ModelServerUnavailable, SettingsError, VersionUnusable
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.models.tfserving_client import ModelServer, message_types
from cifar.settings import ROOT, Settings, load_settings

MODEL = "/v1/models/cifar_classifier"


@contextmanager
def model_server(base: Path, port: int, *, slow: float = 0.0) -> Iterator[subprocess.Popen]:
    """Run `tests/programs/tfserving.py`, a gRPC server, in its own process."""
    command = [sys.executable, "tests/programs/tfserving.py", str(port), str(base), "--slow", str(slow)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The folder of the model that both servers read: two versions."""
    return write_two_versions(tmp_path_factory.mktemp("tfserving")) / "cifar_classifier"


def client_of(port: int, **other: object) -> ModelServer:
    return ModelServer(f"127.0.0.1:{port}", **{"timeout_seconds": 20.0, **other})


@pytest.mark.slow
def test_tensorflow_serving_gives_the_answers_of_the_local_engines(base):
    """This holds for both versions and several batch sizes. A version that it does not serve is named in the error."""
    port = free_port()
    images = np.stack([noise(32, 32, seed=i) for i in range(40)])
    with model_server(base, port):
        server = client_of(port)
        for number in (1, 2):
            version = Registry(base.parent, "cifar_classifier").get(number)
            remote, local = Predictor.load(version, server), Predictor.load(version)
            assert (remote.engine, local.engine) == ("tfserving", "litert")
            for count in (1, 40):
                np.testing.assert_allclose(remote.answers(images[:count]), local.answers(images[:count]), atol=1e-5)
            np.testing.assert_allclose(remote.answers(images[:3], 6), local.answers(images[:3], 6), atol=1e-5)
        shipped = Registry(ROOT / "saved_model", "cifar_classifier").get(2)
        moved = shipped.manifest.model_copy(update={"version": 7})
        with pytest.raises(VersionUnusable, match="does not serve cifar_classifier version 7: Servable not found"):
            Predictor.load(type(shipped)(shipped.path, moved), server)


@pytest.mark.slow
def test_a_slow_or_missing_server_is_reported_in_time_and_the_circuit_opens(base, monkeypatch):
    """The timeout holds, the circuit opens, and when the server is back it is called again."""
    version = Registry(base.parent, "cifar_classifier").get(1)
    monkeypatch.setattr("cifar.dependency.MAX_FAILURES", 2)
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 1)
    told: list[bool] = []
    port = free_port()
    server = client_of(port, timeout_seconds=0.5)
    server.dependency.on_change = told.append
    infer = server.infer_for(version)
    image = np.asarray(noise(32, 32))[None]
    with (
        model_server(base, port, slow=3),
        pytest.raises(ModelServerUnavailable, match=r"not answer within 0\.5 seconds"),
    ):
        infer(image)
    with pytest.raises(ModelServerUnavailable, match="does not answer"):
        infer(image)
    with pytest.raises(
        ModelServerUnavailable, match=r"does not answer\. Try again"
    ):  # the circuit is open: no code of gRPC
        infer(image)
    assert told == [True]
    server = client_of(port)
    server.dependency.on_change = told.append
    infer = server.infer_for(version)
    with pytest.raises(ModelServerUnavailable):
        infer(image)
    with model_server(base, port):
        deadline = time.monotonic() + 60
        while server.dependency.failing:
            assert time.monotonic() < deadline
            try:
                infer(image)
            except ModelServerUnavailable:
                time.sleep(0.2)
    assert told == [True, True, False]


@pytest.mark.parametrize("score", [None, 0.5, [0.1, 0.2]])
def test_outputs_that_differ_from_the_manifest_are_reported(monkeypatch, score):
    """The server may have the same version from another export; the message asks whether both serve the same files."""
    answer = {"probabilities": np.full((1, 10), 0.1)} | ({} if score is None else {"ood_score": np.array(score)})
    tensors = {
        name: {"dtype": 1, "tensor_shape": {"dim": [{"size": n} for n in value.shape]}, "floats": value.ravel()}
        for name, value in answer.items()
    }
    response = message_types()["Response"](outputs=[{"key": name, "value": tensor} for name, tensor in tensors.items()])

    class Channel:
        def unary_unary(self, *_: object, **__: object):
            return lambda *_, **__: response

    monkeypatch.setattr("grpc.insecure_channel", lambda *_, **__: Channel())
    server = ModelServer("127.0.0.1:1", timeout_seconds=1)
    infer = server.infer_for(Registry(ROOT / "saved_model", "cifar_classifier").get(2))
    with pytest.raises(VersionUnusable, match="Do both serve the same files"):
        infer(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.slow
def test_answers_are_equal_before_and_after_an_outage_of_tensorflow_serving(base, tmp_path):
    """With four workers: 503 with Retry-After during the outage, and ready again afterwards."""
    port = free_port()
    settings = {
        "CIFAR_REGISTRY": str(base.parent),
        "CIFAR_ENGINE": "tfserving",
        "CIFAR_TFSERVING_URL": f"127.0.0.1:{port}",
        "CIFAR_CACHE_IMAGES": "0",
        "CIFAR_ACCESS_LOG": "false",
    }
    payloads = [encoded(noise(32, 32, seed=i)) for i in range(20)]

    def scores(client: httpx2.Client, payload: bytes) -> list[float]:
        answer = client.post("/predict", files={"image": payload})
        assert answer.status_code == 200, answer.text
        return answer.json()["class_scores"]

    with TestClient(create_app(Settings(registry=base.parent), page=False)) as local:
        wait_until_ready(local)
        expected = [scores(local, payload) for payload in payloads]
        here = same_script(local)
    with (
        model_server(base, port) as process,
        running(tmp_path, workers=4, **settings) as server,
        httpx2.Client(base_url=server.address, timeout=60) as client,
    ):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda payload: scores(client, payload), payloads))
        np.testing.assert_allclose(answers, expected, atol=2e-5)
        np.testing.assert_allclose(same_script(client), here, atol=2e-5)
        process.kill()
        process.wait()
        refused = [client.post("/predict", files={"image": payload}) for payload in payloads]
        assert {answer.status_code for answer in refused} == {503}
        assert {answer.json()["code"] for answer in refused} == {"model_server_unavailable"}
        assert all(answer.headers["retry-after"] == "5" for answer in refused)
        with model_server(base, port):
            until(lambda: client.post("/predict", files={"image": CAT}).status_code == 200)
            until(lambda: {client.get("/readyz").status_code for _ in range(12)} == {200})


def same_script(client: httpx2.Client | TestClient) -> list[list[float]]:
    """Call the REST API as a client of TensorFlow Serving does."""
    assert client.get(MODEL).json()["model_version_status"][0]["state"] == "AVAILABLE"
    body = {"instances": [(example_pixels(name) / 255).tolist() for name in ("cat", "dog", "truck")]}
    return client.post(f"{MODEL}/versions/1:predict", json=body).json()["predictions"]


def test_a_start_without_tensorflow_serving_waits_for_it(tmp_path):
    """The process is alive but not ready, and `/readyz` names the reason."""
    registry = write_two_versions(tmp_path)
    settings = Settings(registry=registry, engine="tfserving", tfserving_url=f"127.0.0.1:{free_port()}")
    with TestClient(create_app(settings, page=False)) as client:
        until(lambda: client.get("/readyz").json()["code"] != "not_ready")
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "model_server_unavailable")
        assert client.get("/healthz").status_code == 200


def test_the_engine_tfserving_needs_an_address(monkeypatch):
    """The start ends with a message that names the missing setting."""
    monkeypatch.setenv("CIFAR_ENGINE", "tfserving")
    with pytest.raises(SettingsError, match="CIFAR_TFSERVING_URL, such as tensorflow-serving:8500"):
        load_settings()
