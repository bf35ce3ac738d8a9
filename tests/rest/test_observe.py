"""Request metrics and logs: few labels, one line for each request, no text of a caller in it."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.servers import CAT
from support.shipped import NEWEST

from cifar import CLASS_NAMES
from cifar.records.database import migrate, open_engine
from cifar.serving.front.observe import Observe
from cifar.serving.process.logs import TextFormatter, log_config, request_id
from cifar.serving.routes import OTHER, rule_of
from cifar.settings import Settings


def series(client, sample_name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of that name with these labels, by the values of their other labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == sample_name]
    return {
        tuple(value for key, value in sorted(sample.labels.items()) if key not in labels): sample.value
        for sample in samples
        if labels.items() <= sample.labels.items()
    }


def test_every_route_of_the_api_is_a_label(api):
    """Each route has its own series on the dashboard."""
    paths = api.get("/openapi.json").json()["paths"]
    assert len(paths) > 15
    for path in paths:
        assert rule_of(re.sub(r"\{[^}]*\}", "7", path)).label == path


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/", "/"),
        ("/config/", "/config"),
        ("/gradio_api/heartbeat/abc-123", "/gradio_api/heartbeat/{session}"),
        ("/gradio_api/call/predict/1-abc", "/gradio_api/call/{name}/{event}"),
        ("/gradio_api/file=/tmp/cifar-space/a/b.jpg", "/gradio_api/file={path:path}"),
        ("/assets/index-abc.js", "/assets/{path:path}"),
        ("/predict/3", OTHER),
        ("/PREDICT", OTHER),
        ("", "/"),
        ("//predict", OTHER),
        ("/gradio_api/heartbeat/a/b", OTHER),
    ],
)
def test_a_path_is_counted_under_the_label_of_its_route(path, template):
    """Sessions, events and files are parts of paths, and each would be another label."""
    assert rule_of(path).label == template


def test_unknown_paths_and_methods_share_one_series(api):
    """A scan of a thousand addresses must not fill Prometheus."""
    for method in ("GET", "BREW", "PROPFIND"):
        api.request(method, "/nothing")
    series(api, "request_count_total")  # itself a request
    before = set(series(api, "request_count_total"))
    for i in range(100):
        api.get(f"/nothing/{i}")
        api.request("BREW", f"/{i}")
    assert set(series(api, "request_count_total")) == before


def test_a_request_is_counted_by_endpoint_and_status_and_timed(api):
    """This holds for successes, errors and wrong methods."""

    def counted() -> dict[tuple[str, ...], float]:
        return series(api, "request_count_total", endpoint="/predict")

    def timed() -> float:
        return sum(series(api, "request_latency_seconds_count", endpoint="/predict", method="POST").values())

    counts, times = counted(), timed()
    api.post("/predict", files={"image": CAT})
    api.post("/predict", files={"image": b"no image"})
    api.post("/predict")
    api.get("/predict")
    new = {key: value - counts.get(key, 0) for key, value in counted().items() if value != counts.get(key, 0)}
    assert new == {("POST", "200"): 1, ("POST", "415"): 1, ("POST", "400"): 1, ("GET", "405"): 1}
    assert timed() == times + 3


def test_answers_are_counted_by_version_and_label_with_their_confidence(api):
    """The dashboard needs these counts. Classes that were never predicted are 0."""
    before = series(api, "cifar_predictions_total", version=str(NEWEST))
    sure = series(api, "cifar_confidence_sum", version=str(NEWEST))[()]
    answer = api.post("/predict", files={"image": CAT}).json()
    after = series(api, "cifar_predictions_total", version=str(NEWEST))
    assert {(name,) for name in CLASS_NAMES} <= set(after)
    assert {label: n - before[label] for label, n in after.items() if n != before[label]} == {("cat",): 1}
    assert series(api, "cifar_confidence_sum", version=str(NEWEST))[()] - sure == pytest.approx(
        answer["confidence"], abs=1e-4
    )


def test_a_loaded_version_is_counted_with_its_engine_and_its_loading_time(api):
    """Operators can see which version each worker has loaded."""
    assert series(api, "cifar_model_loaded", name="cifar_classifier", version=str(NEWEST)) == {("litert",): 1}
    assert series(api, "cifar_model_load_seconds_count", version=str(NEWEST), engine="litert")[()] >= 1
    assert series(api, "cifar_workers")[()] == series(api, "cifar_workers_ready")[()] == 1


def ask(app, *, access_log: bool = True, log_addresses: bool = False, **scope: object) -> None:
    """Send one request to an app behind `Observe`."""

    async def send(_: object) -> None:
        pass

    request = {"type": "http", "method": "POST", "path": "/predict", "headers": [], **scope}
    asyncio.run(Observe(app, access_log=access_log, log_addresses=log_addresses)(request, None, send))


async def _answer(_scope, _receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _fail(_scope, _receive, _send) -> None:
    raise RuntimeError


async def _leave(_scope, _receive, _send) -> None:
    pass


@pytest.mark.parametrize(("app", "status"), [(_answer, 200), (_fail, 500), (_leave, 499)])
def test_a_request_without_an_answer_is_counted(caplog, app, status):
    """An exception that is not handled is a 500; a client that disconnects before the answer is a 499."""
    caplog.set_level(logging.INFO, "cifar.access")
    try:
        ask(app)
    except RuntimeError:
        assert status == 500
    (record,) = caplog.records
    assert (record.method, record.endpoint, record.status) == ("POST", "/predict", status)
    assert record.seconds >= 0


def test_a_request_that_another_worker_forwards_is_counted_by_that_worker_only(caplog):
    """Otherwise each call of the page would count twice."""
    caplog.set_level(logging.INFO, "cifar.access")
    ask(_answer, state={"from_worker": True})
    assert caplog.records == []
    ask(_answer)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/assets/index.js", "/favicon.ico"])
def test_probes_and_assets_are_logged_at_debug_level_only(caplog, path):
    """A probe each second would hide the other lines."""
    caplog.set_level(logging.DEBUG, "cifar.access")
    ask(_answer, path=path, method="GET")
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_the_access_log_can_be_turned_off(caplog):
    """A proxy may have its own log."""
    caplog.set_level(logging.DEBUG, "cifar.access")
    ask(_answer, access_log=False)
    assert caplog.records == []


@pytest.mark.parametrize(("log_addresses", "ending"), [(False, "by anonymous"), (True, "by anonymous at 192.0.2.7")])
def test_the_address_of_a_client_is_logged_only_if_the_setting_says_so(caplog, log_addresses, ending):
    """An address is personal data; an operator who needs it to find who is refused with 429 decides that."""
    caplog.set_level(logging.INFO, "cifar.access")
    ask(_answer, log_addresses=log_addresses, client=("192.0.2.7", 40000))
    (record,) = caplog.records
    assert (record.caller, getattr(record, "address", None)) == ("anonymous", "192.0.2.7" if log_addresses else None)
    assert record.getMessage().endswith(ending)


@pytest.fixture
def logged(capsys, monkeypatch):
    """A function that logs with our configuration and returns the output. The configuration is reset afterwards."""
    # `dictConfig` closes all handlers, and TensorFlow's would close pytest's stderr.
    monkeypatch.setattr(logging, "_handlerList", [])
    root, ours = logging.getLogger(), logging.getLogger("cifar")
    before = root.handlers[:], root.level, ours.level

    def write(format: str, level: int, message: str, *args: object, **keywords: object) -> str:
        capsys.readouterr()
        logging.config.dictConfig(log_config(Settings(log_format=format)))
        logging.getLogger("cifar.test").log(level, message, *args, **keywords)
        return capsys.readouterr().err

    yield write
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


FORGED = "no\n2026-11-22 10:00:00,000 ERROR cifar: forged\r\x1b[2K\x9b31m\u2028\u202e\x00\ud800 end"


def test_a_text_log_shows_one_event_for_each_unindented_line(logged):
    """Line feeds in a message are indented and control characters are escaped, so no event can be forged."""
    text = logged("text", logging.WARNING, "got %s", FORGED)
    first, second = text.rstrip("\n").split("\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING cifar\.test: got no", first)
    assert second == r"    2026-11-22 10:00:00,000 ERROR cifar: forged\r\x1b[2K\x9b31m\u2028\u202e\x00\ud800 end"


def test_a_json_log_has_one_line_for_each_event(logged):
    """It holds time, level, logger, request id and message."""
    request_id.set("an-id")
    text = logged("json", logging.WARNING, "got %s", FORGED, extra={"status": 404})
    request_id.set("")
    assert text.isascii()
    assert text.count("\n") == 1
    event = json.loads(text)
    assert event["message"] == f"got {FORGED}"
    expected = {"level": "WARNING", "logger": "cifar.test", "request_id": "an-id", "status": 404}
    assert {name: event[name] for name in expected} == expected
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", event["time"])


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_traceback_of_an_exception_belongs_to_its_event(logged, format):
    """In JSON it is a field; in text each of its lines is indented."""
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        text = logged(format, logging.ERROR, "failed", exc_info=error)
    assert "Traceback" in text
    lines = text.rstrip("\n").split("\n")
    assert [line for line in lines if not line.startswith("    ")] == lines[:1]


def test_debug_messages_of_libraries_are_not_logged():
    """Pillow would log the tags of an image, and the form parser parts of the request."""
    config = log_config(Settings(log_level="debug"))
    assert config["root"]["level"] == "INFO"
    verbose = [name for name, options in config["loggers"].items() if options.get("level") == "DEBUG"]
    assert verbose == ["cifar"]


def test_of_alembics_lines_only_those_about_a_migration_are_logged(logged, capsys, tmp_path):
    """Alembic logs four more at each start."""
    logged("text", logging.INFO, "configured")
    for _ in range(2):
        migrate(open_engine(Settings(records_folder=tmp_path)), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert "INFO alembic.runtime.migration: Running upgrade  -> 0001" in lines[0]
    assert [line for line in lines if "INFO alembic.runtime.migration: Running upgrade" not in line] == []


def test_the_tested_text_formatter_is_the_configured_one():
    """Otherwise the tests above would test unused code."""
    assert log_config(Settings())["formatters"]["text"] == {"()": TextFormatter}
