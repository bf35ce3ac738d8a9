"""Traces: the header `traceparent`, and the server under OpenTelemetry."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.servers import CAT, Server, free_port, running, wait_until_ready

from cifar.settings import ROOT

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def exemplars(client: TestClient | httpx2.Client) -> dict[str, str]:
    """Return the trace ids of the exemplars of the latency, by route."""
    response = client.get("/metrics", headers={"Accept": OPENMETRICS})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if family.name == "request_latency_seconds" and sample.exemplar:
                assert sample.exemplar.value <= float(sample.labels["le"])
                found[sample.labels["endpoint"]] = sample.exemplar.labels["trace_id"]
    return found


def test_the_trace_of_a_request_is_in_its_error_and_in_the_exemplars(api):
    """From a slow bucket on the dashboard, or from an error that a user quotes, one click leads to the trace."""
    failed = api.post("/predict", headers={"traceparent": PARENT})
    assert failed.json()["trace_id"] == TRACE
    assert api.get("/v2/models/other", headers={"traceparent": PARENT}).json()["trace_id"] == TRACE
    found = exemplars(api)
    assert found["/predict"] == found["/v2/models/{name}"] == TRACE


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        TRACE,
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        PARENT.upper(),
    ],
)
def test_an_invalid_traceparent_is_ignored(api, value):
    """The standard says so; and the value must not reach the log."""
    assert "trace_id" not in api.post("/predict", headers={"traceparent": value}).json()


def test_a_later_version_of_the_header_is_read(api):
    """The standard lets later versions add fields at the end."""
    failed = api.post("/predict", headers={"traceparent": f"01-{TRACE}-b7ad6b7169203331-01-more"})
    assert failed.json()["trace_id"] == TRACE


def test_metrics_without_a_wish_are_in_the_text_format(api):
    """Scrapers that do not know OpenMetrics keep working."""
    for accept in ("", "*/*", "text/plain"):
        response = api.get("/metrics", headers={"Accept": accept})
        assert response.headers["content-type"].startswith("text/plain; version=")
        assert "# {" not in response.text


@pytest.mark.slow
def test_log_lines_carry_the_trace_and_each_worker_shows_its_exemplars(tmp_path):
    """With several workers the library keeps no exemplars."""
    with running(tmp_path, workers=2, CIFAR_LOG_FORMAT="json") as server:
        with httpx2.Client(base_url=server.address) as client:  # one connection, and so one worker
            client.post("/predict", files={"image": CAT}, headers={"traceparent": PARENT})
            assert exemplars(client)["/predict"] == TRACE
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert [line["endpoint"] for line in lines if line.get("trace_id") == TRACE] == ["/predict"]


@pytest.mark.slow
@pytest.mark.parametrize("disabled", ["", "fastapi"])
def test_the_server_makes_spans_under_opentelemetry_unchanged(tmp_path, disabled):
    """FastAPI's own spans, or those of OpenTelemetry's package for FastAPI, if that is installed and on."""
    port = free_port()
    log = tmp_path / "log"
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument"), "--traces_exporter", "console"]
    command += ["--metrics_exporter", "none", "--logs_exporter", "none", sys.executable, "app.py"]
    environment = {**os.environ, "PORT": str(port), "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            with httpx2.Client(base_url=server.address, timeout=60) as client:
                wait_until_ready(client)
                answer = client.post("/predict", files={"image": CAT}, headers={"traceparent": PARENT})
                assert answer.json()["predicted_class"] == "cat"
                client.get("/v2/models/cifar_classifier", headers={"traceparent": PARENT})
        finally:
            process.send_signal(signal.SIGINT)  # spans are written at the latest when the process ends
            process.wait(timeout=40)
    text = log.read_text()
    assert server.errors() == []
    assert '"name": "POST /predict"' in text
    assert re.search(r'"name": "GET /v2/models/{name(:tfserving_part)?}"', text)
    assert text.count(f'"trace_id": "0x{TRACE}"') >= 2
