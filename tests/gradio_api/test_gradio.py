"""Gradio's side: the named endpoint for clients, and the doors that are shut."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from starlette.routing import Mount
from support.listener import listener

from cifar.errors import BadRequest
from cifar.serving.gradio.guard import GradioGuard
from cifar.settings import ROOT

CAT = ROOT / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server, verbose=False)


def test_gradio_client_and_rest_give_the_same_answer(client, server):
    """Same labels, same scores, to the last digit, for every example."""
    for file in sorted((ROOT / "examples").glob("*.jpg")):
        by_gradio = client.predict(handle_file(file), top_k=4, version=2, api_name="/predict")
        by_rest = httpx.post(f"{server}/predict", files={"image": file.read_bytes()}, data={"top_k": 4}).json()
        assert by_gradio.pop("request_id") != by_rest.pop("request_id")
        assert by_gradio == by_rest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top_k": 0}, "top_k must be from 1 to 10"),
        ({"top_k": "abc"}, "top_k must be a whole number; got 'abc'"),
        ({"version": 99}, "no version 99; there are: 1"),
    ],
)
def test_gradio_client_gets_the_same_sentences(client, arguments, words):
    """One error text for all ways in."""
    with pytest.raises(AppError, match=words):
        client.predict(handle_file(CAT), **arguments, api_name="/predict")


def test_a_bad_file_is_an_error_with_a_sentence_for_gradio_client_too(client, tmp_path):
    """Gradio's own picture reader is never asked."""
    (tmp_path / "bad.png").write_text("just text")
    with pytest.raises(AppError, match="whatever its name says"):
        client.predict(handle_file(tmp_path / "bad.png"), api_name="/predict")


def test_a_path_that_was_not_wrapped_is_told_how(client):
    """The commonest mistake with gradio_client."""
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.predict(str(CAT), api_name="/predict")
    assert "handle_file('photo.jpg')" in caught.value.response.text


def call_with_path(server: str, path: str, **more) -> list[httpx.Response]:
    """Send a file that was not uploaded through every route that takes one."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
    body = {"data": [file, None, None], "session_hash": "abc", "fn_index": 0}
    routes = ("run/predict", "api/predict", "call/predict", "queue/join", "call/v2/predict")
    bodies = [body, body, body, body, {"image": file}]
    return [httpx.post(f"{server}/gradio_api/{route}", json=sent) for route, sent in zip(routes, bodies, strict=True)]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", str(ROOT / "app.py"), "app.py", "../../../etc/passwd", "/tmp/../etc/passwd", "file:///etc/passwd"],
)
def test_no_file_of_the_server_is_read_for_a_caller(server, path):
    """A path that was not uploaded is refused with 400, on every route."""
    for response in call_with_path(server, path):
        assert response.status_code == 400, response.text
        assert response.json()["code"] == "bad_request"
        assert "must be uploaded" in response.json()["error"]


def test_a_path_hidden_in_another_argument_is_refused_too(server):
    """Gradio looks for files in every argument, at any depth."""
    hidden = {"a": [{"b": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}]}
    body = {"data": [None, hidden, None], "session_hash": "abc", "fn_index": 0}
    assert httpx.post(f"{server}/gradio_api/run/predict", json=body).status_code == 400


def test_a_path_longer_than_any_uploads_is_not_followed(tmp_path):
    """Following 32,000 folders that are not there held up everybody for half a second."""
    guard = GradioGuard(None, own_routes=[], file_roots=[tmp_path])
    guard._check_call(json.dumps({"data": [{"path": str(tmp_path / "cat.jpg")}]}).encode())
    with pytest.raises(BadRequest, match="must be uploaded"):
        guard._check_call(json.dumps({"data": [{"path": f"{tmp_path}/" + "a/" * 1000}]}).encode())


def test_the_model_tab_takes_a_number_and_no_path(server):
    """What came was a folder's name: whoever found a way to send text could ask which folders this server has."""
    dependencies = httpx.get(f"{server}/config").json()["dependencies"]
    event = next(each["id"] for each in dependencies if each["api_name"] == "_model")
    for number in (["x" * 300], {"a": "../.."}, 1.5, True):
        answer = httpx.post(f"{server}/gradio_api/run/predict", json={"fn_index": event, "data": [number]})
        assert "version must be a whole number; got" in answer.json()["data"][0]


def test_gradios_own_check_of_paths_is_switched_on():
    """Behind our guard stands Gradio's, which mounting leaves off: both must hold."""
    from app import create_app
    from cifar.settings import Settings

    *_, mount = [route for route in create_app(Settings()).routes if isinstance(route, Mount)]
    assert mount.app.gradio.get_blocks().has_launched


def test_the_server_fetches_no_url_for_a_caller(server):
    """Neither as an argument nor through /gradio_api/file=: nobody's server is visited."""
    with listener() as (url, visits):
        assert httpx.get(url).status_code == 200
        for spelling in (url, url.upper(), f" {url}", f"HTTP:{url[5:]}"):
            for response in call_with_path(server, spelling, url=spelling):
                assert response.status_code == 400
            for prefix in ("file=", "file/", "proxy="):
                assert httpx.get(f"{server}/gradio_api/{prefix}{spelling}").status_code in {403, 404}
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
def test_routes_that_nobody_here_needs_are_closed(server, path):
    """What is not open cannot be attacked."""
    assert httpx.get(server + path).status_code in {403, 404, 405}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff", b'{"data": null}', b'{"data": [1], "fn_index": 99}'],
)
def test_junk_on_gradios_routes_is_the_callers_mistake(server, body):
    """Never a 5xx, whatever stands where a call should be."""
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
        response = httpx.post(
            f"{server}/gradio_api/{route}", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code < 500, (route, body[:30], response.status_code, response.text)


def test_an_uploaded_page_is_not_shown_as_one(server):
    """HTML and SVG from a stranger are downloads, not scripts of our origin."""
    for name, content in (
        ("x.html", b"<script>alert(1)</script>"),
        ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ):
        (path,) = httpx.post(f"{server}/gradio_api/upload", files={"files": (name, content)}).json()
        response = httpx.get(f"{server}/gradio_api/file={path}")
        assert response.status_code == 200
        assert "attachment" in response.headers.get("content-disposition", ""), dict(response.headers)


def test_the_config_names_no_path_of_the_server(server):
    """What every visitor downloads says nothing of where we live."""
    config = json.dumps(httpx.get(f"{server}/config").json())
    assert str(ROOT) not in config
    assert str(Path.home()) not in config
