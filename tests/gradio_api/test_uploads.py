"""Nothing of a photo stays: not of a call, and of an upload not beyond its lifetime, with several processes too."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from support import zips
from support.mcp_server import CAT, DATA_URL, session
from support.servers import running

from cifar.settings import ROOT

pytestmark = pytest.mark.slow


def files_below(folder: Path) -> set[Path]:
    """All but the workers' sockets and counts, which hold nothing of what was sent."""
    return {file for file in folder.rglob("*") if file.is_file() and file.suffix != ".db"}


def test_calls_write_nothing_and_uploads_go_when_their_time_has_come(tmp_path):
    """Two workers; every way in was used; one of them sweeps what either took, archives and answers included."""
    temporary, uploads = tmp_path / "tmp", tmp_path / "tmp/uploads"
    temporary.mkdir()
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zips.packed([("a/cat.jpg", CAT), ("b.txt", b"text")]))
    with running(temporary, workers=2, CIFAR_UPLOAD_LIFETIME_SECONDS="60", CIFAR_MCP="true") as server:
        before = files_below(temporary)
        for path in ("/predict", "/explain"):
            for _ in range(4):  # either worker
                assert httpx.post(server.address + path, files={"image": CAT}, timeout=60).status_code == 200
        asyncio.run(by_mcp(server.address))
        assert files_below(temporary) == before, "REST and MCP write nothing"

        client = Client(server.address, verbose=False, download_files=str(tmp_path))
        for _ in range(3):
            client.predict(handle_file(ROOT / "examples/cat.jpg"), api_name="/explain")
            client.predict([handle_file(archive), handle_file(ROOT / "examples/dog.jpg")], api_name="/predict_batch")
        written = files_below(temporary) - before
        assert written, "uploads are files for a while"
        assert all(file.is_relative_to(uploads) for file in written), "and in their folder alone"
        assert {file.name for file in written} == {"cat.jpg", "dog.jpg", "photos.zip"}, "nothing is unpacked"

        for path in uploads.rglob("*"):
            os.utime(path, (time.time() - 61,) * 2)
        deadline = time.monotonic() + 120
        while written & files_below(uploads):
            assert time.monotonic() < deadline, "nobody swept"
            time.sleep(0.5)


async def by_mcp(address: str) -> None:
    async with session(address) as opened:
        for tool, arguments in (
            ("predict", {"image": DATA_URL}),
            ("explain", {"image": DATA_URL}),
            ("predict_batch", {"files": [DATA_URL]}),
        ):
            result = await opened.call_tool(tool, arguments)
            assert not result.isError, json.dumps(result.structuredContent)
