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

from cifar.serving.gradio.uploads import UPLOAD_LIFETIME_SECONDS, sweep_while_serving
from cifar.settings import ROOT


def files_below(folder: Path) -> set[Path]:
    """Return all files but the workers' sockets and counters, which contain nothing of a request."""
    return {file for file in folder.rglob("*") if file.is_file() and file.suffix != ".db"}


@pytest.mark.slow
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
