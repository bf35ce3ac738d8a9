"""The real app with two workers under a real Prometheus: what it counts, what it logs, and what the dashboard shows."""

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
"""What the C++ of LiteRT and TensorFlow writes to stderr by itself."""


@dataclass
class Watched:
    """A server under load, and who watches it."""

    server: Server
    prometheus: str
    predictions: int
    """How many `POST /predict` were sent."""

    def query(self, expression: str) -> list[dict]:
        """The samples that an expression has now, without those that are no number."""
        answer = httpx2.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, timeout=10).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return [sample for sample in answer["data"]["result"] if not math.isnan(float(sample["value"][1]))]

    def value(self, expression: str) -> float:
        """The one number that an expression is now, or -1."""
        samples = self.query(expression)
        return float(samples[0]["value"][1]) if samples else -1


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two workers in which images wait, but few may, after traffic of every kind, scraped each second."""
    need("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    settings = {
        "CIFAR_MAX_WAITING_IMAGES": "2",
        "CIFAR_LOG_FORMAT": "json",
        "CIFAR_LOG_LEVEL": "debug",
        "CIFAR_RECORDS_FOLDER": str(folder / "records"),
    }
    with (
        running(folder, workers=2, target="tests.support.patient_app:app", **settings) as server,
        prometheus(folder, server) as address,
    ):
        watched = Watched(server, address, 0)
        deadline = time.monotonic() + 120
        measured = ("cifar:predictions:drift6h", "max(cifar_drift_psi)")
        while min(map(watched.value, measured)) < 0 or watched.value("sum(cifar_refused_total)") <= 0:
            assert time.monotonic() < deadline, "Prometheus saw no traffic, or none was refused"
            watched.predictions += send_traffic(server.address)
            time.sleep(1)  # one scrape
        yield watched


class prometheus:  # noqa: N801 - reads as a function where it is used
    """A Prometheus with the configuration of `deploy/`, of which only target and intervals differ."""

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
        deadline = time.monotonic() + 30
        while not self.is_ready():
            assert time.monotonic() < deadline, (self.folder / "prometheus.log").read_text()
            time.sleep(0.1)
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
    """Each class, many at once, the mistakes of callers, the page and its client; how often POST /predict was asked."""

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
    assert set(statuses) == {200, 503}, "some were answered, and of the large ones some were refused"
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
    """One that takes a while to decode, so that others wait."""
    buffer = io.BytesIO()
    Image.effect_noise((2500, 2500), 50).save(buffer, "PNG")
    return buffer.getvalue()


def picture_with(text: str, kind: str) -> bytes:
    """A picture that says something where people do not look."""
    note, exif = PngImagePlugin.PngInfo(), Image.Exif()
    note.add_text("Comment", text)
    exif[TiffImagePlugin.IMAGEDESCRIPTION] = text
    buffer = io.BytesIO()
    options = {"PNG": {"pnginfo": note}, "TIFF": {"description": text}, "JPEG": {"exif": exif, "comment": text}}[kind]
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, kind, **options)
    assert text.encode() in buffer.getvalue()
    return buffer.getvalue()


def log_lines(server: Server) -> list[dict]:
    """The lines of the server's log; what is no JSON is the C++ libraries', else that is an error."""
    events = []
    for line in server.log.read_text().splitlines():
        if line.startswith("{"):
            events.append(json.loads(line))
        else:
            assert C_LIBRARY.match(line), line
    return events


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_panel_of_the_dashboard_has_data_after_traffic(watched, name):
    """No panel asks for a metric that is not there, or is called otherwise."""
    assert watched.query(EXPRESSIONS[name].replace("$__rate_interval", "1m")), EXPRESSIONS[name]


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule["record"] for rule in RULES if "record" in rule])
def test_every_recording_rule_has_data_after_traffic(watched, rule):
    """Alerts stand on these; one without data would be silent for ever."""
    assert watched.query(rule)


@pytest.mark.slow
def test_prometheus_evaluates_every_rule_and_sees_no_trouble_that_is_not(watched):
    """All rules are healthy; those alerts are silent whose reasons no load and no slow machine makes."""
    groups = httpx2.get(f"{watched.prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    silent = {rule["name"] for rule in rules if rule.get("state") == "inactive"}
    assert {"CifarDown", "CifarNotReady", "CifarPredictionsDrift"} <= silent


@pytest.mark.slow
def test_prometheus_counts_what_was_sent_to_whichever_worker(watched):
    """Two workers, one sum: exactly as many as were asked."""
    deadline = time.monotonic() + 20
    expression = 'sum(request_count_total{endpoint="/predict",method="POST"})'
    while watched.value(expression) != watched.predictions and time.monotonic() < deadline:
        time.sleep(0.5)
    assert watched.value(expression) == watched.predictions
    assert watched.value('sum(request_latency_seconds_count{endpoint="/predict",method="POST"})') == watched.predictions
    answered = watched.value('sum(request_count_total{endpoint="/predict",status="200"})')
    assert watched.value('sum(cifar_images_total{route="rest"})') == answered
    assert watched.value("sum(cifar_predictions_total)") == watched.value("sum(cifar_images_total)")
    assert watched.value("sum(cifar_confidence_count)") == watched.value("sum(cifar_images_total)")
    assert watched.value("cifar_workers") == watched.value("cifar_workers_ready") == 2


@pytest.mark.slow
def test_nothing_of_the_page_is_counted_as_a_strange_address(watched):
    """Only what was asked for on purpose has the label of addresses that nobody has."""
    strange = watched.query('request_count_total{endpoint="other"} > 0')
    assert {(s["metric"]["method"], s["metric"]["status"]) for s in strange} == {("GET", "404")}


@pytest.mark.slow
def test_in_json_every_line_is_an_event_and_every_request_one_line(watched):
    """Gunicorn's lines, uvicorn's and ours have one shape; a call that another worker answered is one request."""
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
def test_no_secret_and_no_content_of_an_image_is_logged(watched):
    """Not a token, in header, cookie or address; not a file's name, its tags or its bytes, be they broken or not."""
    assert MARK not in watched.server.log.read_text()


def test_the_dashboard_is_what_grafana_expects():
    """Panels have ids of their own and places that do not overlap, and ask the data source that the reader chooses."""
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


def test_what_grafana_is_provisioned_with_fits_together():
    """The data source is Prometheus, its interval that of the scrapes, and the dashboards are where they are looked for."""
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/cifar.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def total(server: Server, name: str) -> float:
    """The sum of a metric's samples, whichever worker is asked."""
    lines = httpx2.get(f"{server.address}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))


@pytest.mark.slow
def test_counts_outlive_their_worker_and_what_it_held_does_not(tmp_path):
    """Kills and reloads: no counter ever falls, none is lost, the dead hold nothing, and files do not gather."""
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
        assert len(files) <= 1 + 2 * 2, "the parent's, and two workers' before and after the reload"


def wait_until_replaced(server: Server, ready: int, counted: str, least: int) -> None:
    """Watch, until two workers are there again and all of their model, that nothing counted is lost meanwhile."""
    wait_for_workers(server, ready)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert total(server, counted) >= least
            held = {
                name: total(server, name) for name in ("cifar_workers", "cifar_workers_ready", "cifar_model_loaded")
            }
        except httpx2.TransportError:
            held = {}
        if held and set(held.values()) == {2}:
            return
        assert time.monotonic() < deadline, held
        time.sleep(0.1)
