"""The tools for AI assistants, called by the Model Context Protocol's own client over streamable HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable, Iterator

import httpx2
import jwt
import pytest
from mcp import ClientSession
from mcp.types import CallToolResult
from PIL import Image
from support.hostile_files import zipped
from support.identities import AUDIENCE, ISSUER, SECRET, bearer, claims
from support.servers import CAT, DATA_URL, MCP_PATH, mcp_session, running, visited_server

from cifar import __version__

pytestmark = pytest.mark.slow  # each test opens a session with a server

SIGN_IN = {"CIFAR_JWT_SECRET": SECRET, "CIFAR_JWT_ISSUER": ISSUER, "CIFAR_JWT_AUDIENCE": AUDIENCE}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mcp")
    with running(folder, CIFAR_MCP="true") as server:
        yield server.address
        assert server.errors() == []
    assert [file for file in (folder / "uploads").rglob("*/*") if file.name[0] != "."] == [], "a call writes nothing"


def ask(address: str, use: Callable[[ClientSession], Awaitable[object]], **headers: str) -> object:
    """Open a session, and return the result of `use`."""

    async def talk() -> object:
        async with mcp_session(address, **headers) as opened:
            return await use(opened)

    return asyncio.run(talk())


def call(address: str, name: str, headers: dict[str, str] | None = None, **arguments: object) -> CallToolResult:
    return ask(address, lambda opened: opened.call_tool(name, arguments), **(headers or {}))


def by_rest(address: str, path: str = "/predict", headers: dict[str, str] | None = None, **data: object) -> dict:
    answer = httpx2.post(f"{address}{path}", files={"image": CAT}, data=data, headers=headers, timeout=60).json()
    del answer["request_id"]
    return answer


def without_id(result: CallToolResult) -> dict:
    """Return an answer without its request id, as `by_rest` does."""
    assert len(result.structuredContent["request_id"]) == 32
    return {key: value for key, value in result.structuredContent.items() if key != "request_id"}


def test_the_tools_have_the_names_parameters_and_types_of_gradios_endpoints(address):
    """Callers who know one of the two interfaces know the other."""
    tools = ask(address, lambda opened: opened.list_tools()).tools
    server = ask(address, lambda opened: opened.initialize()).serverInfo
    assert (server.name, server.version) == ("CIFAR Space", __version__)
    kinds = {
        tool.name: {name: _kind(schema) for name, schema in tool.inputSchema["properties"].items()} for tool in tools
    }
    numbers = {"top_k": "integer|null", "version": "integer|null", "views": "integer|string|null"}
    assert kinds == {
        "predict": {"image": "string", **numbers},
        "explain": {"image": "string", "label": "string|null", "version": "integer|null"},
        "predict_batch": {"files": "array", **numbers},
        "models": {},
        "feedback": {"request_id": "string", "label": "string", "note": "string|null"},
    }
    for tool in tools:
        assert tool.description, tool.name
        assert tool.annotations.readOnlyHint is (tool.name != "feedback")
        assert all("description" in schema for schema in tool.inputSchema["properties"].values()), tool.name


def _kind(schema: dict) -> str:
    return schema.get("type") or "|".join(choice["type"] for choice in schema["anyOf"])


@pytest.mark.parametrize("image", [DATA_URL, base64.b64encode(CAT).decode(), DATA_URL.replace("image/jpeg", "")])
def test_an_image_in_base64_gets_the_answer_of_rest(address, image):
    """It is equal to the last digit, as structured content and as text."""
    result = call(address, "predict", image=image, top_k=4, version=1, views=2)
    assert not result.isError
    assert without_id(result) == by_rest(address, top_k=4, version=1, views=2)
    assert json.loads(result.content[0].text) == result.structuredContent


def test_an_explanation_has_numbers_and_an_image(address):
    """The heat map has the numbers of REST, and the overlay is an image that an assistant can show."""
    result = call(address, "explain", image=DATA_URL, label="dog")
    wanted = by_rest(address, "/explain", label="dog")
    picture = wanted.pop("overlay").removeprefix("data:image/png;base64,")
    assert result.structuredContent == wanted
    (image,) = [content for content in result.content if content.type == "image"]
    assert (image.mimeType, image.data) == ("image/png", picture)
    assert Image.open(io.BytesIO(base64.b64decode(image.data))).format == "PNG"


def test_there_are_tools_for_batches_and_for_the_list_of_models(address):
    """An archive is unpacked, and a bad file is a row with an error."""
    archive = base64.b64encode(zipped([("cat.jpg", CAT), ("b.txt", b"text")])).decode()
    result = call(address, "predict_batch", files=[DATA_URL, archive], top_k=2, views=6)
    first, second, bad = result.structuredContent["rows"]
    assert first["top_k"] == second["top_k"] == by_rest(address, top_k=2, views=6)["top_k"]
    assert [row["name"] for row in (first, second, bad)] == ["file 1", "cat.jpg", "b.txt"]
    assert bad["code"] == "unsupported_image"
    models = call(address, "models").structuredContent
    assert models["name"] == "cifar_classifier"
    assert 1 in [version["version"] for version in models["versions"]]


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        ("predict", {"image": "photo.jpg"}, "bad_request", "file in base64"),
        ("predict", {"image": "/etc/passwd"}, "bad_request", "file in base64"),
        (
            "predict",
            {"image": DATA_URL[:-1]},
            "bad_request",
            f"'data:image/jpeg;base', of {len(DATA_URL) - 1:,} characters",
        ),
        ("predict_batch", {"files": [DATA_URL, "photo.jpg"]}, "bad_request", "file 2 must be"),
        ("predict", {"image": ""}, "unreadable_image", "empty"),
        ("predict", {"image": base64.b64encode(b"text").decode()}, "unsupported_image", "whatever its name says"),
        ("predict", {"image": DATA_URL, "top_k": 99}, "bad_parameter", "from 1 to 10"),
        ("predict", {"image": DATA_URL, "version": 99}, "version_not_found", "no version 99"),
        ("explain", {"image": DATA_URL, "label": "unicorn"}, "bad_parameter", "no label 'unicorn'"),
        ("predict_batch", {"files": []}, "missing_image", "No image came"),
        ("predict_batch", {"files": [DATA_URL], "top_k": 0}, "bad_parameter", "from 1 to 10"),
        ("predict", {"image": DATA_URL, "views": 5}, "bad_parameter", "1, 2, 6 or auto; got 5"),
        ("predict_batch", {"files": [DATA_URL], "views": 5}, "bad_parameter", "1, 2, 6 or auto; got 5"),
        ("predict", {"img": DATA_URL}, "bad_parameter", "image: Field required."),
        ("predict", {"image": 3}, "bad_parameter", "image: Input should be a valid string."),
        ("predict", {"image": DATA_URL, "top_k": "many"}, "bad_parameter", "top_k: Input should be a valid integer"),
        ("predict_batch", {"files": DATA_URL}, "bad_parameter", "files: Input should be a valid list."),
        (
            "classify",
            {"image": DATA_URL},
            "bad_parameter",
            "no tool 'classify'; there are: predict, explain, predict_batch",
        ),
    ],
)
def test_an_error_has_the_message_and_the_code_of_rest(address, tool, arguments, code, words):
    """`isError` is set, and the message says what to do."""
    result = call(address, tool, **arguments)
    assert result.isError
    assert result.structuredContent["code"] == code
    assert words in result.structuredContent["error"]


def test_the_server_fetches_no_url_for_an_assistant(address):
    """This holds for every spelling of a URL, and files of the server are not read either."""
    with visited_server() as (url, visits):
        for image in (url, url.upper(), f" {url}", f"data:{url}", f"data:image/png;base64,{url}", "file:///etc/passwd"):
            for tool, arguments in (
                ("predict", {"image": image}),
                ("explain", {"image": image}),
                ("predict_batch", {"files": [image]}),
            ):
                assert call(address, tool, **arguments).structuredContent["code"] == "bad_request"
    assert visits == []


def test_other_methods_and_paths_of_mcp_are_refused(address):
    """There is no event stream, and Gradio's own MCP routes are closed."""
    for method in ("GET", "DELETE", "PUT"):
        answer = httpx2.request(method, address + MCP_PATH)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    for path in ("sse", "schema", "messages/", "http"):
        assert httpx2.get(address + MCP_PATH + path).status_code == 404
        assert httpx2.post(address + MCP_PATH + path).status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"jsonrpc": "2.0"}', b"[" * 100_000])
def test_an_invalid_call_is_answered_with_a_client_error(address, body):
    """It must not be answered with a status of 500 or more."""
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    assert 400 <= httpx2.post(address + MCP_PATH, content=body, headers=headers).status_code < 500


def tool_call(arguments: str) -> str:
    parameters = f'{{"name": "predict_batch", "arguments": {arguments}}}'
    return f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {parameters}}}'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"jsonrpc": "2.0", "id": 1, "method": "ping"' + ',"a": 0' * 100_000 + "}", "too many values"),
        (tool_call('{"files": [' + "0," * 100_000 + "0]}"), "too many values"),
        (tool_call('{"files": [' + '"",' * 1100 + '""]}'), "at most 1,000 files; got 1,101"),
        (tool_call(json.dumps({"files": "[" + "0," * 100_000 + "0]"})), "too many values"),
        (tool_call('{"files": "[' + r"0\u002c" * 100_000 + '0]"}'), "at most 3,000 values"),
        (tool_call('{"files": ' + "[" * 200 + "]" * 200 + "}"), "at most 100 levels deep"),
        *(
            (
                json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}} | long),
                "10,000 characters",
            )
            for long in (
                {"id": "x" * 10_001},
                {"x" * 10_001: 0},
                {"params": {"name": "x" * 10_000_000}},
                {"params": {"name": "predict", "arguments": {"version": " " * 10_000_000}}},
                {"method": "resources/read", "params": {"uri": "http://" + "x" * 10_000_000}},
            )
        ),
    ],
)
def test_a_call_of_very_many_values_is_refused_before_the_library_reads_it(address, body, words):
    """The library would hold the event loop for seconds: it validates each key, and each value in several ways."""
    answer = httpx2.post(address + MCP_PATH, content=body.encode(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
    assert words in answer.json()["error"]


def test_mcp_is_off_by_default(server):
    """The default server answers 404 to every method."""
    for method in ("GET", "POST", "DELETE"):
        answer = httpx2.request(method, server + MCP_PATH)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_with_sign_in_an_assistant_needs_a_token(tmp_path):
    """The client sends a bearer token; without it, or without the scope, the call is refused."""

    def token(scope: str) -> dict[str, str]:
        return bearer(jwt.encode(claims(scope=scope), SECRET, "HS256"))

    with running(tmp_path, CIFAR_MCP="true", **SIGN_IN) as server:
        address = server.address
        good = call(address, "predict", headers=token("predict"), image=DATA_URL)
        assert without_id(good) == by_rest(address, headers=token("predict"))
        correct = {"request_id": good.structuredContent["request_id"], "label": "dog"}
        refused = call(address, "feedback", headers=token("predict"), **correct)
        assert refused.structuredContent["code"] == "missing_scope"
        assert not call(address, "feedback", headers=token("predict feedback"), **correct).isError
        assert httpx2.post(address + MCP_PATH, json={}).status_code == 401
        assert httpx2.post(address + MCP_PATH, json={}, headers=token("feedback")).status_code == 403
        assert httpx2.post(f"{address}/explain", files={"image": CAT}).status_code == 401
        assert httpx2.post(f"{address}/explain", files={"image": CAT}, headers=token("feedback")).status_code == 403


def test_two_workers_answer_one_assistant(tmp_path):
    """Calls do not depend on each other, so any worker can answer each of them."""
    with running(tmp_path, workers=2, CIFAR_MCP="true") as server:
        wanted = by_rest(server.address)

        async def often(opened: ClientSession) -> list[CallToolResult]:
            return await asyncio.gather(*(opened.call_tool("predict", {"image": DATA_URL}) for _ in range(20)))

        for result in ask(server.address, often):
            assert without_id(result) == wanted
        assert server.errors() == []


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("", 200),
        ("*/*", 200),
        ("application/*", 200),
        ("text/html, */*;q=0.1", 200),
        ("application/JSON; charset=utf-8", 200),
        ("text/event-stream, application/json;q=0.5", 200),
        ("text/event-stream", 406),
        ("text/html", 406),
        ("application/json; q=0, */*", 406),
        ("*/*;q=0.000", 406),
    ],
)
def test_a_client_that_takes_json_by_a_wildcard_or_says_nothing_is_answered(address, accept, status):
    """RFC 9110: no `Accept` means anything. The library knows no wildcards, and answers 406 in another shape."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    with httpx2.Client() as client:
        del client.headers["accept"]
        headers = {} if accept is None else {"Accept": accept}
        answer = client.post(address + MCP_PATH, json=call, headers=headers, timeout=60)
    assert answer.status_code == status, answer.text
    if status == 406:
        assert answer.json()["code"] == "not_acceptable"


def test_a_call_names_its_type_in_any_letters_and_another_type_is_refused_in_the_shape_of_all_errors(address):
    """A page of another site may send text/plain without asking first. The library refuses with a plain text, and capitals too."""
    call = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
    for kind, status in (("Application/JSON; charset=utf-8", 200), ("text/plain", 400), ("", 400)):
        answer = httpx2.post(address + MCP_PATH, content=call, headers={"Content-Type": kind})
        assert (answer.status_code, "code" in answer.json()) == (status, status == 400)
