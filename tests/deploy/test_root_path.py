"""The page and the API under a path of another server, behind nginx."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect
from support.browser import EXAMPLES, WAIT_MS, choose_many, expect_label, open_tab, upload, visit
from support.nginx import render, running_nginx
from support.servers import CAT, Server, free_port, need, running, until_listens

from cifar.errors import SettingsError
from cifar.settings import load_settings

PATH = "/demos/cifar"
OTHER = """daemon off; pid %(folder)s/pid; error_log stderr; events {}
http {
    access_log off; client_body_temp_path %(folder)s/b; proxy_temp_path %(folder)s/p;
    server {
        listen %(port)d;
        location / { return 404; }
        location %(path)s/ {
            proxy_pass %(app)s; proxy_http_version 1.1; proxy_buffering off; proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;
        }
    }
}
"""


@contextmanager
def another_server(folder: Path, app: str) -> Iterator[str]:
    """Run nginx with nothing at `/` and `app` at PATH, and yield the page's address. With a slash at its end, PATH is taken away."""
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(OTHER % {"folder": folder, "port": port, "path": PATH, "app": app})
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    process = subprocess.Popen([need("nginx"), "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf", *user])
    until_listens(process, port)
    yield f"http://localhost:{port}{PATH}"
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("app"), CIFAR_ROOT_PATH=f"{PATH}/", CIFAR_MCP="true") as server:
        yield server


@pytest.fixture(scope="module", params=["the path is taken away", "the path stays", "nginx of this project"])
def address(request, app, tmp_path_factory) -> Iterator[str]:
    """The page's address behind another server, which takes the path away or not."""
    folder = tmp_path_factory.mktemp("front")
    if request.param == "nginx of this project":
        upstream = app.address.removeprefix("http://")
        with (
            running_nginx(folder, upstream, CIFAR_ROOT_PATH=PATH) as nginx,
            another_server(folder / "other", nginx.address) as address,
        ):
            yield address
    else:
        slash = "/" if request.param == "the path is taken away" else ""
        with another_server(folder / "other", f"{app.address}{slash}") as address:
            yield address


@pytest.mark.slow
def test_the_page_works_under_a_path(address, browser):
    """`visit` holds that no request leaves the path: at the root of this server there is nothing."""
    with visit(browser, address) as page:
        upload(page, EXAMPLES / "cat.jpg")
        expect_label(page, "cat")
        open_tab(page, "batch")
        choose_many(page, "batch", [EXAMPLES / "cat.jpg", EXAMPLES / "dog.jpg"])
        expect(page.locator("#batch tbody tr")).to_have_count(2, timeout=WAIT_MS)
        expect(page.locator("#batch tbody tr").first).to_contain_text("cat", timeout=WAIT_MS)


@pytest.mark.slow
def test_the_apis_work_under_a_path(address):
    """Clients are given the address of the page."""
    answer = httpx2.post(f"{address}/predict", files={"image": CAT}, timeout=60)
    assert answer.json()["predicted_class"] == "cat"
    assert httpx2.head(f"{address}/health").status_code == 200
    assert f"; Path={PATH};" in httpx2.get(f"{address}/").headers["set-cookie"]
    assert httpx2.get(f"{address}/v1/models/cifar_classifier").status_code == 200
    client = Client(address, verbose=False)
    assert client.predict(handle_file(EXAMPLES / "cat.jpg"), api_name="/predict")["predicted_class"] == "cat"
    client.close()
    assert httpx2.get(f"{address}/openapi.json").json()["servers"] == [{"url": PATH}]
    initialize = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    call = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": initialize}
    assert httpx2.post(f"{address}/gradio_api/mcp/", json=call, timeout=60).status_code == 200


def test_the_documentation_of_the_api_loads_under_a_path(address, browser):
    """Its viewer reads the description from an address on the same host."""
    page = browser.new_page()
    page.goto(f"{address}/docs")
    expect(page.get_by_text("/predict", exact=True).first).to_be_visible(timeout=WAIT_MS)
    page.close()


@pytest.mark.slow
def test_the_path_without_its_slash_leads_to_the_page(app):
    """People type it so, and relative addresses need the slash."""
    answer = httpx2.get(f"{app.address}{PATH}?__theme=dark")
    assert (answer.status_code, answer.headers["location"]) == (308, f"{PATH}/?__theme=dark")


@pytest.mark.slow
def test_a_path_that_only_begins_alike_is_not_the_apps(app):
    """`/demos/cifar-old` is another program's."""
    assert httpx2.get(f"{app.address}{PATH}-old/health").status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [PATH, PATH * 2, PATH * 3])
def test_no_repetition_of_the_path_goes_past_the_checks(app, prefix):
    """Gradio's app takes the path away once more: the checks of files, scopes and limits saw an address without a route."""
    call = {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}
    answer = httpx2.post(f"{app.address}{prefix}/gradio_api/run/predict", json=call, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert httpx2.get(f"{app.address}{prefix}/gradio_api/login_check", timeout=60).status_code == 200
    assert httpx2.get(f"{app.address}{prefix}/gradio_api/deep_link", timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("variables", "path", "page"),
    [
        ({"CIFAR_ROOT_PATH": "/"}, "", None),
        ({"CIFAR_ROOT_PATH": "/a/b/"}, "/a/b", None),
        ({"CIFAR_PUBLIC_URL": "https://x.example/cifar/"}, "/cifar", "https://x.example/cifar"),
        ({"CIFAR_PUBLIC_URL": "https://x.example", "CIFAR_ROOT_PATH": "/c"}, "/c", "https://x.example/c"),
        ({"CIFAR_PUBLIC_URL": "https://x.example/c", "CIFAR_ROOT_PATH": "/c/"}, "/c", "https://x.example/c"),
    ],
)
def test_the_path_is_a_setting_or_that_of_the_public_address(variables, path, page, monkeypatch):
    """One of them is enough."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (load_settings().path, load_settings().page_url) == (path, page)
    assert (f"rewrite ^{path}(/.*)$ $1;" in render(**variables).stdout) == bool(path)


@pytest.mark.parametrize("value", ["cifar", "/a b", "/a;}", "/../x/", "//x", "https://x/c"])
def test_a_path_that_is_none_is_refused(value, monkeypatch):
    """It goes into nginx's configuration and into addresses."""
    monkeypatch.setenv("CIFAR_ROOT_PATH", value)
    with pytest.raises(SettingsError, match=r"CIFAR_ROOT_PATH=.* expected a path such as /cifar\."):
        load_settings()
    assert render(CIFAR_ROOT_PATH=value).returncode == 1
