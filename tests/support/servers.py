"""Running servers, and what tests need to start them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from support.pictures import encoded, noise

from cifar import CLASS_NAMES
from cifar.serving.inference.cache import AnswerCache
from cifar.settings import ROOT

NO_CACHE = AnswerCache(images=0, lifetime_seconds=1, redis=None)


SHARED = ROOT.parent / "shared"
"""Larger data for those who have it; the default tests pass without."""


def need(program: str, *, also_in: Iterable[Path] = ()) -> str:
    """The path of a system program, looked for in other folders too. Without it the test is skipped, or under CI=true fails."""
    if path := shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *map(str, also_in)])):
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is not installed; .ci/run should have done it")
    pytest.skip(f"{program} is not installed; .ci/run has the packages")


@contextmanager
def real_redis(folder: Path, port: int = 0) -> Iterator[str]:
    """A real Redis without persistence; yields its address."""
    port = port or free_port()
    command = [need("redis-server"), "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not listens(port):
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def heeding_ctrl_c(command: list[object], **options: object) -> subprocess.Popen[str]:
    """A process that hears SIGINT: a shell starts what runs in the background deaf to it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Of the ports that the system gives to nobody by itself, a thousand for each process of tests: nobody else takes one before it is used.
_PLACE = 1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw"))


_PORTS = itertools.cycle(range(20_000 + 1_000 * _PLACE, 21_000 + 1_000 * _PLACE))


def free_port() -> int:
    """A port that nobody listens on."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("an endless row of ports came to its end")


def wait_until_ready(client: TestClient | httpx.Client) -> None:
    """Wait until the model is loaded; its absence for two minutes is a failure."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:  # nobody listens yet, or TensorFlow is being imported
            pass
        time.sleep(0.2)
    pytest.fail("the server was not ready within two minutes")


class app_process:  # noqa: N801 - reads as a function where it is used
    """`python app.py` as a context: ended by SIGTERM, which must suffice."""

    def __init__(self, log, folder: Path, **settings: str) -> None:
        self.port = free_port()
        environment = {**os.environ, "PORT": str(self.port), "CIFAR_UPLOADS": str(folder / "uploads"), **settings}
        self.process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


EXAMPLES = ROOT / "examples"


@dataclass
class Server:
    """A running server."""

    address: str
    process: subprocess.Popen
    log: Path

    def workers(self) -> set[int]:
        """The process ids of its workers."""
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return {int(pid) for pid in listed.stdout.split()}


@contextmanager
def running(folder: Path, *, workers: int, target: str | None = None, **settings: str) -> Iterator[Server]:
    """`python -m cifar serve --workers N`, or gunicorn with another target, on a free port; SIGTERM must suffice to end it."""
    port = free_port()
    command = [sys.executable, "-m", "cifar", "serve", "--workers", str(workers), "--port", str(port)]
    short = Path(tempfile.mkdtemp()) / "to"  # of a socket's path 107 bytes count
    short.symlink_to(folder)
    environment = {**os.environ, "CIFAR_UPLOADS": str(folder / "uploads"), "TMPDIR": str(short), **settings}
    if target:
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", target]
        environment |= {"CIFAR_WORKERS": str(workers), "CIFAR_PORT": str(port)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        server = Server(f"http://127.0.0.1:{port}", process, folder / "log")
        try:
            with httpx.Client(base_url=server.address) as client:
                wait_until_ready(client)
            wait_for_workers(server, workers)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=40)
        assert code in {0, -signal.SIGTERM}, "gunicorn ends with 0, one process by the signal it was sent"
    assert list(folder.glob("cifar-workers-*")) == [], "the sockets are gone"


def wait_for_workers(server: Server, ready: int) -> None:
    """Wait until as many have said that their version is ready."""
    deadline = time.monotonic() + 60
    while server.log.read_text().count("is ready on") < ready:
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        time.sleep(0.1)


def classify(server: Server, i: int, client: httpx.Client | None = None) -> bool:
    """One request, over a connection of its own or the client's: whether its answer was the right one."""
    content = (EXAMPLES / f"{CLASS_NAMES[i % 10]}.jpg").read_bytes()
    response = (client or httpx).post(f"{server.address}/predict", files={"image": content}, timeout=30)
    return response.status_code == 200 and response.json()["predicted_class"] == CLASS_NAMES[i % 10]


def mixed_payloads() -> list[bytes]:
    """Small and large, PNG and JPEG: some are decoded in the event loop, some in threads."""
    examples = [(EXAMPLES / f"{name}.jpg").read_bytes() for name in CLASS_NAMES]
    return [
        *examples,
        *(encoded(noise(size, size, seed=size), kind) for size in (32, 300, 900) for kind in ("PNG", "JPEG")),
    ]


def scores(response: httpx.Response) -> list[float]:
    assert response.status_code == 200, response.text
    return list(response.json()["class_scores"].values())


def ask_all(address: str, payloads: list[bytes], count: int) -> list[list[float]]:
    """As many requests over 16 connections, each with the next payload; the answers in order."""

    def ask(first: int) -> list[list[float]]:
        with httpx.Client(base_url=address, timeout=60) as client:
            return [
                scores(client.post("/predict", files={"image": payloads[i % len(payloads)]}))
                for i in range(first, count, 16)
            ]

    with ThreadPoolExecutor(16) as pool:
        lists = list(pool.map(ask, range(16)))
    return [lists[i % 16][i // 16] for i in range(count)]


def metric(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)
