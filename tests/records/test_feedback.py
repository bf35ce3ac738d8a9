"""Predictions recorded and feedback stored by a running server: all channels, all errors, and no record lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from support.databases import real_postgres
from support.pictures import encoded, noise
from support.servers import running, wait_until_ready
from support.waiting import until

from app import create_app
from cifar import CLASS_NAMES
from cifar.images.decode import brightness_and_contrast
from cifar.records.database import open_engine
from cifar.records.feedback import store_feedback
from cifar.records.images import kept_images
from cifar.records.reader import read_predictions
from cifar.serving.auth.api_keys import create
from cifar.settings import ROOT, Settings

CAT = (ROOT / "examples" / "cat.jpg").read_bytes()


def app_with(folder: Path, **more: object) -> TestClient:
    settings = Settings(records_folder=folder / "var", **more)
    return TestClient(create_app(settings, page=False), raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path) -> Iterator[TestClient]:
    """The whole app in this process, with records of its own."""
    with app_with(tmp_path) as client:
        wait_until_ready(client)
        yield client


def predict(client: TestClient | httpx2.Client, image: bytes = CAT, **more) -> dict:
    response = client.post("/predict", files={"image": image}, **more)
    assert response.status_code == 200, response.text
    return response.json()


def give_feedback(
    client: TestClient | httpx2.Client, request_id: object, label: object = "dog", **more
) -> httpx2.Response:
    headers = more.pop("headers", None)
    return client.post("/feedback", json={"request_id": request_id, "label": label, **more}, headers=headers)


def rows(folder: Path, **more: object) -> dict[str, dict]:
    """Return the predictions in the database, with their feedback, by request id."""
    engine = open_engine(Settings(records_folder=folder / "var", **more))
    found = {row["request_id"]: row for row in read_predictions(engine)}
    engine.dispose()
    return found


def test_feedback_directly_after_the_answer_is_stored_with_it(client, tmp_path):
    """It does not have to wait for a flush. The response shows what was stored, and later feedback replaces it."""
    answer = predict(client)
    first = give_feedback(client, answer["request_id"], note="whiskers")
    assert first.status_code == 200
    assert first.json() == {
        "request_id": answer["request_id"],
        "label": "dog",
        "note": "whiskers",
        "at": first.json()["at"],
    }
    assert give_feedback(client, answer["request_id"], "none").json()["note"] == ""
    row = rows(tmp_path)[answer["request_id"]]
    assert (row["feedback_label"], row["feedback_note"]) == ("none", "")
    assert row["scores"] == pytest.approx(dict(zip(answer["labels"], answer["class_scores"], strict=True)), abs=1e-6)
    assert (row["label"], row["model"], row["version"]) == ("cat", "cifar_classifier", answer["model"]["version"])
    assert row["score"] == pytest.approx(answer["confidence"], abs=1e-4)
    assert row["ood_score"] == pytest.approx(answer["ood_score"], abs=1e-4)
    assert row["in_distribution"] is answer["in_distribution"] is True
    assert row["route"] == "rest"


def test_the_records_contain_no_address_no_key_and_no_photo(tmp_path):
    """A keyed hash stands for the user. Nothing else of the user is in any file."""
    keys = tmp_path / "keys.json"
    key = create(keys, "visible-name", ["predict", "feedback"])
    photo = encoded(noise(60, 60, seed=3), "JPEG")
    with app_with(tmp_path, api_keys_file=keys) as client:
        client.headers["X-API-Key"] = key
        wait_until_ready(client)
        give_feedback(client, predict(client, photo)["request_id"])
    content = b"".join(file.read_bytes() for file in (tmp_path / "var").rglob("*") if file.is_file())
    assert b"predictions" in content
    for secret in (b"visible-name", key.encode(), b"testclient", photo[100:200]):
        assert secret not in content


def test_wrong_feedback_gets_an_error_and_changes_nothing(client, tmp_path):
    """Earlier feedback stays."""
    request_id = predict(client)["request_id"]
    give_feedback(client, request_id, "frog", note="first")
    for body, status, code in (
        ({"request_id": "never-was", "label": "dog"}, 404, "request_not_found"),
        ({"request_id": "ID", "label": "hexagon"}, 422, "bad_parameter"),
        ({"request_id": "ID", "label": "dog", "note": "x" * 1001}, 422, "bad_parameter"),
        ({"request_id": "ID", "label": "dog", "note": 5}, 422, "bad_parameter"),
        ({"request_id": "ID", "label": 5}, 422, "bad_parameter"),
        ({"request_id": "ID"}, 422, "bad_parameter"),
        ({"label": "dog"}, 422, "bad_parameter"),
        ({"request_id": "ID", "label": "dog", "stars": 5}, 422, "bad_parameter"),
        ([], 422, "bad_parameter"),
        ({"request_id": "\ud800", "label": "\udfff", "note": "\ud800"}, 404, "request_not_found"),
    ):
        content = json.dumps(body).replace('"ID"', f'"{request_id}"')
        response = client.post("/feedback", content=content, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (status, code), body
        row = rows(tmp_path)[request_id]
        assert (row["feedback_label"], row["feedback_note"]) == ("frog", "first"), body
    form = client.post("/feedback", data={"request_id": request_id, "label": "dog"}).json()["error"]
    assert form == "The body must be a JSON object, sent with Content-Type: application/json."


def test_a_client_that_uses_the_id_of_another_user_changes_neither_prediction_nor_feedback(tmp_path):
    """The id alone is not enough: feedback needs the user of the prediction, or an administrator."""
    keys = tmp_path / "keys.json"
    scopes = {"ann": ["predict", "feedback"], "eve": ["predict", "feedback"], "mute": ["predict"]}
    key = {name: {"X-API-Key": create(keys, name, which)} for name, which in scopes.items()}
    key["root"] = {"X-API-Key": create(keys, "root", ["feedback", "admin"])}
    with app_with(tmp_path, api_keys_file=keys) as client:
        wait_until_ready(client)
        chosen = {"X-Request-ID": "order-7"}
        predict(client, headers={**key["ann"], **chosen})
        assert give_feedback(client, "order-7", "frog", headers=key["ann"]).status_code == 200
        assert predict(client, encoded(noise()), headers={**key["eve"], **chosen})["request_id"] == "order-7"
        refused = give_feedback(client, "order-7", "ship", headers=key["eve"])
        assert (refused.status_code, refused.json()["code"]) == (404, "request_not_found")
        assert give_feedback(client, "order-7", "ship", headers=key["mute"]).json()["code"] == "missing_scope"
        assert give_feedback(client, "order-7", "ship").status_code == 401
        assert rows(tmp_path)["order-7"]["label"] == "cat"
        assert rows(tmp_path)["order-7"]["feedback_label"] == "frog"
        assert give_feedback(client, "order-7", "deer", headers=key["root"]).status_code == 200
        assert rows(tmp_path)["order-7"]["feedback_label"] == "deer"


def test_only_single_predictions_are_recorded_and_only_with_permission(client, tmp_path):
    """Explanations are not recorded, nor requests with `record=false`."""
    files = {"image": CAT}
    assert client.post("/explain", files=files).status_code == 200
    left_out = predict(client, params={"record": "false"})["request_id"]
    assert predict(client, data={"record": "false"})["request_id"] != left_out
    assert give_feedback(client, left_out).status_code == 404
    wrong = client.post("/predict", files=files, params={"record": "maybe"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_parameter")
    kept = predict(client)["request_id"]
    assert give_feedback(client, kept).status_code == 200
    assert set(rows(tmp_path)) == {kept}


def test_with_records_off_nothing_is_written_and_feedback_is_not_offered(tmp_path):
    """`CIFAR_RECORDS=false`: there is no folder and no route."""
    with app_with(tmp_path, records=False) as client:
        wait_until_ready(client)
        assert give_feedback(client, predict(client)["request_id"]).status_code in {404, 405}
        assert "/feedback" not in client.get("/openapi.json").json()["paths"]
    assert not (tmp_path / "var").exists()


def test_predictions_go_on_when_the_records_folder_cannot_be_written(tmp_path, caplog):
    """As in a read-only container. Feedback gets an error, `/readyz` lists the records, and one line says what to do."""
    (tmp_path / "var").write_text("a file in the way")
    with app_with(tmp_path) as client:
        wait_until_ready(client)
        for _ in range(3):
            refused = give_feedback(client, predict(client)["request_id"])
            assert (refused.status_code, refused.json()["code"]) == (503, "records_unavailable")
            assert int(refused.headers["Retry-After"]) > 0
        assert client.get("/readyz").json()["without"] == ["records"]
        assert "cifar_records_dropped_total" in client.get("/metrics").text
    (line,) = (record.getMessage() for record in caplog.records if "records is down" in record.getMessage())
    assert f"File exists: '{tmp_path / 'var'}'" in line
    assert "Predictions are not recorded" in line
    assert "CIFAR_RECORDS_FOLDER is a folder that this user can write" in line


@pytest.mark.slow
def test_predictions_go_on_while_postgresql_is_down_and_feedback_gets_an_error(tmp_path):
    """When it is back, feedback on the predictions of that time is stored."""
    with (
        real_postgres() as cluster,
        app_with(tmp_path, database_url=cluster.new_database("x")) as client,
    ):
        wait_until_ready(client)
        assert give_feedback(client, predict(client)["request_id"]).status_code == 200
        assert give_feedback(client, "never-was").json()["code"] == "request_not_found"
        cluster.stop()
        meanwhile = predict(client)["request_id"]
        refused = give_feedback(client, meanwhile)
        assert (refused.status_code, refused.json()["code"]) == (503, "records_unavailable")
        until(lambda: client.get("/readyz").json()["without"] == ["records"])
        cluster.start()
        until(lambda: client.get("/readyz").json()["without"] == [])
        assert give_feedback(client, meanwhile).status_code == 200


def test_feedback_does_not_queue_behind_a_database_that_hangs(tmp_path, monkeypatch):
    """Two threads wait five seconds for each lock: the last of thirty requests was answered after 75 seconds, and others waited behind it."""
    attempts = []

    def counted(*arguments: object, **more: object) -> dict:
        attempts.append(arguments)
        return store_feedback(*arguments, **more)

    monkeypatch.setattr("cifar.serving.inference.recording.store_feedback", counted)
    monkeypatch.setattr("cifar.records.database.TIMEOUT_SECONDS", 1)
    with app_with(tmp_path) as client, ThreadPoolExecutor(8) as pool:
        wait_until_ready(client)
        request_id = predict(client)["request_id"]
        assert give_feedback(client, request_id).status_code == 200
        with closing(sqlite3.connect(tmp_path / "var/records.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            monkeypatch.setattr("cifar.serving.inference.recording._MAX_WAIT_SECONDS", 0.05)
            refused = list(pool.map(lambda _: give_feedback(client, request_id).status_code, range(8)))
        assert set(refused) == {503}
        assert len(attempts) < 1 + 8, "some were refused without an attempt"
        until(lambda: give_feedback(client, request_id).status_code == 200, "feedback is stored again")


@pytest.mark.slow
def test_clients_of_gradio_can_give_feedback_too(server):
    """Their answers contain the request id for `POST /feedback`."""
    client = Client(server, verbose=False)
    answer = client.predict(handle_file(ROOT / "examples/cat.jpg"), api_name="/predict")
    with httpx2.Client(base_url=server) as rest:
        assert give_feedback(rest, answer["request_id"], "none").status_code == 200


def test_photos_are_stored_only_with_the_setting_for_it(tmp_path):
    """They are stored unchanged and once each, but not those of requests that are not recorded."""
    with app_with(tmp_path, keep_uploads=True) as client:
        wait_until_ready(client)
        for image in (CAT, CAT, encoded(noise(70, 50))):
            request_id = predict(client, image)["request_id"]
        predict(client, encoded(noise(20, 20)), params={"record": "false"})
        give_feedback(client, request_id)
    kept = {path.name: path.read_bytes() for path, _, _ in kept_images(Settings(records_folder=tmp_path / "var"))}
    assert set(kept.values()) == {CAT, encoded(noise(70, 50))}
    assert {row["digest"] for row in rows(tmp_path).values()} == set(kept)


def test_brightness_and_contrast_are_mean_and_standard_deviation_of_the_models_input():
    """Drift is measured with them."""
    import numpy as np

    random = np.random.default_rng(0)
    for pixels in (random.integers(0, 256, (32, 32, 3), np.uint8), np.full((96, 96, 1), 255, np.uint8)):
        expected = pixels.mean() / 255, pixels.std() / 255
        assert brightness_and_contrast(pixels) == pytest.approx(expected, abs=1e-6)


class Load:
    """Clients that classify images and give feedback on every tenth answer, until the server is killed."""

    def __init__(self, address: str) -> None:
        self.answered: list[str] = []
        self.acknowledged: dict[str, str] = {}
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,), daemon=True) for k in range(8)]
        for thread in self._threads:
            thread.start()

    def _ask(self, k: int) -> None:
        client = httpx2.Client(base_url=self._address, timeout=10)
        for i in range(1_000_000):
            if self._stop.is_set():
                return
            try:
                request_id = predict(client, headers={"X-Request-ID": f"k{k}-{i}"})["request_id"]
                self.answered.append(request_id)
                label = CLASS_NAMES[i % 10]
                if i % 10 == 0 and give_feedback(client, request_id, label).status_code == 200:
                    self.acknowledged[request_id] = label
            except httpx2.TransportError:  # its worker was killed
                client.close()
                client = httpx2.Client(base_url=self._address, timeout=10)
                time.sleep(0.01)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_workers_lose_no_prediction_and_no_feedback(tmp_path, kind):
    """Four workers under load are killed, one after the other and finally all at once. Every answer is in the database."""
    if kind == "postgresql":
        with real_postgres() as cluster:
            _kill_workers(tmp_path, CIFAR_DATABASE_URL=cluster.new_database("killed"))
    else:
        _kill_workers(tmp_path)


def _kill(worker: int) -> None:
    with suppress(ProcessLookupError):  # it has just been listed, and has ended since
        os.kill(worker, signal.SIGKILL)


def _kill_workers(folder: Path, **more: str) -> None:
    records = {"CIFAR_RECORDS_FOLDER": str(folder / "var")}
    with running(folder, workers=4, **records, **more) as server:
        load = Load(server.address)
        for turn in range(1, 6):
            until(lambda count=40 * turn: len(load.answered) > count)
            _kill(min(server.workers()))
        until(lambda: len(load.answered) > 250)
        for worker in server.workers():
            _kill(worker)
        load.end()
        with httpx2.Client(base_url=server.address) as client:
            wait_until_ready(client)
    found = rows(folder, database_url=more.get("CIFAR_DATABASE_URL"))
    assert len(load.acknowledged) > 10
    assert set(load.answered) - set(found) == set()
    for request_id, label in load.acknowledged.items():
        assert found[request_id]["feedback_label"] == label


@pytest.mark.slow
def test_feedback_finds_its_prediction_in_every_worker(tmp_path):
    """Each request to the four workers has a connection of its own, and there is no flush in between."""
    constants = {"cifar.serving.inference.recording.FLUSH_SECONDS": 3600}
    with running(tmp_path, workers=4, constants=constants, CIFAR_RECORDS_FOLDER=str(tmp_path / "var")) as server:
        for _ in range(40):
            with httpx2.Client(base_url=server.address) as one, httpx2.Client(base_url=server.address) as other:
                assert give_feedback(other, predict(one)["request_id"]).status_code == 200
    assert len(rows(tmp_path)) == 40
