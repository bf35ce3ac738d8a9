"""Versions, labels and traffic change while the server runs, without a restart and without a failed request."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from support.identities import bearer, visitor_cookie
from support.pictures import encoded, noise
from support.samples import copy_version, write_two_versions
from support.servers import CAT, EXAMPLES, NO_CACHE, wait_until_ready
from support.waiting import until_async

from app import create_app
from cifar.errors import VersionUnusable
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.models.rollout import RolloutLog
from cifar.serving.auth.api_keys import create
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.inference.shadow import ShadowComparison, Shadows
from cifar.settings import Settings


@pytest.fixture
def registry(tmp_path) -> Registry:
    """Version 1, and version 2 with its first two classes exchanged."""
    return Registry(write_two_versions(tmp_path / "registry"), "cifar_classifier")


@pytest.fixture
def log(registry) -> RolloutLog:
    return RolloutLog(registry)


def unchecked(_: object) -> None:
    """Accept every version as loadable."""


def loaded(registry: Registry, *, clock: Callable[[], float] = time.monotonic, **settings: object) -> LoadedVersions:
    versions = LoadedVersions(registry, Settings(**settings), clock=clock)
    versions.load_default()
    return versions


def add_version(registry: Registry, number: int) -> Path:
    """Add a version. Its folder is complete before it gets its name, as in an export."""
    hidden = copy_version(registry.base / "1", registry.base / ".export-test", version=number)
    return hidden.rename(registry.base / str(number))


def test_a_new_version_is_served_without_a_restart(registry):
    """Before the first promotion, the highest version is the stable one."""
    versions = loaded(registry)
    assert versions.default.number == 2
    add_version(registry, 3)
    versions.refresh()
    assert versions.default.number == versions.if_loaded(user="anybody").predictor.version.number == 3
    assert versions.problem == ""


def test_after_a_promotion_a_new_version_is_not_served_until_it_is_promoted(registry, log):
    """A promotion is a decision, which an export must not change."""
    log.promote(2, by="ada", check_loadable=unchecked)
    versions = loaded(registry)
    add_version(registry, 3)
    versions.refresh()
    assert versions.default.number == 2
    log.promote(3, by="ada", check_loadable=unchecked)
    versions.refresh()
    assert versions.default.number == 3


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_place(registry, caplog):
    """It is reported in /readyz, in one line of the log, and as a metric. Once repaired, it is served at the next look."""
    versions = loaded(registry)
    folder = add_version(registry, 3)
    whole = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(b"x")
    for _ in range(5):
        versions.refresh()
    assert versions.default.number == versions.get().predictor.version.number == 2
    assert "3/saved_model.pb is not the file that was exported" in versions.problem
    assert sum("cannot be served" in record.message for record in caplog.records) == 1
    with TestClient(create_app(Settings(registry=registry.base.parent, model_version=2), page=False)) as client:
        assert 'cifar_model_load_failed{name="cifar_classifier",version="3"} 1.0' in client.get("/metrics").text
    (folder / "saved_model.pb").write_bytes(whole)
    versions.refresh()
    assert (versions.default.number, versions.problem) == (3, "")


def test_a_version_that_failed_is_tried_again_after_a_minute_although_nothing_changed(registry):
    """Loading takes seconds, so not at each look; but what was missing may have been memory."""
    seconds, attempts = 0.0, []

    def load(version: Version) -> Predictor:
        attempts.append(version.number)
        raise VersionUnusable("no memory")

    versions = LoadedVersions(registry, Settings(), load=load, clock=lambda: seconds)
    versions.load_default()
    for at in (0.0, 59.0, 61.0, 62.0):
        seconds = at
        versions.refresh()
    assert attempts == [2, 2]


def test_a_version_that_arrives_file_by_file_is_served_at_the_first_look_after_it_is_whole(registry):
    """As by `cp -r` or `rsync`, where the manifest can come first."""
    versions = loaded(registry)
    whole = copy_version(registry.base / "1", registry.base / ".elsewhere", version=3)
    files = sorted((file for file in whole.rglob("*") if file.is_file()), key=lambda file: file.name != "manifest.json")
    for count, file in enumerate(files, 1):
        target = registry.base / "3" / file.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        versions.refresh()
        assert versions.default.number == (3 if count == len(files) else 2)


def test_a_served_version_that_is_removed_is_reported_and_not_replaced_by_an_older_one(registry, log):
    """An older version is less accurate, and nobody has chosen it. It is the same before and after the first promotion."""
    versions = loaded(registry)
    away = registry.base / "2"
    for _ in range(2):
        away.rename(registry.base / ".away")
        versions.refresh()
        assert versions.default.number == versions.if_loaded(user="anybody").predictor.version.number == 2
        assert "no longer has cifar_classifier version 2" in versions.problem
        (registry.base / ".away").rename(away)
        versions.refresh()
        assert versions.problem == ""
        log.promote(2, by="ada", check_loadable=unchecked)
        versions.refresh()


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_a_link_to_a_version_or_a_copy_stops_neither_the_start_nor_the_service(registry, kind):
    """It has no number of its own. It is refused, and the highest real version is served."""
    versions = loaded(registry)
    if kind == "link":
        (registry.base / "9").symlink_to(registry.base / "1")
    else:
        shutil.copytree(registry.base / "1", registry.base / "9")
    versions.refresh()
    assert (versions.default.number, versions.problem) == (2, "")
    assert loaded(registry).default.number == 2
    assert "holds cifar_classifier version 1" in registry.problems()["9"]
    with pytest.raises(VersionUnusable, match="must not be moved or renamed"):
        versions.get(9)


def test_a_problem_of_the_registry_tells_no_path_of_the_server(registry):
    """`/readyz`, which shows it, is open to all."""
    versions = loaded(registry)
    registry.base.rename(registry.base.with_name("away"))
    versions.refresh()
    assert "No version of cifar_classifier in the registry" in versions.problem
    assert str(registry.base.parent) not in versions.problem
    registry.base.mkdir()
    (registry.base / ".routing").write_text("not a folder")
    versions.refresh()
    assert versions.problem == "The registry cannot be read: Not a directory."


def test_a_registry_that_is_missing_for_a_while_does_not_stop_the_server(registry):
    """The registry may be on a network drive."""
    versions = loaded(registry)
    away = registry.base.rename(registry.base.with_name("away"))
    versions.refresh()
    assert versions.if_loaded(user="anybody").predictor.version.number == 2
    assert "No version of cifar_classifier" in versions.problem
    away.rename(registry.base)
    versions.refresh()
    assert versions.problem == ""


def test_when_a_canary_cannot_be_loaded_at_the_start_the_stable_version_gets_all_traffic(registry, log):
    """A restart must not fail because of a version that few users get."""
    log.promote(1, by="ada", check_loadable=unchecked)
    log.label("canary", 2, by="ada")
    log.split({"stable": 50, "canary": 50}, by="ada")
    (registry.base / "2" / "saved_model.pb").write_bytes(b"x")
    versions = loaded(registry)
    assert {versions.if_loaded(user=f"user {i}").predictor.version.number for i in range(50)} == {1}
    assert "cannot be served" in versions.problem


def test_a_live_version_is_never_dropped_from_memory(registry, log):
    """Two versions are live and the limit is two, but there is room for another one that is asked for by number."""
    log.label("canary", 1, by="ada")
    log.split({"stable": 50, "canary": 50}, by="ada")
    versions = loaded(registry, max_loaded_versions=2)
    add_version(registry, 3)
    add_version(registry, 4)
    for number in (3, 4):
        versions.get(number)
    assert [in_memory(number) for number in (1, 2, 3, 4)] == [1, 1, 0, 1]


def in_memory(number: int) -> float | None:
    """Return the metric that says whether a version is loaded."""
    labels = {"name": "cifar_classifier", "version": str(number), "engine": "litert"}
    return REGISTRY.get_sample_value("cifar_model_loaded", labels)


def test_over_http_a_user_gets_the_same_version_each_time_and_can_choose_another(registry, log):
    """The page's cookie decides, in every worker; `version=` overrides it; each answer names its version."""
    log.promote(1, by="ada", check_loadable=unchecked)
    log.label("canary", 2, by="ada")
    log.split({"stable": 50, "canary": 50}, by="ada")
    settings = Settings(registry=registry.base.parent, registry_poll_seconds=0.05, traffic_secret="s" * 32)
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client)

        def ask(user: int, **fields: object) -> int:
            cookie = {"Cookie": f"other=1; {visitor_cookie(user, settings)}"}
            answer = client.post("/predict", files={"image": CAT}, data=fields, headers=cookie)
            return answer.json()["model"]["version"]

        users = range(40)
        first = [ask(user) for user in users]
        assert set(first) == {1, 2}
        assert [ask(user) for user in users] == first
        assert {ask(user, version=1) for user in users} == {1}
        ready = client.get("/readyz").json()
        assert ready["traffic"] == {"stable, version 1": 50, "canary, version 2": 50}
        log.promote(2, by="ada", check_loadable=unchecked)
        deadline = time.monotonic() + 30
        while {ask(user) for user in users} != {2}:
            assert time.monotonic() < deadline
        models = client.post("/gradio_api/run/models", json={"data": []}).json()["data"][0]
        assert (models["default"], models["labels"], models["traffic"]) == (2, {"stable": 2}, {"stable": 100})


def shadowed(registry: Registry, log: RolloutLog) -> LoadedVersions:
    """Let version 1 answer all users, and version 2 answer in the background."""
    log.promote(1, by="ada", check_loadable=unchecked)
    log.label("canary", 2, by="ada")
    log.split({"stable": 100}, shadow={"canary": 100}, by="ada")
    return loaded(registry)


def test_a_shadow_version_answers_in_the_background_and_only_the_comparison_is_stored(registry, log):
    """The two versions disagree only on airplanes and cars. The user gets the answer of the stable version."""
    versions = shadowed(registry, log)
    comparisons: list[ShadowComparison] = []

    async def ask() -> None:
        shadows = Shadows(versions, on_comparison=comparisons.append)
        classifier = RecordedClassifier(Classifier(versions, Settings(), NO_CACHE), shadows=shadows)
        for name in ("airplane", "cat"):
            payload = (EXAMPLES / f"{name}.jpg").read_bytes()
            for record in (True, False):  # without a record there is no comparison either
                ada = Requester(name, "ada", frozenset())
                answer = await classifier.classify(payload, channel="rest", requester=ada, record=record)
                assert answer.version == 1
            await until_async(partial(is_idle, shadows))

    asyncio.run(ask())
    assert [(each.request_id, each.version, each.shadow_version, each.agrees) for each in comparisons] == [
        ("airplane", 1, 2, False),
        ("cat", 1, 2, True),
    ]
    assert 0 <= comparisons[1].distance < 0.3 < comparisons[0].distance <= 1


async def is_idle(shadows: Shadows) -> bool:
    return shadows.pending == 0


def test_shadow_images_beyond_the_limit_are_skipped(registry, log):
    """At most two images are compared at the same time. The others cost nothing."""
    versions = shadowed(registry, log)
    comparisons: list[ShadowComparison] = []

    async def ask() -> None:
        shadows = Shadows(versions, on_comparison=comparisons.append, max_images=2)
        classifier = RecordedClassifier(Classifier(versions, Settings(), NO_CACHE), shadows=shadows)

        async def classify(i: int) -> None:
            ada = Requester(str(i), "ada", frozenset())
            await classifier.classify(encoded(noise(32, 32, seed=i)), channel="rest", requester=ada, record=True)

        await asyncio.gather(*map(classify, range(10)))
        assert shadows.pending <= 2
        await until_async(partial(is_idle, shadows))

    asyncio.run(ask())
    assert 1 <= len(comparisons) < 10


@pytest.fixture
def administered(registry, tmp_path):
    """A server with API keys for an ordinary client and an administrator."""
    keys = tmp_path / "keys.json"
    bearers = {
        name: bearer(create(keys, name, scopes))
        for name, scopes in (("caller", ["predict"]), ("boss", ["predict", "admin"]))
    }
    settings = Settings(registry=registry.base.parent, api_keys_file=keys)
    with TestClient(create_app(settings, page=False), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client, bearers


def test_an_administrator_changes_the_rollout_and_the_log_names_the_author(administered):
    """Promote, label, split and roll back. Wrong requests get the usual error body, and others are refused."""
    client, bearers = administered

    def post(action: str, body: dict | None = None, who: str = "boss") -> httpx2.Response:
        return client.post(f"/admin/models/{action}", json=body, headers=bearers[who])

    assert post("promote", {"version": 1}, who="caller").status_code == 403
    assert post("promote", {"version": 1}).json()["labels"] == {"stable": 1}
    answer = client.post("/predict", files={"image": CAT}, headers=bearers["caller"]).json()
    assert answer["model"]["version"] == 1, "this process follows at once"
    assert post("label", {"label": "canary", "version": 2}).json()["labels"] == {"stable": 1, "canary": 2}
    assert post("traffic", {"traffic": {"stable": 90, "canary": 10}}).json()["traffic"] == {"stable": 90, "canary": 10}
    for action, body, status, code in (
        ("traffic", {"traffic": {"stable": 90}}, 422, "bad_parameter"),
        ("traffic", {"traffic": {"blue": 100}}, 404, "label_not_found"),
        ("promote", {"version": 9}, 404, "version_not_found"),
        ("promote", {"number": 1}, 422, "bad_parameter"),
        *(("promote", {"version": almost}, 422, "bad_parameter") for almost in (True, 1.0, "1")),
        ("traffic", {"traffic": {"stable": 100.0}}, 422, "bad_parameter"),
        ("label", {"label": "canary", "version": 9}, 404, "version_not_found"),
    ):
        refused = post(action, body)
        assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert post("rollback").json()["labels"]["stable"] == 2
    assert (post("rollback").status_code, post("rollback").json()["code"]) == (409, "nothing_to_roll_back")
    changes = client.get("/admin/models/log", headers=bearers["boss"]).json()
    assert [(change["by"], change["action"]) for change in changes] == [
        ("key:boss", "promote 1"),
        ("key:boss", "label canary=2"),
        ("key:boss", "traffic stable=90 canary=10"),
        ("key:boss", "rollback to 2"),
    ]
    assert client.get("/admin/models", headers=bearers["boss"]).json() == changes[-1]


def test_without_sign_in_administration_is_refused(registry):
    """Otherwise anybody could change the rollout. The message names a setting that turns sign-in on."""
    client = TestClient(create_app(Settings(registry=registry.base.parent), page=False))
    for method, path in (("GET", ""), ("GET", "/log"), ("POST", "/promote"), ("POST", "/rollback")):
        refused = client.request(method, f"/admin/models{path}", json={"version": 1} if path == "/promote" else None)
        assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
        assert "CIFAR_API_KEYS_FILE" in refused.json()["error"]
