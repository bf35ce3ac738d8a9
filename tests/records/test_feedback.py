"""Predictions recorded and feedback taken by a running server: every way in, every refusal, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from support.pictures import encoded, noise
from support.postgres import real_postgres
from support.servers import running, wait_until_ready

from app import create_app
from cifar import CLASS_NAMES
from cifar.records.database import open_engine
from cifar.records.images import kept_images
from cifar.records.reader import read_predictions
from cifar.serving.auth.api_keys import create
from cifar.serving.inference.recording import statistics
from cifar.settings import ROOT, Settings

CAT = (ROOT / "examples" / "cat.jpg").read_bytes()


def app_with(folder: Path, **more: object) -> TestClient:
    settings = Settings(records_folder=folder / "var", records_flush_seconds=0.05, **more)
    return TestClient(create_app(settings), raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path) -> Iterator[TestClient]:
    """The whole app in this process, with records of its own."""
    with app_with(tmp_path) as client:
        wait_until_ready(client)
        yield client


def predict(client: TestClient | httpx.Client, image: bytes = CAT, **more) -> dict:
    response = client.post("/predict", files={"image": image}, **more)
    assert response.status_code == 200, response.text
    return response.json()


def say(client: TestClient | httpx.Client, request_id: object, label: object = "dog", **more) -> httpx.Response:
    headers = more.pop("headers", None)
    return client.post("/feedback", json={"request_id": request_id, "label": label, **more}, headers=headers)


def rows(folder: Path, **more: object) -> dict[str, dict]:
    """What is in the records, by request id."""
    engine = open_engine(Settings(records_folder=folder / "var", **more))
    found = {row["request_id"]: row for row in read_predictions(engine)}
    engine.dispose()
    return found


def test_feedback_at_once_after_the_answer_is_stored_with_it(client, tmp_path):
    """Nobody has to wait for a flush; what was stored comes back, and saying it again replaces it."""
    answer = predict(client)
    first = say(client, answer["request_id"], note="whiskers")
    assert first.status_code == 200
    assert first.json() == {
        "request_id": answer["request_id"],
        "label": "dog",
        "note": "whiskers",
        "at": first.json()["at"],
    }
    assert say(client, answer["request_id"], "none").json()["note"] == ""
    row = rows(tmp_path)[answer["request_id"]]
    assert (row["feedback_label"], row["feedback_note"]) == ("none", "")
    assert row["scores"] == pytest.approx(answer["class_scores"], abs=1e-6)
    assert (row["label"], row["model"], row["version"]) == ("cat", "cifar_classifier", answer["model"]["version"])
    assert row["score"] == pytest.approx(answer["confidence"], abs=1e-4)
    assert row["ood_score"] == pytest.approx(answer["ood_score"], abs=1e-4)
    assert row["in_distribution"] is answer["in_distribution"] is True
    assert row["route"] == "rest"


def test_no_address_no_key_and_no_photo_is_in_the_records(tmp_path):
    """A keyed hash stands for who asked; the files hold nothing else of them, whatever they sent."""
    keys = tmp_path / "keys.json"
    key = create(keys, "visible-name", ["predict", "feedback"])
    photo = encoded(noise(60, 60, seed=3), "JPEG")
    with app_with(tmp_path, api_keys_file=keys) as client:
        client.headers["X-API-Key"] = key
        wait_until_ready(client)
        say(client, predict(client, photo)["request_id"])
    content = b"".join(file.read_bytes() for file in (tmp_path / "var").rglob("*") if file.is_file())
    assert b"predictions" in content
    for secret in (b"visible-name", key.encode(), b"testclient", photo[100:200]):
        assert secret not in content


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
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
    ],
)
def test_wrong_feedback_gets_a_clear_error_and_changes_nothing(client, tmp_path, body, status, code):
    """The state is as before."""
    request_id = predict(client)["request_id"]
    say(client, request_id, "frog", note="first")
    content = json.dumps(body).replace('"ID"', f'"{request_id}"')
    response = client.post("/feedback", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    row = rows(tmp_path)[request_id]
    assert (row["feedback_label"], row["feedback_note"]) == ("frog", "first")


def test_who_chooses_somebody_elses_id_changes_neither_answer_nor_feedback(tmp_path):
    """With sign-in the id alone opens nothing: only who asked, or an administrator, may speak of an answer."""
    keys = tmp_path / "keys.json"
    scopes = {"ann": ["predict", "feedback"], "eve": ["predict", "feedback"], "mute": ["predict"]}
    key = {name: {"X-API-Key": create(keys, name, which)} for name, which in scopes.items()}
    key["root"] = {"X-API-Key": create(keys, "root", ["feedback", "admin"])}
    with app_with(tmp_path, api_keys_file=keys) as client:
        wait_until_ready(client)
        chosen = {"X-Request-ID": "order-7"}
        predict(client, headers={**key["ann"], **chosen})
        assert say(client, "order-7", "frog", headers=key["ann"]).status_code == 200
        assert predict(client, encoded(noise()), headers={**key["eve"], **chosen})["request_id"] == "order-7"
        refused = say(client, "order-7", "ship", headers=key["eve"])
        assert (refused.status_code, refused.json()["code"]) == (404, "request_not_found")
        assert say(client, "order-7", "ship", headers=key["mute"]).json()["code"] == "missing_scope"
        assert say(client, "order-7", "ship").status_code == 401
        assert rows(tmp_path)["order-7"]["label"] == "cat"
        assert rows(tmp_path)["order-7"]["feedback_label"] == "frog"
        assert say(client, "order-7", "deer", headers=key["root"]).status_code == 200
        assert rows(tmp_path)["order-7"]["feedback_label"] == "deer"


def test_only_single_predictions_are_recorded_and_only_where_they_may_be(client, tmp_path):
    """Not batches, not explanations, not what asks to be left out."""
    files = {"image": CAT}
    assert client.post("/explain", files=files).status_code == 200
    left_out = predict(client, params={"record": "false"})["request_id"]
    assert predict(client, data={"record": "false"})["request_id"] != left_out
    assert say(client, left_out).status_code == 404
    wrong = client.post("/predict", files=files, params={"record": "maybe"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_parameter")
    kept = predict(client)["request_id"]
    assert say(client, kept).status_code == 200
    assert set(rows(tmp_path)) == {kept}


def test_with_records_off_nothing_is_written_and_nothing_is_asked(tmp_path):
    """`CIFAR_RECORDS=false`: no folder, no route, no buttons."""
    with app_with(tmp_path, records=False) as client:
        wait_until_ready(client)
        assert say(client, predict(client)["request_id"]).status_code in {404, 405}
        assert "/feedback" not in client.get("/openapi.json").json()["paths"]
    assert not (tmp_path / "var").exists()


def test_where_the_folder_cannot_be_written_answers_go_on(tmp_path, caplog):
    """As in a container whose root is read-only: feedback is refused with its code, readiness names it, one line is logged."""
    (tmp_path / "var").write_text("a file in the way")
    with app_with(tmp_path) as client:
        wait_until_ready(client)
        for _ in range(3):
            refused = say(client, predict(client)["request_id"])
            assert (refused.status_code, refused.json()["code"]) == (503, "records_unavailable")
            assert int(refused.headers["Retry-After"]) > 0
        assert client.get("/readyz").json()["without"] == ["records"]
        assert "cifar_records_dropped_total" in client.get("/metrics").text
    assert len([record for record in caplog.records if "records is down" in record.getMessage()]) == 1


@pytest.mark.slow
def test_while_postgresql_is_away_answers_go_on_and_feedback_says_so(tmp_path):
    """And once it is back, what was answered meanwhile can be spoken of."""
    with (
        real_postgres() as cluster,
        app_with(tmp_path, database_url=cluster.new_database("x"), records_timeout_seconds=1) as client,
    ):
        wait_until_ready(client)
        assert say(client, predict(client)["request_id"]).status_code == 200
        assert say(client, "never-was").json()["code"] == "request_not_found"
        cluster.stop()
        meanwhile = predict(client)["request_id"]
        refused = say(client, meanwhile)
        assert (refused.status_code, refused.json()["code"]) == (503, "records_unavailable")
        until(lambda: client.get("/readyz").json()["without"] == ["records"])
        cluster.start()
        until(lambda: client.get("/readyz").json()["without"] == [])
        assert say(client, meanwhile).status_code == 200


def until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_gradios_clients_can_say_what_was_right_too(server):
    """Their answers carry the request's id, for `POST /feedback`."""
    client = Client(server, verbose=False)
    answer = client.predict(handle_file(ROOT / "examples/cat.jpg"), api_name="/predict")
    with httpx.Client(base_url=server) as rest:
        assert say(rest, answer["request_id"], "none").status_code == 200


def test_the_photos_are_kept_only_where_the_setting_says_so(tmp_path):
    """Byte by byte as they came, once each, and never those of requests that are not recorded."""
    with app_with(tmp_path, keep_uploads=True) as client:
        wait_until_ready(client)
        for image in (CAT, CAT, encoded(noise(70, 50))):
            request_id = predict(client, image)["request_id"]
        predict(client, encoded(noise(20, 20)), params={"record": "false"})
        say(client, request_id)
    kept = {path.name: path.read_bytes() for path, _, _ in kept_images(Settings(records_folder=tmp_path / "var"))}
    assert set(kept.values()) == {CAT, encoded(noise(70, 50))}
    assert {row["digest"] for row in rows(tmp_path).values()} == set(kept)


def test_brightness_and_contrast_are_mean_and_deviation_of_what_the_model_saw():
    """What drift is measured by."""
    import numpy as np

    random = np.random.default_rng(0)
    for pixels in (random.integers(0, 256, (32, 32, 3), np.uint8), np.full((96, 96, 1), 255, np.uint8)):
        wanted = pixels.mean() / 255, pixels.std() / 255
        assert statistics(pixels) == pytest.approx(wanted, abs=1e-5)


class Load:
    """Clients that ask, and say what was right of every tenth answer, until the server is killed."""

    def __init__(self, address: str) -> None:
        self.answered: list[str] = []
        self.acknowledged: dict[str, str] = {}
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(8)]
        for thread in self._threads:
            thread.start()

    def _ask(self, k: int) -> None:
        client = httpx.Client(base_url=self._address, timeout=10)
        for i in range(1_000_000):
            if self._stop.is_set():
                return
            try:
                request_id = predict(client, headers={"X-Request-ID": f"k{k}-{i}"})["request_id"]
                self.answered.append(request_id)
                label = CLASS_NAMES[i % 10]
                if i % 10 == 0 and say(client, request_id, label).status_code == 200:
                    self.acknowledged[request_id] = label
            except httpx.TransportError:  # its worker was killed
                client.close()
                client = httpx.Client(base_url=self._address, timeout=10)
                time.sleep(0.01)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_workers_lose_no_answer_and_no_feedback(tmp_path, kind):
    """Four workers under load, killed again and again, at last all at once: whatever a client was told is in the database."""
    if kind == "postgresql":
        with real_postgres() as cluster:
            _kill_workers(tmp_path, CIFAR_DATABASE_URL=cluster.new_database("killed"))
    else:
        _kill_workers(tmp_path)


def _kill_workers(folder: Path, **more: str) -> None:
    records = {"CIFAR_RECORDS_FOLDER": str(folder / "var"), "CIFAR_RECORDS_FLUSH_SECONDS": "0.5"}
    with running(folder, workers=4, **records, **more) as server:
        load = Load(server.address)
        for turn in range(1, 6):
            until(lambda most=40 * turn: len(load.answered) > most)
            os.kill(min(server.workers()), signal.SIGKILL)
        until(lambda: len(load.answered) > 250)
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        load.end()
        with httpx.Client(base_url=server.address) as client:
            wait_until_ready(client)
    found = rows(folder, database_url=more.get("CIFAR_DATABASE_URL"))
    assert len(load.acknowledged) > 10
    assert set(load.answered) - set(found) == set()
    for request_id, label in load.acknowledged.items():
        assert found[request_id]["feedback_label"] == label


@pytest.mark.slow
def test_feedback_finds_its_answer_whichever_worker_is_asked(tmp_path):
    """Each call on a new connection, and no flush in between: four workers, one memory."""
    records = {"CIFAR_RECORDS_FOLDER": str(tmp_path / "var"), "CIFAR_RECORDS_FLUSH_SECONDS": "3600"}
    with running(tmp_path, workers=4, **records) as server:
        for _ in range(40):
            with httpx.Client(base_url=server.address) as one, httpx.Client(base_url=server.address) as other:
                assert say(other, predict(one)["request_id"]).status_code == 200
    assert len(rows(tmp_path)) == 40
