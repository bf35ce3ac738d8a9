"""Tests of metrics, logs and dashboard: the app with two workers, scraped by a real Prometheus."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx2
import pytest
import yaml
from gradio_client import Client, handle_file
from PIL import Image, PngImagePlugin, TiffImagePlugin
from support.servers import Server, classify, free_port, need, running, wait_for_workers
from support.waiting import until

from cifar import CLASS_NAMES
from cifar.settings import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/cifar.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
RULES = [
    rule
    for file in sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
MARK = "do-not-log-this"
CAT = (ROOT / "examples/cat.jpg").read_bytes()
C_LIBRARY = re.compile(
    r"INFO: Created TensorFlow Lite|WARNING: All log messages before absl|[IWE]\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+: [IWE] |To enable the following instructions"
)
"""Lines that the C++ code of LiteRT and TensorFlow writes to stderr."""


@dataclass
class Watched:
    """A server under load and its Prometheus."""

    server: Server
    prometheus: str
    predictions: int
    """Number of `POST /predict` that were sent."""

    def query(self, expression: str) -> list[dict]:
        """Return the current samples of an expression, without NaN."""
        answer = httpx2.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, timeout=10).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return [sample for sample in answer["data"]["result"] if not math.isnan(float(sample["value"][1]))]

    def has_data(self, expression: str) -> bool:
        """Wait for a sample of an expression. A recording rule may need another scrape and another evaluation."""
        return bool(until(lambda: self.query(expression), f"{expression} has no data"))

    def value(self, expression: str) -> float:
        """Return the current value of an expression, or -1."""
        samples = self.query(expression)
        return float(samples[0]["value"][1]) if samples else -1


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two workers with a short queue, scraped each second, after traffic of every kind."""
    need("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    settings = {
        "CIFAR_MAX_WAITING_IMAGES": "2",
        "CIFAR_LOG_FORMAT": "json",
        "CIFAR_LOG_LEVEL": "debug",
        "CIFAR_RECORDS_FOLDER": str(folder / "records"),
    }
    constants = {
        "cifar.analytics.drift_report.MIN_IMAGES": 20,
        "cifar.serving.process.analytics.DRIFT_SECONDS": 1,
    }
    with (
        running(folder, workers=2, constants=constants, **settings) as server,
        prometheus(folder, server) as address,
    ):
        watched = Watched(server, address, 0)
        deadline = time.monotonic() + 120
        measured = ("cifar:predictions:drift6h", "max(cifar_drift_psi)")
        while min(map(watched.value, measured)) < 0 or watched.value("sum(cifar_refused_total)") <= 0:
            assert time.monotonic() < deadline, "Prometheus saw no traffic, or no image was refused"
            watched.predictions += send_traffic(server.address)
            time.sleep(1)  # one scrape interval
        yield watched


class prometheus:  # noqa: N801 - reads as a function where it is used
    """A Prometheus with the configuration of `deploy/`, except for target and intervals."""

    def __init__(self, folder: Path, server: Server) -> None:
        shutil.copytree(DEPLOY / "prometheus/rules", folder / "rules")
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [server.address.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.listen = f"127.0.0.1:{free_port()}"
        self.folder = folder

    def __enter__(self) -> str:
        command = [need("prometheus"), f"--config.file={self.folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address={self.listen}"]
        with (self.folder / "prometheus.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until(self.is_ready, (self.folder / "prometheus.log").read_text)
        return f"http://{self.listen}"

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"http://{self.listen}/-/ready").status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


def send_traffic(address: str) -> int:
    """Send many images at once, wrong requests, and requests of the page; return the number of POST /predict."""

    def predict(content: bytes) -> int:
        return httpx2.post(
            f"{address}/predict?token={MARK}",
            files={"image": (f"{MARK}.jpg", content)},
            headers={"Authorization": f"Bearer {MARK}", "Cookie": f"session={MARK}", "X-API-Key": MARK},
            timeout=30,
        ).status_code

    examples = [(ROOT / f"examples/{name}.jpg").read_bytes() for name in CLASS_NAMES]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(predict, [*examples * 4, *[large_picture()] * 16]))
    assert set(statuses) == {200, 503}, "some were answered, and some of the large ones refused"
    bad = [picture_with(MARK, "PNG")[:-40], MARK.encode(), CAT[:-400]]
    assert [predict(content) for content in bad] == [422, 415, 422]
    with httpx2.Client(base_url=address, timeout=30) as client:
        assert client.post("/predict", data={MARK: "1"}).status_code == 400
        assert client.put("/predict").status_code == 405
        assert client.get(f"/nothing/{MARK}").status_code == 404
        page = client.get("/").text
        for asset in re.findall(r'"\.(/assets/[^"]+\.(?:js|css))"', page)[:3]:
            assert client.get(asset).status_code == 200
        call = {"data": [{"path": f"/etc/{MARK}", "meta": {"_type": "gradio.FileData"}}]}
        assert client.post("/gradio_api/run/predict", json=call).status_code == 400
    gradio = Client(address, verbose=False, headers={"Authorization": f"Bearer {MARK}"})
    for name in CLASS_NAMES[:3]:
        answer = gradio.predict(handle_file(ROOT / f"examples/{name}.jpg"), api_name="/predict")
        assert answer["predicted_class"] == name
    for kind in ("PNG", "TIFF", "JPEG"):
        assert predict(picture_with(MARK, kind)) == 200
    return len(statuses) + len(bad) + 1 + 3


@cache
def large_picture() -> bytes:
    """Return an image that takes long to decode, so that others wait."""
    buffer = io.BytesIO()
    Image.effect_noise((2500, 2500), 50).save(buffer, "PNG")
    return buffer.getvalue()


def picture_with(text: str, kind: str) -> bytes:
    """Return an image with a text in its metadata."""
    note, exif = PngImagePlugin.PngInfo(), Image.Exif()
    note.add_text("Comment", text)
    exif[TiffImagePlugin.IMAGEDESCRIPTION] = text
    buffer = io.BytesIO()
    options = {"PNG": {"pnginfo": note}, "TIFF": {"description": text}, "JPEG": {"exif": exif, "comment": text}}[kind]
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, kind, **options)
    assert text.encode() in buffer.getvalue()
    return buffer.getvalue()


def log_lines(server: Server) -> list[dict]:
    """Return the JSON lines of the server's log. Only C++ libraries may write others."""
    events = []
    for line in server.log.read_text().splitlines():
        if line.startswith("{"):
            events.append(json.loads(line))
        else:
            assert C_LIBRARY.match(line), line
    return events


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_panel_of_the_dashboard_has_data_after_traffic(watched, name):
    """No panel uses a metric that does not exist."""
    assert watched.has_data(EXPRESSIONS[name].replace("$__rate_interval", "1m")), EXPRESSIONS[name]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("rule", [rule["record"] for rule in RULES if "record" in rule])
def test_every_recording_rule_has_data_after_traffic(watched, rule):
    """Alerts use these rules; without data an alert would never fire."""
    assert watched.has_data(rule)


@pytest.mark.slow
@pytest.mark.nightly
def test_every_rule_is_healthy_and_no_alert_fires_without_reason(watched):
    """The listed alerts do not depend on the load or the speed of the machine."""
    groups = httpx2.get(f"{watched.prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    silent = {rule["name"] for rule in rules if rule.get("state") == "inactive"}
    assert {"CifarDown", "CifarNotReady", "CifarPredictionsDrift"} <= silent


@pytest.mark.slow
@pytest.mark.nightly
def test_prometheus_counts_requests_to_all_workers(watched):
    """The counters of two workers add up to exactly the number of requests."""
    expression = 'sum(request_count_total{endpoint="/predict",method="POST"})'
    until(lambda: watched.value(expression) == watched.predictions, lambda: watched.value(expression))
    assert watched.value('sum(request_latency_seconds_count{endpoint="/predict",method="POST"})') == watched.predictions
    answered = watched.value('sum(request_count_total{endpoint="/predict",status="200"})')
    assert watched.value('sum(cifar_images_total{route="rest"})') == answered
    assert watched.value("sum(cifar_predictions_total)") == watched.value("sum(cifar_images_total)")
    assert watched.value("sum(cifar_confidence_count)") == watched.value("sum(cifar_images_total)")
    assert watched.value("cifar_workers") == watched.value("cifar_workers_ready") == 2


@pytest.mark.slow
@pytest.mark.nightly
def test_requests_of_the_page_are_not_counted_as_other(watched):
    """Only the deliberate request of an unknown path has the endpoint label `other`."""
    other = watched.query('request_count_total{endpoint="other"} > 0')
    assert {(s["metric"]["method"], s["metric"]["status"]) for s in other} == {("GET", "404")}


@pytest.mark.slow
@pytest.mark.nightly
def test_each_log_line_is_json_and_each_request_has_one_line(watched):
    """Lines of gunicorn, uvicorn and the app have one shape; a call that another worker answers is logged once."""
    events = log_lines(watched.server)
    assert {"gunicorn.error", "uvicorn.error", "cifar.access", "cifar.serving.inference.loaded"} <= {
        e["logger"] for e in events
    }
    access = [event for event in events if event["logger"] == "cifar.access"]
    assert sum((e["method"], e["endpoint"]) == ("POST", "/predict") for e in access) == watched.predictions
    ids = [event["request_id"] for event in access]
    assert len(set(ids)) == len(ids)
    assert {event["level"] for event in access if event["endpoint"] in {"/metrics", "/assets/{path:path}"}} == {"DEBUG"}


@pytest.mark.slow
@pytest.mark.nightly
def test_no_secret_and_no_image_content_is_logged(watched):
    """The log has no token from header, cookie or URL, and no file name, metadata or bytes of an image."""
    assert MARK not in watched.server.log.read_text()


def test_the_dashboard_is_valid_for_grafana():
    """Panels have unique ids, do not overlap, and use the chosen data source."""
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDE")[: len(panel["targets"])]
        assert all(source["datasource"] == chosen for source in (panel, *panel["targets"]))


def test_the_provisioning_of_grafana_is_consistent():
    """The data source is Prometheus with its scrape interval, and the dashboard folder is the mounted one."""
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/cifar.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def total(server: Server, name: str) -> float:
    """Return the sum of the samples of a metric."""
    lines = httpx2.get(f"{server.address}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))


@pytest.mark.slow
def test_counters_survive_their_worker_and_gauges_do_not(tmp_path):
    """After kills and a reload no count is lost, gauges cover live workers only, and files are removed."""
    posts = r'request_count_total\{endpoint="/predict",method="POST",status="200"\}'
    with running(tmp_path, workers=2) as server:
        for round_ in range(3):
            assert all(classify(server, i) for i in range(20))
            assert total(server, posts) == 20 * (round_ + 1)
            ready = server.log.read_text().count("is ready on")
            if round_ < 2:
                os.kill(max(server.workers()), signal.SIGKILL)
            else:
                server.process.send_signal(signal.SIGHUP)
            wait_until_replaced(server, ready + (1 if round_ < 2 else 2), posts, 20 * (round_ + 1))
        assert all(classify(server, i) for i in range(20))
        assert total(server, posts) == 80
        assert total(server, "cifar_images_total") == 80
        files = [file.name for file in tmp_path.glob("cifar-workers-*/counter_*.db")]
        assert len(files) <= 1 + 2 * 2, "those of the parent, and of two workers before and after the reload"


def wait_until_replaced(server: Server, ready: int, counted: str, least: int) -> None:
    """Wait until two workers with their model run again, while the counter must not fall."""
    wait_for_workers(server, ready)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert total(server, counted) >= least
            gauges = {
                name: total(server, name) for name in ("cifar_workers", "cifar_workers_ready", "cifar_model_loaded")
            }
        except httpx2.TransportError:
            gauges = {}
        if gauges and set(gauges.values()) == {2}:
            return
        assert time.monotonic() < deadline, gauges
        time.sleep(0.1)
