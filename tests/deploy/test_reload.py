"""`python -m cifar check`, and what SIGHUP, a dead master and a damaged version do to gunicorn's workers."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from support.cli import cifar
from support.samples import write_two_versions
from support.servers import CAT, Server, free_port, running
from support.waiting import until

SECRET = "k" * 32


def damage(folder: Path) -> None:
    """Overwrite a file of version 2, which is the stable one."""
    for path in (folder / "registry/cifar_classifier/2").rglob("*.tflite"):
        path.write_bytes(b"damaged")


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


WRONG = {
    "a wrong setting": (lambda folder: (folder / "key").write_text("short"), "CIFAR_RECORDS_KEY_FILE is not usable"),
    "an unknown database": (
        lambda folder: (folder / "url").write_text("mysql://x"),
        "CIFAR_DATABASE_URL is not usable",
    ),
    "a file in place of a folder": (lambda folder: (folder / "up").write_text(""), "/up is a file."),
    "a damaged version": (damage, "is not the file that was exported"),
    "a wrong key file": (lambda folder: (folder / "var/users.key").write_bytes(b"k" * 33), "33 bytes instead of 32"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_check_says_one_sentence_for_each_failure_and_exits_with_1(tmp_path, kind):
    """It is run before a start or a reload, so it must find what would stop a server."""
    write_two_versions(tmp_path / "registry")
    (tmp_path / "var").mkdir()
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "url").write_text("sqlite:////tmp/never-opened")
    settings = {
        "CIFAR_REGISTRY": str(tmp_path / "registry"),
        "CIFAR_RECORDS_FOLDER": str(tmp_path / "var"),
        "CIFAR_UPLOADS": str(tmp_path / "up/loads"),
        "CIFAR_DATABASE_URL_FILE": str(tmp_path / "url"),
    }
    if kind != "a wrong key file":
        settings["CIFAR_RECORDS_KEY_FILE"] = str(tmp_path / "key")
    good = cifar("check", **settings)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert not (tmp_path / "var/users.key").exists(), "it changes nothing"
    spoil, words = WRONG[kind]
    spoil(tmp_path)
    bad = cifar("check", **settings)
    assert (bad.returncode, bad.stdout) == (1, "")
    (line,) = bad.stderr.splitlines()
    assert words in line
    if kind == "a damaged version":
        (tmp_path / "url").write_text("mysql://x")
        assert len(cifar("check", **settings).stderr.splitlines()) == 2, "all failures"


@pytest.mark.slow
def test_a_reload_that_could_not_serve_keeps_the_workers_and_their_settings(tmp_path):
    """A typo used to end the master and leave its workers behind; a damaged version ended all workers, for good."""
    write_two_versions(tmp_path / "registry")
    (tmp_path / "key").write_text(SECRET)
    settings = {
        "CIFAR_REGISTRY": str(tmp_path / "registry"),
        "CIFAR_RECORDS_FOLDER": str(tmp_path / "var"),
        "CIFAR_RECORDS_KEY_FILE": str(tmp_path / "key"),
    }
    with running(tmp_path, workers=2, **settings) as server:
        before = server.workers()
        assert "Serving at http://" in server.log.read_text(), "who can reach it"

        def refused() -> int:
            return server.log.read_text().count("Not reloaded")

        for number, spoil in enumerate((lambda: (tmp_path / "key").write_text("short"), lambda: damage(tmp_path)), 1):
            spoil()
            os.kill(server.process.pid, signal.SIGHUP)
            until(lambda number=number: refused() == number)
            assert server.workers() == before
            assert predict(server) == 200
            (tmp_path / "key").write_text(SECRET)
        write_two_versions(tmp_path / "again")
        for path in (tmp_path / "again/cifar_classifier/2").rglob("*.tflite"):
            path.replace(next((tmp_path / "registry/cifar_classifier/2").rglob("*.tflite")))
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: len(server.workers()) == 2 and not server.workers() & before)
        assert predict(server) == 200


def predict(server: Server) -> int:
    return httpx2.post(f"{server.address}/predict", files={"image": CAT}, timeout=30).status_code


@pytest.mark.slow
def test_workers_end_when_their_master_is_gone(tmp_path):
    """They used to live on, hold the port, and be replaced by nobody."""
    port = free_port()
    with suppress(AssertionError), running(tmp_path, workers=2, port=port) as server:
        workers = server.workers()
        server.process.kill()
        server.process.wait(10)
        until(lambda: not any(map(alive, workers)))
        ended = True
    assert ended
    assert list(tmp_path.glob("cifar-workers-*")) == []
    assert "The master process has ended" in server.log.read_text()
    (tmp_path / "again").mkdir()
    with running(tmp_path / "again", workers=2, port=port) as server:
        assert predict(server) == 200


@pytest.mark.slow
def test_a_worker_that_cannot_be_replaced_is_tried_with_growing_pauses_while_the_other_serves(tmp_path):
    """The version was damaged on disk and a worker died. Without pauses its successors would keep a core busy."""
    write_two_versions(tmp_path / "registry")
    settings = {"CIFAR_REGISTRY": str(tmp_path / "registry"), "CIFAR_RECORDS_FOLDER": str(tmp_path / "var")}
    with running(tmp_path, workers=2, **settings) as server:
        time.sleep(21)  # from then on, a worker counts as one that serves
        damage(tmp_path)
        first, other = sorted(server.workers())
        os.kill(first, signal.SIGKILL)

        def starts() -> int:
            return server.log.read_text().count("Booting worker with pid")

        time.sleep(8)
        assert starts() <= 2 + 6, "the pauses are 0.5, 1, 2 and 4 seconds"
        until(lambda: starts() >= 2 + 2)
        assert other in server.workers()
        assert predict(server) == 200
