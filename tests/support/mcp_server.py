"""A server with MCP on, and a session of its own client."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from support.servers import app_process, wait_until_ready

from cifar.settings import ROOT

CAT = (ROOT / "examples" / "cat.jpg").read_bytes()


DATA_URL = "data:image/jpeg;base64," + base64.b64encode(CAT).decode()


PATH = "/gradio_api/mcp/"


@contextlib.contextmanager
def served(folder: Path, **settings: str) -> Iterator[str]:
    """`python app.py` with MCP on."""
    with (folder / "log").open("w") as log, app_process(log, folder, CIFAR_MCP="true", **settings) as process:
        address = f"http://127.0.0.1:{process.port}"
        with httpx.Client(base_url=address) as client:
            wait_until_ready(client)
        yield address
    assert " ERROR " not in (folder / "log").read_text()


@asynccontextmanager
async def session(address: str, **headers: str) -> AsyncIterator[ClientSession]:
    async with (
        httpx.AsyncClient(headers=headers, timeout=60) as client,
        streamable_http_client(address + PATH, http_client=client) as (read, write, _),
        ClientSession(read, write) as opened,
    ):
        await opened.initialize()
        yield opened
