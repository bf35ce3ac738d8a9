"""A full disk, on which everything of the server's lies that is not read only: uploads fail, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from support.pictures import encoded, noise
from support.servers import CAT, Server, ask_all, mixed_payloads, need, running, wait_for_workers
from support.waiting import until

from cifar.settings import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 8 MB."""
    need("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    mount = [*as_root, "mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        message = f"this user cannot mount a disk: {mounted.stderr.decode()}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    try:
        yield disk
    finally:
        subprocess.run([*as_root, "umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Write until the disk is full, and return the file."""
    full = disk / "full"
    with full.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return full


def upload(server: Server, content: bytes = CAT) -> httpx2.Response:
    return httpx2.post(f"{server.address}/gradio_api/upload", files={"files": ("a.jpg", content)}, timeout=30)


def requests_of(version_or_name: str, server: Server) -> float:
    text = httpx2.get(f"{server.address}/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(version_or_name))


def test_a_full_disk_costs_only_uploads_and_some_metrics(small_disk):
    """The count files of Prometheus lie there too. Writing to a page of them without a block would end the worker by SIGBUS."""
    with running(small_disk, workers=2) as server:
        workers = server.workers()
        pictures = [encoded(noise(300, 300, seed=seed)) for seed in range(40)]  # a stranger fills the disk with uploads
        assert {upload(server, picture).status_code for picture in pictures} == {200, 507}
        full = fill(small_disk)
        refused = upload(server)
        assert (refused.status_code, refused.json()["code"]) == (507, "uploads_full")
        assert ask_all(server.address, mixed_payloads(), 64)
        for version in (1, 2):  # new series, so that the files must grow
            for views in (1, 2, 6):
                data = {"version": str(version), "views": str(views)}
                assert httpx2.post(f"{server.address}/predict", files={"image": CAT}, data=data).status_code == 200
        assert requests_of("request_count_total", server) > 64
        assert server.workers() == workers, "no worker died"
        os.kill(min(workers), signal.SIGKILL)  # a worker that starts on a full disk
        wait_for_workers(server, 3)
        assert ask_all(server.address, mixed_payloads(), 64)
        full.unlink()
        for file in (small_disk / "uploads").rglob("*"):
            os.utime(file, (1, 1))
        (replaced,) = [pid for pid in server.workers() if pid in workers]
        os.kill(replaced, signal.SIGKILL)  # gunicorn's master sweeps before it starts the next one
        until(lambda: upload(server).status_code == 200, "there is no room for uploads again")


_COUNT = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from pathlib import Path
from cifar.serving.process import metrics
metrics.count_in("worker")
metrics.REQUESTS.labels("GET", "/", 200).inc()
with Path(sys.argv[1], "full").open("ab", buffering=0) as file:
    try:
        while True:
            file.write(b"x" * 4096)
    except OSError:
        pass
for place in range(3000):
    metrics.REQUESTS.labels("GET", f"/{place}", 200).inc()
    metrics.LOADED.labels(str(place), "1", "litert").set(1)
print(metrics.REQUESTS.labels("GET", "/2999", 200)._value.get(), len(metrics.exposition()[0]) > 1000)
"""


def test_a_full_disk_costs_only_metrics(small_disk):
    """Thousands of new series, in files that cannot grow or be created, are counted in memory."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, small_disk], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.split() == ["1.0", "True"]
    assert "counted in memory" in done.stderr


def test_the_server_ends_when_no_worker_stays_alive(tmp_path):
    """A container whose main process lives is not restarted, although nobody is served."""
    ended: list[tuple[int | None, str]] = []
    with suppress(AssertionError), running(tmp_path, workers=2) as server:  # which expects that it ends with 0
        deadline = time.monotonic() + 100
        while server.process.poll() is None and time.monotonic() < deadline:
            for worker in server.workers():
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGBUS)
            time.sleep(0.2)
        ended.append((server.process.poll(), server.log.read_text()))
    ((code, log),) = ended
    assert code == 1
    assert "Workers end as soon as they start" in log
