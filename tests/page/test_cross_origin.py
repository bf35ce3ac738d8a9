"""Scripts of other sites: what the browsers of an allowed origin may send and read."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser
from support.servers import CAT, running

from app import create_app
from cifar.settings import ROOT, Settings

ORIGIN = "https://a.example"
PROGRAM = """
import { Client } from "./browser.js";
const photo = await (await fetch("cat.jpg")).blob();
const client = await Client.connect(SERVER);
const api = await client.view_api();
const [answer] = (await client.predict("/predict", { image: photo })).data;
const [batch] = (await client.predict("/predict_batch", { files: [photo, photo], top_k: 1 })).data;
const submitted = [];
for await (const event of client.submit("/predict", { image: photo })) {
  if (event.type === "data") submitted.push(event.data[0].predicted_class);
  if (event.type === "status" && event.stage === "complete") break;
}
const form = new FormData();
form.append("image", photo);
const headers = { "X-Request-ID": "own-1", traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" };
const plain = await fetch(SERVER + "/predict", { method: "POST", body: form, headers });
window.result = {
  endpoints: Object.keys(api.named_endpoints), label: answer.predicted_class, rows: batch.rows.length, submitted,
  id: plain.headers.get("X-Request-ID"), limit: plain.headers.get("RateLimit"),
};
"""


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """An app that allows one origin."""
    with TestClient(create_app(Settings(cors_origins=[ORIGIN]), page=False)) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/predict", "/explain", "/gradio_api/queue/join", "/gradio_api/upload", "/v2/models/a/infer"]
)
def test_an_allowed_origin_may_send_the_headers_of_any_library(client, path):
    """Libraries add headers of their own. A header gives a script nothing that any program does not have."""
    asked = "content-type,x-gradio-user,x-gradio-history-bucket,authorization,x-api-key,traceparent,x-requested-with"
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    allowed = client.options(path, headers=headers)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert set(asked.split(",")) <= {
        name.strip() for name in allowed.headers["access-control-allow-headers"].lower().split(",")
    }
    assert client.options(path, headers={**headers, "Origin": "https://b.example"}).status_code == 400


def test_an_allowed_origin_may_read_every_header_that_the_documents_name(client):
    """A script could not see when to try again, or quote the request."""
    response = client.get("/healthz", headers={"Origin": ORIGIN})
    assert response.headers.get_list("vary") == ["Origin"]
    exposed = response.headers["access-control-expose-headers"].split(", ")
    sentence = re.search(r"and read (.*?)\.", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert re.findall(r"`([\w-]+)`", sentence[1]) == exposed


@pytest.fixture(scope="module")
def site(node_folder) -> Iterator[tuple[Path, str]]:
    """A folder that a web server of another origin serves, with Gradio's JavaScript client."""
    dist = node_folder / "node_modules/@gradio/client/dist"
    (dist / "cat.jpg").write_bytes(CAT)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(dist))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield dist, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_gradios_client_works_in_a_browser_of_an_allowed_origin(tmp_path, browser: Browser, site):
    """Connect, describe, predict, submit, upload and batch: each sends other requests, with headers of Gradio's own."""
    folder, origin = site
    with running(tmp_path, CIFAR_CORS_ORIGINS=f'["{origin}"]', CIFAR_RATE_LIMIT_PREDICT="600/minute") as server:
        (folder / "program.js").write_text(PROGRAM.replace("SERVER", repr(server.address)))
        (folder / "index.html").write_text('<!doctype html><script type="module" src="program.js"></script>')
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{origin}/index.html")
        page.wait_for_function("window.result", timeout=60_000)
        result = page.evaluate("window.result")
        page.close()
    assert errors == []
    assert {"/predict", "/explain", "/predict_batch", "/models"} <= set(result["endpoints"])
    assert (result["label"], result["rows"], result["submitted"]) == ("cat", 2, ["cat"])
    assert result["id"] == "own-1"
    assert result["limit"].startswith('"predict";r=')
