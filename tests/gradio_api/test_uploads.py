"""Photos are not stored: calls write no files, and uploads are deleted after their lifetime."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from support.hostile_files import zipped
from support.servers import CAT, DATA_URL, mcp_session, running

from cifar.serving.gradio.uploads import UPLOAD_LIFETIME_SECONDS, sweep, sweep_while_serving
from cifar.settings import ROOT, Settings


def files_below(folder: Path) -> set[Path]:
    """Return all files but the workers' sockets and counters, which contain nothing of a request."""
    return {file for file in folder.rglob("*") if file.is_file() and file.suffix != ".db"}


@pytest.mark.slow
@pytest.mark.alone
def test_calls_write_no_files_and_a_worker_deletes_the_old_uploads_of_all_workers(tmp_path):
    """This includes archives and uploads through a worker that no longer runs; a worker that starts sweeps them."""
    temporary, uploads = tmp_path / "tmp", tmp_path / "tmp/uploads"
    temporary.mkdir()
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zipped([("a/cat.jpg", CAT), ("b.txt", b"text")]))
    with running(temporary, workers=2, CIFAR_MCP="true") as server:
        before = files_below(temporary)
        for path in ("/predict", "/explain"):
            for _ in range(4):  # so that each worker answers some
                assert httpx2.post(server.address + path, files={"image": CAT}, timeout=60).status_code == 200
        asyncio.run(by_mcp(server.address))
        assert files_below(temporary) == before, "REST and MCP write nothing"

        client = Client(server.address, verbose=False, download_files=str(tmp_path))
        for _ in range(3):
            client.predict(handle_file(ROOT / "examples/cat.jpg"), api_name="/explain")
            client.predict([handle_file(archive), handle_file(ROOT / "examples/dog.jpg")], api_name="/predict_batch")
        written = files_below(temporary) - before
        assert written, "an upload is a file"
        assert all(file.is_relative_to(uploads) for file in written), "in the upload folder only"
        assert {file.name for file in written} == {"cat.jpg", "dog.jpg", "photos.zip"}, "nothing is unpacked"

        for path in uploads.rglob("*"):
            os.utime(path, (time.time() - UPLOAD_LIFETIME_SECONDS - 1,) * 2)
        server.process.send_signal(signal.SIGHUP)  # starts new workers
        deadline = time.monotonic() + 120
        while written & files_below(uploads):
            assert time.monotonic() < deadline, "no worker deleted the uploads"
            time.sleep(0.5)


def test_old_uploads_are_deleted_and_recent_ones_stay(tmp_path):
    """Only their age counts. Empty folders are deleted as well, and links are not followed."""
    long_ago = (time.time() - 100,) * 2
    for name in ("old/a.png", "tmp_cut_off", "young/b.png", "other/d.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
        if "young" not in name:
            os.utime(file, long_ago)
    (tmp_path / "just made").mkdir()
    (tmp_path / "outside").symlink_to(ROOT / "examples")
    os.utime(tmp_path / "outside", long_ago, follow_symlinks=False)
    sweep(tmp_path, max_age_seconds=60)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"young/b.png"}
    assert (tmp_path / "just made").exists()
    assert not (tmp_path / "outside").is_symlink()
    assert len(list((ROOT / "examples").iterdir())) == 11, "the target of a link is not deleted"
    sweep(Path(tmp_path / "never made"), max_age_seconds=60)


def test_an_upload_that_cannot_be_deleted_does_not_prevent_the_deletion_of_others(tmp_path, monkeypatch):
    """For example one from another user's server in the same folder."""
    for name in "abc":
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    unlink = Path.unlink

    def unlink_own(path: Path, **more: bool) -> None:
        if path.name == "b":
            raise PermissionError
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", unlink_own)
    sweep(tmp_path, max_age_seconds=60)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_running_server_deletes_old_uploads_of_an_earlier_one(tmp_path, monkeypatch):
    """A partial upload that a crash left behind does not stay forever."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))  # set by the app; restored afterwards
    from app import create_app

    left_over = tmp_path / "tmp123"
    left_over.write_bytes(b"x")
    os.utime(left_over, (1, 1))
    application = create_app(Settings(uploads=tmp_path))
    with TestClient(application):
        deadline = time.monotonic() + 20
        while left_over.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not left_over.exists()


def test_old_uploads_are_deleted_while_the_server_runs(tmp_path):
    """Newer uploads, and folders that are not empty, stay."""
    api = FastAPI()
    sweep_while_serving(api, tmp_path, max_age_seconds=0.4)
    old, new = tmp_path / "a/old.jpg", tmp_path / "b/new.jpg"
    with TestClient(api):
        for file in (old, new):
            file.parent.mkdir()
            file.touch()
        os.utime(new, (time.time() + 3600,) * 2)
        deadline = time.monotonic() + 20
        while old.parent.exists():
            assert time.monotonic() < deadline, "the old upload is still there"
            time.sleep(0.05)
    assert new.exists()


async def by_mcp(address: str) -> None:
    async with mcp_session(address) as opened:
        for tool, arguments in (
            ("predict", {"image": DATA_URL}),
            ("explain", {"image": DATA_URL}),
            ("predict_batch", {"files": [DATA_URL]}),
        ):
            result = await opened.call_tool(tool, arguments)
            assert not result.isError, json.dumps(result.structuredContent)
