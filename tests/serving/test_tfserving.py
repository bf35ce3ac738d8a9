"""TensorFlow Serving's REST API on our server, and TensorFlow Serving as our engine."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from support.pictures import encoded, noise
from support.samples import write_two_versions
from support.servers import free_port, running, wait_until_ready

from app import create_app
from cifar.errors import BadRequest, ImageTooLarge, ModelServerUnavailable, SettingsError, VersionUnusable
from cifar.images.decode import to_input
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.models.tfserving_client import ModelServer, _messages
from cifar.serving.rest.tensors import read_call
from cifar.settings import ROOT, Settings, load_settings

CAT = (ROOT / "examples" / "cat.jpg").read_bytes()
MODEL = "/v1/models/cifar_classifier"


def pixels(name: str) -> np.ndarray:
    with Image.open(ROOT / "examples" / f"{name}.jpg") as image:
        return np.asarray(image.convert("RGB"))


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def by_predict(api, name: str = "cat", **fields: object) -> list[float]:
    answer = api.post("/predict", files={"image": (ROOT / "examples" / f"{name}.jpg").read_bytes()}, data=fields)
    return list(answer.json()["class_scores"].values())


def ask(api, body: object, path: str = f"{MODEL}:predict") -> httpx2.Response:
    return api.post(path, json=body)


# --- the API ------------------------------------------------------------------------------------------------------------


def test_rows_in_rows_out_and_columns_in_columns_out(api):
    """The documentation's two forms; with several outputs a row is an object, and a column has the name of its tensor."""
    images = [pixels("cat").tolist(), pixels("ship").tolist()]
    rows = ask(api, {"signature_name": "serving_uint8", "instances": images}).json()["predictions"]
    assert [set(row) for row in rows] == [{"probabilities", "ood_score"}] * 2
    columns = ask(api, {"signature_name": "serving_uint8", "inputs": {"image": images}}).json()["outputs"]
    assert columns == {name: [row[name] for row in rows] for name in ("probabilities", "ood_score")}
    named = ask(api, {"signature_name": "serving_uint8", "instances": [{"image": image} for image in images]})
    assert named.json()["predictions"] == rows
    bare = ask(api, {"signature_name": "serving_uint8", "inputs": images})
    assert bare.json()["outputs"] == columns


def test_a_signature_of_one_output_answers_without_its_name(api):
    """Version 1 has probabilities alone: a row is a list, and so is the column's value."""
    image = pixels("cat").tolist()
    body = {"signature_name": "serving_uint8", "instances": [image]}
    (row,) = ask(api, body, f"{MODEL}/versions/1:predict").json()["predictions"]
    np.testing.assert_allclose(row, by_predict(api, version=1), atol=1e-6)
    body = {"signature_name": "serving_uint8", "inputs": [image]}
    assert ask(api, body, f"{MODEL}/versions/1:predict").json() == {"outputs": [row]}


@pytest.mark.parametrize("name", ["cat", "ship", "frog"])
def test_all_three_signatures_answer_as_predict_does(api, name):
    """Pixels, pixels divided by 255 (the default signature), and the file itself."""
    image, file = pixels(name), (ROOT / "examples" / f"{name}.jpg").read_bytes()
    expected = by_predict(api, name)
    for signature, value in (
        ("serving_uint8", image.tolist()),
        (None, (image / 255).tolist()),
        ("serving_bytes", b64(file)),
    ):
        body = {"instances": [value]} | ({"signature_name": signature} if signature else {})
        (row,) = ask(api, body).json()["predictions"]
        np.testing.assert_allclose(row["probabilities"], expected, atol=1e-6)
    assert row["classes"][3] == "cat"


def test_status_and_metadata_are_as_the_documentation_shows_them(api):
    """64-bit numbers are text, any size is -1, and a label leads to its version."""
    assert api.get(f"{MODEL}/versions/2").json() == {
        "model_version_status": [
            {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert [each["version"] for each in api.get(MODEL).json()["model_version_status"]] == ["2", "1"]
    assert api.get(f"{MODEL}/labels/stable").json() == api.get(f"{MODEL}/versions/2").json()
    metadata = api.get(f"{MODEL}/metadata").json()
    assert metadata["model_spec"] == {"name": "cifar_classifier", "signature_name": "", "version": "2"}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "serving_uint8", "serving_bytes"}
    assert signatures["serving_uint8"]["inputs"]["image"] == {
        "dtype": "DT_UINT8",
        "tensor_shape": {"dim": [{"size": str(size), "name": ""} for size in (-1, 32, 32, 3)], "unknown_rank": False},
        "name": "serving_uint8_image:0",
    }
    assert api.get(f"{MODEL}/versions/1/metadata").json()["model_spec"]["version"] == "1"
    assert api.get(f"{MODEL}/labels/stable/metadata").json() == metadata


IMAGE = np.zeros((32, 32, 3), int).tolist()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "either `instances` or `inputs`"),
        ({}, "either `instances` or `inputs`"),
        ({"instances": [IMAGE], "inputs": [IMAGE]}, "either `instances` or `inputs`"),
        ({"instances": [IMAGE], "examples": []}, "no field 'examples'"),
        ({"instances": [IMAGE], "signature_name": "classify"}, "no signature 'classify'; version 2 has: serving_bytes"),
        ({"instances": [IMAGE], "signature_name": 7}, "no signature '7'"),
        ({"instances": []}, "at least one input_image"),
        ({"instances": "cat"}, "at least one input_image; got 'cat'"),
        ({"instances": [[1, 2]]}, r"float32 of shape \(n, 32, 32, 3\); got int of shape \(1, 2\)"),
        ({"instances": [[[1], [1, 2]]]}, "different lengths"),
        ({"instances": [["a"]]}, "got str of shape"),
        ({"instances": [{"picture": IMAGE}]}, "one input is 'input_image'; got 'picture'"),
        ({"instances": [(np.array(IMAGE) + 2).tolist()]}, r"in \[0, 1\]; got 2 to 2"),
        ({"instances": [(np.array(IMAGE) - 1).tolist()], "signature_name": "serving_uint8"}, r"in \[0, 255\]; got -1"),
        ({"instances": [(np.array(IMAGE) + 0.5).tolist()], "signature_name": "serving_uint8"}, "whole numbers"),
        ({"instances": [IMAGE], "signature_name": "serving_bytes"}, 'comes as {"b64"'),
        ({"instances": [{"b64": "?"}], "signature_name": "serving_bytes"}, "not base64"),
        ({"instances": [0] * 300}, "at most 256 images; got 300"),
    ],
)
def test_a_call_that_is_not_formed_as_documented_is_400_with_a_sentence(api, body, sentence):
    """TensorFlow Serving's status and `error`, with our code beside it."""
    answer = ask(api, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "bad_request"
    assert re.search(sentence, answer.json()["error"]), answer.json()["error"]


def test_base64_with_letters_beyond_ascii_is_the_callers_mistake(api):
    """400 as any other text that is not base64, not an error of ours."""
    answer = ask(api, {"instances": [{"b64": "\u00e9"}], "signature_name": "serving_bytes"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
    assert "not base64" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs": {"input_image": {"a": %s}}}',
        '{"instances": [0], "signature_name": %s}',
        '{"instances": [%s], "signature_name": "serving_bytes"}',
        '{"instances": [%s]}',
    ],
)
def test_lists_a_thousand_deep_are_the_callers_mistake(api, body):
    """The sentence shows some of what came, however deep that goes."""
    answer = api.post(f"{MODEL}:predict", content=body % ("[" * 1000 + "]" * 1000))
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text


def test_a_long_text_among_numbers_takes_no_more_memory_than_the_call():
    """A text of a megabyte beside a hundred numbers is 400; as one array of text they would be 400 MB."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get().manifest
    body = json.dumps({"instances": [["x" * 1_000_000] + [0] * 100]}).encode()
    tracemalloc.start()
    with pytest.raises(BadRequest, match="got int, str of shape"):
        read_call(body, manifest, max_images=256, max_pixels=10**6)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000_000


def test_the_images_of_a_call_may_cost_no_more_than_one_image():
    """A few kilobytes may unpack to millions of pixels, and a call has room for many such files."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get().manifest
    file = base64.b64encode(encoded(noise(40, 40))).decode()
    limits = {"max_images": 256, "max_pixels": 40 * 40 * 3}
    body = {"signature_name": "serving_bytes", "instances": [{"b64": file}] * 3}
    assert len(read_call(json.dumps(body).encode(), manifest, **limits).images) == 3
    body["instances"].append({"b64": file})
    with pytest.raises(ImageTooLarge, match="at most 4,800 pixels together; send fewer at once"):
        read_call(json.dumps(body).encode(), manifest, **limits)


@pytest.mark.parametrize("key", ["b64", r"b\u00364"])
def test_image_files_in_a_tensor_call_never_hold_up_the_event_loop(api, monkeypatch, key):
    """Some kilobytes may unpack to millions of pixels, so they are decoded in a thread however short the call is."""
    threads = []

    def noted(*arguments, **options):
        threads.append(threading.current_thread().name)
        return to_input(*arguments, **options)

    monkeypatch.setattr("cifar.serving.rest.tensors.to_input", noted)
    body = json.dumps({"signature_name": "serving_bytes", "instances": [b64(CAT)]}).replace("b64", key)
    assert api.post(f"{MODEL}:predict", content=body).status_code == 200
    assert [name.partition("_")[0] for name in threads] == ["asyncio"]


@pytest.mark.parametrize("path", ["", "/metadata", ":predict"])
def test_a_version_of_thousands_of_digits_is_not_there(api, path):
    """404 as any address that is nobody's, not an error of ours."""
    method = "POST" if path == ":predict" else "GET"
    answer = api.request(method, f"{MODEL}/versions/{'9' * 5000}{path}")
    assert answer.status_code == 404, answer.text


def test_what_is_not_there_is_404_and_other_verbs_are_too(api):
    """A model, a version, a label; classify and regress need signatures that image classifiers do not have."""
    for method, path in (
        ("GET", "/v1/models/half_plus_two"),
        ("GET", f"{MODEL}/versions/9"),
        ("GET", f"{MODEL}/labels/canary"),
        ("POST", "/v1/models/half_plus_two:predict"),
        ("POST", f"{MODEL}/versions/9:predict"),
        ("POST", f"{MODEL}/labels/canary:predict"),
        ("POST", f"{MODEL}:classify"),
        ("POST", f"{MODEL}:regress"),
    ):
        answer = api.request(method, path, json={"instances": [IMAGE]} if method == "POST" else None)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.json()["error"]
    assert api.post(f"{MODEL}:predict", content=b"{").json()["error"].startswith("The body is not JSON")
    broken = ask(api, {"signature_name": "serving_bytes", "instances": [b64(CAT[:300])]})
    assert (broken.status_code, broken.json()["code"]) == (422, "unreadable_image")


def test_a_label_and_the_split_decide_who_answers_and_a_header_says_it(tmp_path):
    """Versions 1 and 2 exchange airplane and automobile; the canary is asked by its label."""
    registry = Registry(write_two_versions(tmp_path), "cifar_classifier")
    log = RolloutLog(registry)
    log.promote(1, by="ada", check_loadable=lambda _: None)
    log.label("canary", 2, by="ada")
    log.split({"stable": 50, "canary": 50}, by="ada")
    with TestClient(create_app(Settings(registry=tmp_path), page=False)) as client:
        wait_until_ready(client)
        body = {"signature_name": "serving_uint8", "instances": [IMAGE]}
        assert ask(client, body, f"{MODEL}/labels/canary:predict").headers["x-model-version"] == "2"
        met = {
            client.post(f"{MODEL}:predict", json=body, headers={"Cookie": f"cifar_user={i:032x}"}).headers[
                "x-model-version"
            ]
            for i in range(20)
        }
        assert met == {"1", "2"}


# --- the engine ---------------------------------------------------------------------------------------------------------


@contextmanager
def model_server(base: Path, port: int, *, slow: float = 0.0) -> Iterator[subprocess.Popen]:
    """The gRPC server of `tfserving_server.py`, in a process of its own."""
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
    """The base path of both servers: two versions, as they stand in the registry."""
    return write_two_versions(tmp_path_factory.mktemp("tfserving")) / "cifar_classifier"


def client_of(port: int, **other: object) -> ModelServer:
    return ModelServer(f"127.0.0.1:{port}", **{"timeout_seconds": 20.0, **other})


@pytest.mark.slow
def test_the_model_server_answers_as_the_local_engines_do(base):
    """Batches of several sizes, either version; and one that it does not have is named."""
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
        shipped = Registry(ROOT / "saved_model", "cifar_classifier").get(2)
        moved = shipped.manifest.model_copy(update={"version": 7})
        with pytest.raises(VersionUnusable, match="does not serve cifar_classifier version 7: Servable not found"):
            Predictor.load(type(shipped)(shipped.path, moved), server)


@pytest.mark.slow
def test_a_server_that_is_slow_or_away_is_said_within_the_time_and_left_alone(base, monkeypatch):
    """The deadline counts, the breaker opens, and when the server is back it is asked again."""
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
    began = time.monotonic()
    with pytest.raises(ModelServerUnavailable, match="Try again in a moment"):
        infer(image)
    assert time.monotonic() - began < 0.4, "left alone: not even the time-out is waited for"
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
def test_a_model_server_without_the_scores_of_the_manifest_serves_other_files(monkeypatch, score):
    """The same version exported anew, without them or in another shape: the sentence asks for it, and it is no error of ours."""
    answer = {"probabilities": np.full((1, 10), 0.1)} | ({} if score is None else {"ood_score": np.array(score)})
    tensors = {
        name: {"dtype": 1, "tensor_shape": {"dim": [{"size": n} for n in value.shape]}, "floats": value.ravel()}
        for name, value in answer.items()
    }
    response = _messages()["Response"](outputs=[{"key": name, "value": tensor} for name, tensor in tensors.items()])
    monkeypatch.setattr(ModelServer, "_answer", lambda *_: response)
    server = ModelServer("127.0.0.1:1", timeout_seconds=1)
    infer = server.infer_for(Registry(ROOT / "saved_model", "cifar_classifier").get(2))
    with pytest.raises(VersionUnusable, match="Do both serve the same files"):
        infer(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.slow
def test_our_server_over_a_model_server_that_dies_and_comes_back(base, tmp_path):
    """Four workers: equal answers; 503 with Retry-After while it is away; ready again by itself. The same script asks both ways."""
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
        return list(answer.json()["class_scores"].values())

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
            deadline = time.monotonic() + 60
            while client.post("/predict", files={"image": CAT}).status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            while {client.get("/readyz").status_code for _ in range(12)} != {200}:
                assert time.monotonic() < deadline
                time.sleep(0.2)


def same_script(client: httpx2.Client | TestClient) -> list[list[float]]:
    """What a client of TensorFlow Serving's REST API does, whatever is behind it."""
    assert client.get(MODEL).json()["model_version_status"][0]["state"] == "AVAILABLE"
    body = {"instances": [(pixels(name) / 255).tolist() for name in ("cat", "dog", "truck")]}
    return client.post(f"{MODEL}/versions/1:predict", json=body).json()["predictions"]


def test_a_server_of_models_that_is_away_at_the_start_is_waited_for(tmp_path):
    """Alive, not ready, and the sentence names it; no trace in the log."""
    registry = write_two_versions(tmp_path)
    settings = Settings(registry=registry, engine="tfserving", tfserving_url=f"127.0.0.1:{free_port()}")
    with TestClient(create_app(settings, page=False)) as client:
        deadline = time.monotonic() + 30
        while (answer := client.get("/readyz")).json()["code"] == "not_ready":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (answer.status_code, answer.json()["code"]) == (503, "model_server_unavailable")
        assert client.get("/healthz").status_code == 200


def test_the_engine_needs_an_address(monkeypatch):
    """Half a setting ends the start with what to add."""
    monkeypatch.setenv("CIFAR_ENGINE", "tfserving")
    with pytest.raises(SettingsError, match="CIFAR_TFSERVING_URL, such as tensorflow-serving:8500"):
        load_settings()
