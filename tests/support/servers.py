"""Running servers, and what tests need to start them."""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx  # the MCP library's HTTP client
import httpx2
import pytest
from fastapi.testclient import TestClient
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from support.pictures import encoded, noise
from support.waiting import until

from cifar import CLASS_NAMES
from cifar.serving.inference.cache import AnswerCache
from cifar.settings import ROOT

EXAMPLES = ROOT / "examples"
CAT = (EXAMPLES / "cat.jpg").read_bytes()
NO_CACHE = AnswerCache(images=0)
SHARED = ROOT.parent / "shared"
"""Optional larger data sets; tests that need them are skipped without it."""


def need(program: str, *, also_in: Iterable[Path] = ()) -> str:
    """Return the path of a system program. Without it the test is skipped, or fails where CI=true.

    Args:
        program: its name.
        also_in: folders to search in addition to PATH.
    """
    if path := shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *map(str, also_in)])):
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is not installed, although .ci/run installs it")
    pytest.skip(f"{program} is not installed; .ci/run lists the packages")


def start_with_ctrl_c(command: list[object], **options: object) -> subprocess.Popen[str]:
    """Start a process that receives SIGINT. Shells let background processes ignore it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def listens(port: int) -> bool:
    """Return whether a program listens on this port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until_listens(process: subprocess.Popen, port: int, why: str | Callable[[], str] = "") -> None:
    """Wait until a process listens on a port. If it ends before, the test fails with `why`, which may be its log."""
    until(lambda: listens(port) or process.poll() is not None, why)
    assert process.poll() is None, why() if callable(why) else why


# A thousand ports for each test process, below those that the system gives to clients: no other program takes one of
# them between the moment it is found free and its use.
_PROCESS = 1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw"))
_PORTS = itertools.cycle(range(20_000 + 1_000 * _PROCESS, 21_000 + 1_000 * _PROCESS))


def free_port() -> int:
    """Return a port that no program listens on."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("itertools.cycle never ends")


def wait_until_ready(client: TestClient | httpx2.Client) -> None:
    """Wait until the model is loaded, and fail after two minutes."""

    def is_ready() -> bool:
        with suppress(httpx2.TransportError):  # nothing listens yet
            return client.get("/readyz").status_code == httpx2.codes.OK
        return False

    until(is_ready, "the server was not ready within two minutes")


@dataclass
class Server:
    """A running server."""

    address: str
    process: subprocess.Popen
    log: Path

    def workers(self) -> set[int]:
        """Return the process ids of its workers."""
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return {int(pid) for pid in listed.stdout.split()}

    def errors(self) -> list[str]:
        """Return the lines of the log that report an error of the server's."""
        return [line for line in self.log.read_text().splitlines() if " ERROR " in line]


@contextmanager
def running(
    folder: Path,
    *,
    workers: int = 1,
    port: int | None = None,
    constants: dict[str, object] | None = None,
    **settings: str,
) -> Iterator[Server]:
    """Run `python -m cifar serve`. It must end on SIGTERM and leave no socket.

    Args:
        folder: for its log, its uploads and its temporary files.
        workers: with 1, one process without gunicorn.
        port: the port to listen on. Default: a free one.
        constants: values of the code to replace, such as `{"cifar.dependency.RECOVERY_SECONDS": 1}`. The server is then
            gunicorn, with one worker too.
        settings: environment variables.
    """
    port = port or free_port()
    command = ["-m", "cifar", "serve", "--workers", str(workers), "--port", str(port)]
    short = Path(tempfile.mkdtemp()) / "to"  # the path of a socket has at most 107 bytes
    short.symlink_to(folder)
    environment = {**os.environ, "CIFAR_UPLOADS": str(folder / "uploads"), "TMPDIR": str(short), **settings}
    if constants:
        command = ["-m", "gunicorn", "-c", "gunicorn.conf.py", "tests.programs.patched_app:app"]
        environment |= {"CIFAR_WORKERS": str(workers), "CIFAR_PORT": str(port), "CONSTANTS": json.dumps(constants)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        server = Server(f"http://127.0.0.1:{port}", process, folder / "log")
        try:
            with httpx2.Client(base_url=server.address) as client:
                wait_until_ready(client)
            wait_for_workers(server, workers)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=40)
        assert code in {0, -signal.SIGTERM}, "gunicorn ends with 0, one process by the signal that it was sent"
    assert list(folder.glob("cifar-workers-*")) == [], "the sockets are removed"


def wait_for_workers(server: Server, ready: int) -> None:
    """Wait until the log says this many times that a worker is ready, at most two minutes."""
    until(lambda: server.log.read_text().count("is ready on") >= ready, lambda: server.log.read_text()[-2000:])


def classify(server: Server, i: int, client: httpx2.Client | None = None) -> bool:
    """Send the example of class `i`, over a new connection or the client's, and return whether the label is right."""
    content = (EXAMPLES / f"{CLASS_NAMES[i % 10]}.jpg").read_bytes()
    response = (client or httpx2).post(f"{server.address}/predict", files={"image": content}, timeout=30)
    return response.status_code == 200 and response.json()["predicted_class"] == CLASS_NAMES[i % 10]


@dataclass
class Load:
    """The results of requests under load: whether each answer was right, and the errors of broken connections."""

    right: list[bool] = field(default_factory=list)
    errors: list[httpx2.TransportError] = field(default_factory=list)


@contextmanager
def load_on(server: Server, clients: int = 8) -> Iterator[Load]:
    """Classify examples from several clients at once until the block ends."""
    load, stop = Load(), threading.Event()

    def send(i: int) -> None:
        while not stop.is_set() and i < 4000:
            try:
                load.right.append(classify(server, i))
            except httpx2.TransportError as error:
                load.errors.append(error)
            i += 1

    with ThreadPoolExecutor(clients) as pool:
        runs = [pool.submit(send, k) for k in range(clients)]
        try:
            yield load
        finally:
            stop.set()
        for run in runs:
            run.result()


def mixed_payloads() -> list[bytes]:
    """Return small and large files, PNG and JPEG: some are decoded in the event loop, some in threads."""
    examples = [(EXAMPLES / f"{name}.jpg").read_bytes() for name in CLASS_NAMES]
    return [
        *examples,
        *(encoded(noise(size, size, seed=size), kind) for size in (32, 300, 900) for kind in ("PNG", "JPEG")),
    ]


def scores(response: httpx2.Response) -> list[float]:
    assert response.status_code == 200, response.text
    return response.json()["class_scores"]


def ask_all(address: str, payloads: list[bytes], count: int) -> list[list[float]]:
    """Send `count` requests over 16 connections, each with the next payload, and return their scores in order."""

    def ask(first: int) -> list[list[float]]:
        with httpx2.Client(base_url=address, timeout=60) as client:
            return [
                scores(client.post("/predict", files={"image": payloads[i % len(payloads)]}))
                for i in range(first, count, 16)
            ]

    with ThreadPoolExecutor(16) as pool:
        lists = list(pool.map(ask, range(16)))
    return [lists[i % 16][i // 16] for i in range(count)]


def metric(server: Server, name: str) -> float:
    """Return the value of the metric with exactly this name and labels, or 0."""
    lines = httpx2.get(f"{server.address}/metrics").text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


MCP_PATH = "/gradio_api/mcp/"
DATA_URL = "data:image/jpeg;base64," + base64.b64encode(CAT).decode()


@asynccontextmanager
async def mcp_session(address: str, **headers: str) -> AsyncIterator[ClientSession]:
    """Open a session with the MCP endpoint of a server."""
    async with (
        httpx.AsyncClient(headers=headers, timeout=60) as client,
        streamable_http_client(address + MCP_PATH, http_client=client) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


@contextmanager
def visited_server() -> Iterator[tuple[str, list[str]]]:
    """Run a web server that records its visitors; yields the address of an image and the list of requested paths."""
    visits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.jpg", visits
    server.shutdown()
    server.server_close()
