"""HTTP as clients, proxies and strangers really speak it: over sockets, to the plain server and to gunicorn."""

from __future__ import annotations

import http.client
import json
import socket
import time

import httpx2
import pytest
from support.servers import CAT

BOUNDARY = "x0"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="cat.jpg"\r\n\r\n'.encode()
    + CAT
    + f"\r\n--{BOUNDARY}--\r\n".encode()
)
TYPE = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
LENGTH = f"Content-Length: {len(FORM)}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module", params=["one process", pytest.param("gunicorn", marks=pytest.mark.slow)])
def address(request):
    """Host and port of the servers that all tests share."""
    gunicorn = request.param == "gunicorn"
    url = httpx2.URL(request.getfixturevalue("two_workers").address if gunicorn else request.getfixturevalue("server"))
    return url.host, url.port


def chunks(body: bytes, size: int = 700) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def answer_of(connection: socket.socket, method: str = "POST") -> tuple[int, dict[str, object]]:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return response.status, json.loads(response.read())


def ask(connection: socket.socket, headers: str, body: bytes, *, pieces: int = 1) -> tuple[int, dict[str, object]]:
    """Send `POST /predict` in pieces, and return status and answer."""
    request = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode() + body
    size = -(-len(request) // pieces)
    for i in range(0, len(request), size):
        connection.sendall(request[i : i + size])
        time.sleep(0.02 if pieces > 1 else 0)
    return answer_of(connection)


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("framing", [LENGTH, CHUNKED], ids=["content_length", "chunked"])
@pytest.mark.parametrize("offer", [H2C, "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n"], ids=["h2c", "tls"])
def test_an_offer_to_change_the_protocol_does_not_cost_the_body(address, offer, framing, pieces):
    """Java's client offers HTTP/2 with each first request. The next request on the connection is answered too."""
    body = chunks(FORM) if framing == CHUNKED else FORM
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(2):
            status, answer = ask(connection, TYPE + offer + framing, body, pieces=pieces)
            assert (status, answer["predicted_class"]) == (200, "cat")
        status, answer = ask(connection, TYPE + framing, body)
        assert (status, answer["predicted_class"]) == (200, "cat")


def test_requests_that_are_sent_without_waiting_are_answered_in_order(address):
    """An offer to change the protocol in the middle of a pipeline changes nothing."""
    request = f"POST /predict HTTP/1.1\r\nHost: a\r\n{TYPE}{LENGTH}".encode()
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(
            request + b"\r\n" + FORM + request + H2C.encode() + b"\r\n" + FORM + request + b"\r\n" + FORM
        )
        received = b""
        while received.count(b'"predicted_class":"cat"') < 3:
            piece = connection.recv(65536)
            assert piece, received
            received += piece
    assert received.count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize(
    "head",
    [
        "X-Long: " + "a" * 40_000 + "\r\n",
        "".join(f"X-{i}: {'b' * 90}\r\n" for i in range(500)),
        "Cookie: " + "c=d; " * 8_000 + "\r\n",
    ],
    ids=["one long value", "many headers", "cookies"],
)
def test_a_head_that_is_too_large_is_refused(address, head):
    """It would be held in memory and parsed by the event loop before any other limit applies."""
    with socket.create_connection(address, timeout=20) as connection:
        status, answer = ask(connection, TYPE + head + LENGTH, FORM)
        assert (status, answer["code"]) == (431, "head_too_large")
        assert connection.recv(1) == b"", "the connection is closed"


def test_a_head_that_never_ends_is_refused_before_it_fills_memory(address):
    """The server reads little more than the limit."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nX-Endless: ")
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(b"a" * 65536)
                sent += 65536
        except OSError:
            pass
        assert sent < 20_000_000


def test_a_request_that_is_no_http_gets_an_error_of_the_usual_form(address):
    """Programs that parse errors need no second parser."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"THIS IS NO HTTP\r\n\r\n")
        status, answer = answer_of(connection)
        assert (status, answer["code"]) == (400, "bad_request")
        assert answer["request_id"]


def test_leading_zeros_of_a_content_length_cost_only_the_announcement(address):
    """Python refuses to read more than 4,300 digits, which was an internal error of every route."""
    for zeros in ("", "0" * 5000):
        with socket.create_connection(address, timeout=20) as connection:
            status, answer = ask(connection, f"{TYPE}Content-Length: {zeros}{len(FORM)}\r\n", FORM)
            assert (status, answer["predicted_class"]) == (200, "cat")
        with socket.create_connection(address, timeout=20) as connection:
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\n{TYPE}Content-Length: {zeros}{len(FORM)}\r\n\r\n"
            connection.sendall(head.encode() + FORM)
            assert answer_of(connection)[0] == 200


GETS = ["/", "/health", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models/cifar_classifier"]
GETS += ["/v1/models/cifar_classifier/metadata", "/gradio_api/info", "/config", "/theme.css"]


@pytest.mark.parametrize("path", GETS)
def test_head_is_answered_like_get_without_a_body(address, path):
    """Load balancers, uptime monitors and Hugging Face Spaces probe with HEAD."""
    base = "http://{}:{}".format(*address)
    get, head = httpx2.get(base + path), httpx2.head(base + path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert (get.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/predict"), ("DELETE", "/health"), ("PUT", "/gradio_api/info"), ("POST", "/metrics"), ("PATCH", "/docs")],
)
def test_a_wrong_method_is_answered_with_those_that_the_route_has(address, method, path):
    """RFC 9110 asks for `Allow` with each 405, and HEAD goes with GET."""
    answer = httpx2.request(method, "http://{}:{}".format(*address) + path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    allowed = answer.headers["allow"].split(", ")
    assert allowed[0] in answer.json()["error"]
    assert ("GET" in allowed) == ("HEAD" in allowed)
    assert method not in allowed


def test_a_stream_is_not_opened_by_head(address):
    """It would take the events of a page away. `Allow` must not name HEAD then."""
    for path in ("heartbeat/abc", "queue/data?session_hash=abc"):
        answer = httpx2.head("http://{}:{}/gradio_api/".format(*address) + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_a_client_that_sends_before_it_reads_sees_that_its_file_is_too_large(address):
    """A server that closes a connection with unread bytes resets it, and the answer is lost."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("POST", "/predict", b"x" * 22_000_000, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("path", ["/feedback", "/admin/models/promote", "/admin/models/traffic"])
def test_a_route_with_a_few_fields_takes_no_large_body(address, path):
    """Validating a JSON object of megabytes would hold the event loop for seconds."""
    body = json.dumps({f"key{i}": i for i in range(10_000)}).encode()
    answer = httpx2.post(
        "http://{}:{}".format(*address) + path, content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "path",
    [
        *(f"call/predict/{event}" for event in ("9" * 5000 + "-abc", "0-abc", "1-abc", "abc")),
        "queue/data?session_hash=abc",
    ],
)
def test_a_stream_that_does_not_exist_is_answered_404(address, path):
    """Gradio would begin it and break it off. Python refuses to parse numbers of thousands of digits."""
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(2):
            connection.sendall(f"GET /gradio_api/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            status, answer = answer_of(connection, "GET")
            assert (status, answer["code"]) == (404, "not_found"), "the connection stays open"
