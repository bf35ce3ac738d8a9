"""Gradio's API: the endpoint `/predict` for Gradio's clients, and everything that is closed to callers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError, ValidationError
from starlette.routing import Mount
from support.servers import visited_server
from support.shipped import NEWEST

from cifar.errors import BadRequest
from cifar.serving import gradio as internals
from cifar.serving.gradio.guard import GradioGuard
from cifar.settings import ROOT

CAT = ROOT / "examples" / "cat.jpg"


def test_gradio_client_and_rest_give_the_same_answer(client, server):
    """For every example, labels and scores are equal to the last digit."""
    for file in sorted((ROOT / "examples").glob("*.jpg")):
        by_gradio = client.predict(handle_file(file), top_k=4, version=NEWEST, api_name="/predict")
        by_rest = httpx2.post(f"{server}/predict", files={"image": file.read_bytes()}, data={"top_k": 4}).json()
        assert by_gradio.pop("request_id") != by_rest.pop("request_id")
        assert by_gradio == by_rest


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (str(CAT), "/predict"),
        ([str(CAT)], "/predict_batch"),
        ({"path": "https://a.example/cat.jpg", "meta": {"_type": "gradio.FileData"}}, "/predict"),
    ],
)
def test_gradio_client_says_what_to_do_with_a_path_or_an_address(client, value, name):
    """It is the most common mistake, and of most refused calls the client shows the status only."""
    with pytest.raises((ValidationError, AppError), match=re.escape("handle_file('photo.jpg')")):
        client.predict(value, api_name=name)


def call_with_path(server: str, path: str, **more) -> list[httpx2.Response]:
    """Name a file that was not uploaded, in a call to every route that takes files."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
    body = {"data": [file, None, None], "session_hash": "abc", "fn_index": 0}
    routes = ("run/predict", "api/predict", "call/predict", "queue/join", "call/v2/predict")
    bodies = [body, body, body, body, {"image": file}]
    return [httpx2.post(f"{server}/gradio_api/{route}", json=sent) for route, sent in zip(routes, bodies, strict=True)]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", str(ROOT / "app.py"), "app.py", "../../../etc/passwd", "/tmp/../etc/passwd", "file:///etc/passwd"],
)
def test_no_file_of_the_server_is_read_for_a_caller(server, path):
    """Every route refuses the path of a file that was not uploaded, with status 400."""
    for response in call_with_path(server, path):
        assert response.status_code == 400, response.text
        assert response.json()["code"] == "bad_request"
        assert "must be uploaded" in response.json()["error"]


def test_a_path_hidden_in_another_argument_is_refused_too(server):
    """Gradio looks for files in all arguments, at any depth."""
    hidden = {"a": [{"b": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}]}
    body = {"data": [None, hidden, None], "session_hash": "abc", "fn_index": 0}
    assert httpx2.post(f"{server}/gradio_api/run/predict", json=body).status_code == 400


def test_a_path_longer_than_that_of_any_upload_is_not_resolved(tmp_path):
    """Resolving 32,000 folders that do not exist blocked the process for half a second."""
    guard = GradioGuard(None, own_routes=[], file_roots=[tmp_path])
    guard.check_call(json.dumps({"data": [{"path": str(tmp_path / "cat.jpg")}]}).encode())
    with pytest.raises(BadRequest, match="must be uploaded"):
        guard.check_call(json.dumps({"data": [{"path": f"{tmp_path}/" + "a/" * 1000}]}).encode())


def test_the_model_tab_accepts_a_number_and_no_path(server):
    """A version's number is the name of a folder; with any text, a caller could find out which folders exist."""
    dependencies = httpx2.get(f"{server}/config").json()["dependencies"]
    event = next(each["id"] for each in dependencies if each["api_name"] == "_show_model")
    for number in (["x" * 300], {"a": "../.."}, 1.5, True):
        answer = httpx2.post(f"{server}/gradio_api/run/predict", json={"fn_index": event, "data": [number]})
        assert "version must be a whole number; got" in answer.json()["data"][0]


def test_the_list_of_gradios_internals_names_tests_that_exist():
    """They are the tests to run after an upgrade of Gradio."""
    named = re.findall(r"(\w+/test_\w+\.py)::(test_\w+)", internals.__doc__)
    assert len(named) >= 20
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_gradios_own_check_of_file_paths_is_switched_on():
    """Mounting leaves it off. It is the second line of defence behind our guard."""
    from app import create_app
    from cifar.settings import Settings

    *_, mount = [route for route in create_app(Settings()).routes if isinstance(route, Mount)]
    assert mount.app.app.gradio.gradio.app.get_blocks().has_launched


def test_the_server_fetches_no_url_for_a_caller(server):
    """A URL in an argument or after /gradio_api/file= would let a caller reach other hosts through this server."""
    with visited_server() as (url, visits):
        assert httpx2.get(url).status_code == 200
        for spelling in (url, url.upper(), f" {url}", f"HTTP:{url[5:]}"):
            for response in call_with_path(server, spelling, url=spelling):
                assert response.status_code == 400
            for prefix in ("file=", "file/", "proxy="):
                assert httpx2.get(f"{server}/gradio_api/{prefix}{spelling}").status_code in {403, 404}
    assert visits == ["/x.jpg"], "only the test's own visit"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=" + str(ROOT / "app.py"),
        "/gradio_api/file=app.py",
        "/gradio_api/file=..%2f..%2fetc%2fpasswd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code/",
        "/gradio_api/runs",
        "/gradio_api/dev/reload",
        "/monitoring/summary",
    ],
)
def test_the_routes_of_gradio_that_the_page_does_not_need_are_closed(server, path):
    """A closed route cannot be attacked."""
    assert httpx2.get(server + path).status_code in {403, 404, 405}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff", b'{"data": null}', b'{"data": [1], "fn_index": 99}'],
)
def test_a_malformed_call_to_gradio_never_gets_a_5xx(server, body):
    """Gradio itself would answer 500; a malformed call is an error of the caller."""
    for route in (
        "run/predict",
        "api/predict",
        "call/predict",
        "call/nothing",
        "call/v2/nothing",
        "queue/join",
        "cancel",
        "reset",
    ):
        response = httpx2.post(
            f"{server}/gradio_api/{route}", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code < 500, (route, body[:30], response.status_code, response.text)


def test_uploaded_html_is_sent_as_a_download(server):
    """Shown by the browser, scripts in HTML or SVG would run with the rights of our origin."""
    for name, content in (
        ("x.html", b"<script>alert(1)</script>"),
        ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ):
        (path,) = httpx2.post(f"{server}/gradio_api/upload", files={"files": (name, content)}).json()
        response = httpx2.get(f"{server}/gradio_api/file={path}")
        assert response.status_code == 200
        assert "attachment" in response.headers.get("content-disposition", ""), dict(response.headers)


def test_gradios_config_contains_no_path_of_the_server(server):
    """Every visitor downloads the configuration."""
    config = json.dumps(httpx2.get(f"{server}/config").json())
    assert str(ROOT) not in config
    assert str(Path.home()) not in config
