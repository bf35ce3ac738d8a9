"""Attacks on nginx and through it: request smuggling, closed paths in other spellings, slow clients."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, StreamReset
from support.nginx import Nginx
from support.pictures import encoded, noise
from support.servers import classify

from cifar import CLASS_NAMES
from cifar.settings import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream(two_workers) -> str:
    assert "# HELP" in httpx2.get(f"{two_workers.address}/metrics").text, "a successful attack would show this"
    return two_workers.address.removeprefix("http://")


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send raw bytes and return the response, until the connection closes or is silent for half a second."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while part := connection.recv(65536):
                received += part
                connection.settimeout(0.5)
        except (TimeoutError, ConnectionError):
            pass
        return received


POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
END = b"0\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)
CHUNKED = b"Transfer-Encoding: chunked\r\n"

SMUGGLING = {
    "length and chunked": (POST + LENGTH + CHUNKED + b"\r\n" + END, 400),
    "chunked and length": (POST + CHUNKED + b"Content-Length: 5\r\n\r\n" + END, 400),
    "two lengths": (POST + b"Content-Length: 0\r\n" + LENGTH + b"\r\n", 400),
    "the same length twice": (POST + LENGTH + LENGTH + b"\r\n", 400),
    "a list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "length with a plus": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "length in hex": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "empty length": (POST + b"Content-Length:\r\n\r\n", 400),
    "length of 2^64": (POST + b"Content-Length: 18446744073709551616\r\n\r\n", 400),
    "space before the colon of length": (POST + b"Content-Length : %d\r\n\r\n" % len(SMUGGLED), 400),
    "space before the colon of chunked": (POST + b"Transfer-Encoding : chunked\r\n\r\n" + END, 400),
    "tab before chunked": (POST + b"Transfer-Encoding:\tchunked\r\n\r\n" + END, 501),
    "vertical tab before chunked": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + END, 501),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + END, 501),
    "identity, chunked": (POST + b"Transfer-Encoding: identity, chunked\r\n\r\n" + END, 501),
    "chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + END, 501),
    "chunked twice": (POST + CHUNKED + CHUNKED + b"\r\n" + END, 400),
    "chunked and identity": (POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + END, 400),
    "quoted chunked": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + END, 501),
    "chunked on a folded line": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + END, 400),
    "chunked and a null": (POST + b"Transfer-Encoding: chunked\x00\r\n\r\n" + END, 400),
    "chunked after a bare return": (POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n" + END, 400),
    "chunked in HTTP/1.0": (POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + END, 400),
    "negative chunk": (POST + CHUNKED + b"\r\n-1\r\n\r\n", 400),
    "chunk of 2^64": (POST + CHUNKED + b"\r\n10000000000000000\r\n", 400),
    "chunk longer than it says": (POST + CHUNKED + b"\r\n2\r\nabcdef\r\n" + END, 400),
    # These are well formed, or read as such. The smuggled part is then a second request, which nginx refuses.
    "chunked in capitals": (POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n" + END, 400),
    "chunked with an underscore": (POST + b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END, 415),
    "chunked after a bare line feed": (POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n" + END, 400),
    "chunk extension with a bare line feed": (POST + CHUNKED + b"\r\n0;a\n\r\n", 400),
    "a body where none belongs": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n" + END, 200),
    "an upgrade to HTTP/2": (UPGRADE + b"h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", 200),
    "an upgrade to a web socket": (UPGRADE + b"websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", 200),
    "HTTP/2 without HTTPS": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a tunnel": (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a trace": (b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "a host with quotes": (b'GET /config HTTP/1.1\r\nHost: a"<b>\r\n\r\n', 421),
    "a method of 2 kB": (b"A" * 2000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a header of 100 kB": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 400),
    "a thousand headers": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Aaaaaaaaaa: b%s\r\n" % (b"b" * 80) * 1000, 400),
    "an address of 100 kB": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
}  # fmt: skip


def others_get_their_own_answers(front: Nginx, until_done: list[Future[None]]) -> None:
    """Ask for the health with an id of one's own, again and again until the attacks are over: no answer is another's."""
    asked = 0
    while asked < 20 or not all(attack.done() for attack in until_done):
        mine = uuid.uuid4().hex
        answer = httpx2.get(f"{front.address}/health", headers={"X-Request-ID": mine}, timeout=20)
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, mine)
        asked += 1


def attack_beside_others(front, attack: Callable[[str], None], names: Iterable[str]) -> None:
    """Make all attacks at the same time, while others ask; raise the first failure of an attack."""
    with ThreadPoolExecutor(8) as pool:
        attacks = [pool.submit(attack, name) for name in names]
        others_get_their_own_answers(front, attacks)
    for each in attacks:
        each.result()


def test_no_request_is_smuggled_past_nginx(front):
    """Nginx and the app agree where a request ends: the hidden request fails, and no client gets another's response."""

    def attack(name: str) -> None:
        request, expected = SMUGGLING[name]
        received = exchange(front.port, request + SMUGGLED)
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]
        assert statuses[:1] == [expected], f"{name}: {received[:300]!r}"
        assert set(statuses[1:]) <= {404}, f"{name}: nginx refuses the second request"
        assert b"# HELP" not in received, name

    attack_beside_others(front, attack, SMUGGLING)


HTTP2 = {
    "chunked": ([("transfer-encoding", "chunked")], END + SMUGGLED),
    "a length too short": ([("content-length", "0")], SMUGGLED),
    "a length too long": ([("content-length", "5000")], SMUGGLED),
    "two lengths": ([("content-length", "0"), ("content-length", str(len(SMUGGLED)))], SMUGGLED),
    "a line end in a value": ([("x-a", "b\r\ntransfer-encoding: chunked")], END + SMUGGLED),
    "a line end in a name": ([("x-a: b\r\ntransfer-encoding", "chunked")], END + SMUGGLED),
    "a null in a value": ([("x-a", "b\0c")], SMUGGLED),
    "a colon in a name": ([("transfer-encoding: chunked\r\nx", "y")], END + SMUGGLED),
    "capitals in a name": ([("Transfer-Encoding", "chunked")], END + SMUGGLED),
    "a request line in the path": ([(":path", "/health HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics")], b""),
    "a request line in the method": ([(":method", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET")], b""),
    "a line end in the host": ([(":authority", "localhost\r\nX: y")], b""),
    "two hosts": ([("host", "evil.example")], b""),
}


def test_no_request_is_smuggled_through_http_2(front, secure):
    """HTTP/2 frames that HTTP/1.1 would read differently are refused, or are treated as content."""

    def attack(name: str) -> None:
        headers, body = HTTP2[name]
        received = exchange_http2(secure.tls_port, dict(headers[:1]), headers, body)
        assert received.startswith((b"400 ", b"405 ", b"reset")), f"{name}: refused, by nginx or by the app"
        assert b"# HELP" not in received, name
        assert b"evil" not in received, name

    attack_beside_others(front, attack, HTTP2)


def exchange_http2(port: int, first: dict[str, str], headers: list[tuple[str, str]], body: bytes) -> bytes:
    """Send a POST over HTTP/2 with invalid headers, and return status, headers and content of the response."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    careless = H2Configuration(header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
    h2 = H2Connection(careless)
    usual = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": "/config"}
    pseudo = [(name, first.get(name, value)) for name, value in usual.items()]
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        h2.initiate_connection()
        h2.send_headers(1, [*pseudo, *(pair for pair in headers if pair[0] not in usual)])
        h2.send_data(1, body, end_stream=True)
        connection.sendall(h2.data_to_send())
        received = b""
        try:
            while part := connection.recv(65536):
                for event in h2.receive_data(part):
                    received += b"reset" if isinstance(event, (StreamReset, ConnectionTerminated)) else b""
                    received += getattr(event, "data", b"") or b""
                    received += b" ".join(value for _, value in getattr(event, "headers", None) or [])
                if received:
                    connection.settimeout(0.5)
        except (TimeoutError, ConnectionError):
            pass
        return received


def test_the_host_of_an_absolute_url_is_ignored(front):
    """With `GET http://evil.example/config`, Gradio would build its URLs from that host."""
    received = exchange(
        front.port, b"GET http://evil.example/config HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert b"200 OK" in received
    assert b"evil" not in received


CLOSED = [
    f"{before}{path}"
    for path in ("metrics", "%6detrics", "m%65trics", "METRICS", "metrics/", "metrics%2f", "monitoring", "monitoring/summary")
    for before in ("/", "//", "/./", "/x/../", "/x/%2e%2e/", "/x/..%2f", "/%2e/", "/assets/../", "/static/..%2f")
] + [
    f"{before}{path}"
    for path in (
        "file=http://127.0.0.1:1/x", "file=HTTPS://127.0.0.1/x", "file=%68ttp://127.0.0.1/x", "file=http:/127.0.0.1/x",
        "file=%20http://127.0.0.1/x", "file=ftp://127.0.0.1/x", "file=file:///etc/passwd", "proxy=http://127.0.0.1:1/x",
        "file=/etc/passwd", "file=%2fetc%2fpasswd", "file=../../../../../../../../etc/passwd", "file/etc/passwd",
        "file=..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "file=cifar/settings.py", "file=.env", "file=/proc/self/environ",
        "deep_link", "component_server", "dev/reload", "runs", "run-history/records", "vibe-code", "process_recording",
        "custom_component/a/client/component/style.css", "stream/a/b/c/playlist.m3u8",
    )
    for before in ("/gradio_api/", "//gradio_api/", "/x/../gradio_api/", "/%67radio_api/", "/x%2f..%2fgradio_api/")
] + [
    "/static/../../../../../../etc/passwd", "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets/..%5c..%5c..%5cetc%5cpasswd",
    "/static//etc/passwd", "/assets//etc/passwd", "/static/%00", "/..%00/metrics", "/svelte/../../../etc/passwd",
    "/../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/%c0%ae%c0%ae/etc/passwd", "/..;/metrics",
    "/metrics;a=b", "/metrics%20", "/metrics%00", "/metrics%0a", "/metrics%3f", "/%2fmetrics", "/%256detrics", "\\metrics",
    "/app.py", "/.env", "/cifar/settings.py", "/nginx.conf", "/saved_model/cifar_classifier/1/manifest.json",
]  # fmt: skip


def test_closed_paths_stay_closed_in_every_spelling(front):
    """Metrics, monitoring, and files and URLs through Gradio: encoded, with extra slashes and dots, in capitals."""
    opened = []
    for path in CLOSED:
        received = exchange(front.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        status = int(re.match(rb"HTTP/1\.1 (\d+)", received)[1])
        leaks = any(word in received for word in (b"# HELP", b"root:", b"PATH=", b"class Settings", b"sha256"))
        if leaks or status not in {400, 403, 404, 405}:
            opened.append((path, received[:120]))
    print(f"{len(CLOSED)} paths")
    assert opened == []


async def send_slowly(port: int, address: str, head: bytes, seconds: float) -> bytes:
    """Send `head` at once, then a byte a second; return the response when the other side closes, or nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(head)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            writer.write(b"a")
            try:
                return await asyncio.wait_for(reader.read(65536), 1) or b"closed"
            except TimeoutError:
                pass
    except ConnectionError:
        return b"closed"
    finally:
        writer.close()
    return b""


def test_two_hundred_slow_clients_do_not_delay_others(front):
    """Half send the header slowly and are disconnected, half send the body slowly and never hold up the app."""
    header = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    body = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
    quick: list[bool] = []

    def ask() -> None:
        deadline = time.monotonic() + 12
        i = 0
        while time.monotonic() < deadline:
            with httpx2.Client(base_url=front.address, timeout=20) as client:
                name = CLASS_NAMES[i % 10]
                response = client.post("/predict", files={"image": (ROOT / f"examples/{name}.jpg").read_bytes()})
                quick.append(response.status_code == 200 and response.json()["predicted_class"] == name)
            i += 1

    async def attack() -> list[bytes]:
        slow = [send_slowly(front.port, f"127.0.1.{1 + i % 4}", header if i < 100 else body, 16) for i in range(200)]
        *ends, _ = await asyncio.gather(*slow, asyncio.to_thread(ask))
        return ends

    ends = asyncio.run(attack())
    print(f"{len(quick)} quick requests, all answered: {all(quick)}")
    assert len(quick) > 20
    assert all(quick)
    assert set(ends[:100]) == {b"closed"}
    assert classify(front, 0)


def test_bodies_that_do_not_end_take_no_disk(front):
    """A hundred of them, from one address, used to fill /tmp. Then nobody's photo reached the app, since it had to lie there first."""
    folder = str(front.log.parent / "bodies")

    def files() -> list[str]:  # nginx removes their names at once
        pids = subprocess.run(["pgrep", "-P", str(front.process.pid)], capture_output=True, text=True, check=True)
        links = [link for pid in pids.stdout.split() for link in Path(f"/proc/{pid}/fd").iterdir()]
        return [file for link in links if link.is_symlink() and (file := str(link.readlink())).startswith(folder)]

    def body(path: str, framing: str) -> bytes:
        return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n{framing}\r\n\r\n".encode()

    async def attack() -> None:
        heads = [
            body(path, "Content-Length: 900000") + b"x" * 800_000
            for path in ("/predict", "/explain", "/gradio_api/call/predict")
        ]
        heads.append(body("/predict", "Transfer-Encoding: chunked") + b"c3500\r\n" + b"x" * 700_000)
        heads.append(body("/predict", "Content-Length: 99999") + b"x" * 90_000)
        slow = asyncio.gather(*[send_slowly(front.port, "127.0.1.9", head, 3) for head in heads * 2])
        await asyncio.sleep(1.5)
        assert files() == []
        await slow

    asyncio.run(attack())
    photo = encoded(noise(400, 400))
    assert len(photo) > 100_000
    assert httpx2.post(f"{front.address}/predict", files={"image": photo}).status_code == 200


def test_slow_clients_of_one_address_do_not_affect_other_addresses(front):
    """Of two hundred slow bodies from one address, those above its limit are refused at once; other addresses are served."""
    body = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"

    async def attack() -> tuple[list[bytes], list[int]]:
        slow = asyncio.gather(*[send_slowly(front.port, "127.0.1.9", body, 4) for _ in range(200)])
        await asyncio.sleep(2)
        async with httpx2.AsyncClient() as client:
            statuses = [(await client.get(f"{front.address}/health")).status_code for _ in range(20)]
        return await slow, statuses

    ends, statuses = asyncio.run(attack())
    assert statuses == [200] * 20
    assert sum(b"429" in end for end in ends) == 200 - 128
