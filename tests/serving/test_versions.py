"""`cifar.serving.inference.loaded` and `classify`: several versions, concurrent requests, and failures of loading."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from support.pictures import encoded, noise
from support.samples import change_manifest, copy_version, write_two_versions
from support.servers import wait_until_ready
from support.waiting import until

from app import create_app
from cifar.errors import NotReady, VersionNotFound, VersionUnusable
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.models.rollout import RolloutLog
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.process.metrics import WORKERS_READY, exposition
from cifar.settings import Settings


@pytest.fixture
def registry(tmp_path: Path, small_version) -> Registry:
    """Versions 1 to 4 of one network."""
    for number in range(1, 5):
        copy_version(small_version.path, tmp_path / "shapes" / str(number), version=number)
    return Registry(tmp_path, "shapes")


@pytest.fixture
def versions(registry) -> LoadedVersions:
    """Version 1 loaded as the default, and room for two more."""
    versions = LoadedVersions(registry, Settings(max_loaded_versions=3, model_version=1))
    versions.load_default()
    return versions


def test_a_version_is_loaded_once_and_kept(versions):
    """The second request does not wait."""
    assert versions.get(2) is versions.get(2)
    assert versions.get(None) is versions.get(1)


def test_the_least_recently_used_version_is_dropped_and_the_default_never(versions):
    """At most three versions stay in memory. A dropped one is freed when no request uses it any more."""
    two = weakref.ref(versions.get(2))
    three = weakref.ref(versions.get(3))
    assert versions.get(2) is two()
    versions.get(4)
    gc.collect()
    assert three() is None
    assert two() is not None
    assert versions.get(1).predictor.version.number == 1


def test_concurrent_requests_for_a_new_version_load_it_once(registry):
    """Ten threads wait for the same load."""
    loads = []

    def load(version: Version) -> Predictor:
        loads.append(version.number)
        return Predictor.load(version)

    versions = LoadedVersions(registry, Settings(max_loaded_versions=3, model_version=1), load=load)
    versions.load_default()
    threads = [threading.Thread(target=versions.get, args=(3,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [1, 3]


def test_a_version_in_memory_does_not_wait_for_one_that_is_being_loaded(registry):
    """Otherwise callers who ask for versions in turn hold up everybody for seconds."""
    loading, go_on = threading.Event(), threading.Event()

    def load(version: Version) -> Predictor:
        if version.number == 4:
            loading.set()
            go_on.wait(60)
        return Predictor.load(version)

    versions = LoadedVersions(registry, Settings(max_loaded_versions=4, model_version=1), load=load)
    versions.load_default()
    versions.get(2)
    slow = threading.Thread(target=versions.get, args=(4,))
    slow.start()
    try:
        assert loading.wait(60)
        with ThreadPoolExecutor(2) as pool:
            found = [pool.submit(versions.get, number).result(timeout=30) for number in (1, 2)]
        assert [served.predictor.version.number for served in found] == [1, 2]
    finally:
        go_on.set()
        slow.join()


def test_a_dropped_version_has_no_series_in_the_metrics(registry):
    """Callers may ask for each of hundreds of versions once, and each has thirty series."""
    for number in (41, 42):  # numbers that no other test of this process has loaded
        copy_version(registry.base / "1", registry.base / str(number), version=number)
    versions = LoadedVersions(registry, Settings(max_loaded_versions=2, model_version=1))
    versions.load_default()
    shown = []
    for number in (41, 42, 41):
        versions.get(number)
        text = exposition()[0].decode()
        shown.append(
            {other for other in (41, 42) if f'cifar_predictions_total{{label="star",version="{other}"}}' in text}
        )
        assert 'cifar_confidence_bucket{le="0.5",version="1"}' in text
    assert shown == [{41}, {42}, {41}]


def test_no_version_is_served_before_the_default_is_loaded(registry):
    """The server runs, but is not ready."""
    versions = LoadedVersions(registry, Settings(max_loaded_versions=1, model_version=1))
    with pytest.raises(NotReady):
        versions.get(2)


def test_the_reason_why_the_default_cannot_be_loaded_is_given_on_each_request(registry):
    """Its file was changed after the check at start. Each request gets a new exception, so no traceback grows."""
    versions = LoadedVersions(registry, Settings(max_loaded_versions=1, model_version=1))
    (registry.base / "1" / "saved_model.pb").write_bytes(b"x")
    versions.load_default()
    errors = []
    for _ in range(3):
        with pytest.raises(VersionUnusable, match=r"shapes/1/saved_model\.pb is not the file") as caught:
            versions.get()
        errors.append(caught.value)
    assert len(set(map(id, errors))) == 3


def test_an_unexpected_failure_of_loading_is_reported_as_well(registry):
    """A missing library must not be reported as a model that is still being loaded."""

    def fail(_: Version) -> Predictor:
        raise ImportError("no TensorFlow here")

    versions = LoadedVersions(registry, Settings(max_loaded_versions=1, model_version=1), load=fail)
    versions.load_default()
    with pytest.raises(VersionUnusable, match="An internal error"):
        versions.check_ready()


def test_a_version_whose_answers_do_not_fit_its_manifest_is_not_loaded(registry):
    """The checksums are correct, the class names are not. The warm-up finds this before the first request."""
    change_manifest(registry.base / "2", class_names=["circle", "square"])
    with pytest.raises(VersionUnusable, match="shapes version 2 is as it was exported, but litert cannot run it"):
        Predictor.load(registry.get(2))


def test_a_client_chooses_the_version_and_the_answer_names_it(registry):
    """Over HTTP: the pinned default, another version by number, and an unknown one. The page offers all versions."""
    (registry.base / "3" / "saved_model.pb").write_bytes(b"x")
    settings = Settings(registry=registry.base.parent, model_name="shapes", model_version=2, default_top_k=9)
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client)

        def ask(**fields):
            return client.post("/predict", files={"image": encoded(noise())}, data=fields)

        assert ask().json()["model"] == {"name": "shapes", "version": 2}
        assert len(ask().json()["top_k"]) == 3, "a default of nine labels becomes all three"
        assert ask(version=4).json()["model"]["version"] == 4
        assert ask(version=9).status_code == 404
        broken = ask(version=3)
        assert (broken.status_code, broken.json()["code"]) == (503, "version_unusable")
        assert str(registry.base) not in broken.text
        page_load = client.post("/gradio_api/run/predict", json={"data": [None], "fn_index": _load_event(client)})
        choices = page_load.json()["data"][0]["choices"]
        assert [number for _, number in choices] == ["", 4, 3, 2, 1], (
            "the first choice is the version that the rollout assigns to the visitor"
        )


def _load_event(client: TestClient) -> int:
    """Return the number of the event that runs when the page opens."""
    dependencies = client.get("/config").json()["dependencies"]
    return next(d["id"] for d in dependencies if any(target[1] == "load" for target in d["targets"]))


def test_a_page_from_a_listed_origin_may_read_answers_and_errors(registry):
    """The setting CIFAR_CORS_ORIGINS."""
    settings = Settings(
        registry=registry.base.parent, model_name="shapes", cors_origins=["https://a.example"], max_body_bytes=2048
    )
    client = TestClient(create_app(settings))
    for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
        for response in (
            client.get("/health", headers={"Origin": origin}),
            client.post("/predict", content=b"x" * 3000, headers={"Origin": origin}),
        ):
            assert response.headers.get("access-control-allow-origin") == allowed


def test_an_unexpected_error_is_a_500_with_a_request_id_and_no_details(registry, monkeypatch):
    """The traceback is in the log. The client gets the id under which the operator finds it."""

    class FailingClassifier(Classifier):
        async def classify(self, *_, **__):
            raise RuntimeError("secret detail")

    monkeypatch.setattr("app.Classifier", FailingClassifier)
    settings = Settings(registry=registry.base.parent, model_name="shapes")
    client = TestClient(create_app(settings), raise_server_exceptions=False)
    response = client.post("/predict", files={"image": b"x"}, headers={"X-Request-ID": "case-7"})
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert response.json()["request_id"] == response.headers["x-request-id"] == "case-7"
    assert "secret" not in response.text
    by_gradio = client.post("/gradio_api/run/predict", json={"data": [None, None, None]})
    assert by_gradio.status_code == 500
    assert "secret" not in by_gradio.text


def test_a_number_without_a_version_is_not_found(versions):
    """Only existing folders of the registry are loaded."""
    for number in (0, -1, 99):
        with pytest.raises(VersionNotFound):
            versions.get(number)


def test_a_promotion_can_make_a_process_ready_that_could_not_load_its_version(tmp_path):
    """The process loads the promoted version without a restart, and the metric for the alert on unready workers recovers."""
    registry = Registry(write_two_versions(tmp_path), "cifar_classifier")
    next((registry.base / "2").rglob("*.pb")).write_bytes(b"changed")
    WORKERS_READY.set(0)
    versions = LoadedVersions(registry, Settings(registry=tmp_path, registry_poll_seconds=0.05))
    versions.load_default()
    with pytest.raises(VersionUnusable):
        versions.check_ready()
    ended = threading.Event()
    following = threading.Thread(target=versions.follow, args=[ended])
    following.start()
    try:
        RolloutLog(registry).promote(1, by="ada", check_loadable=lambda _: None)
        until(lambda: versions.ready)
    finally:
        ended.set()
        following.join()
    assert REGISTRY.get_sample_value("cifar_workers_ready") == 1
