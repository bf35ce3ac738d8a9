"""The snippets on the tab Code, run as a reader would run them: copied, beside a file `photo.jpg`."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from support.servers import DATA_URL, need, running

from cifar.serving.page.code_tab import SNIPPETS, snippet
from cifar.settings import ROOT


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copy(ROOT / "examples/cat.jpg", tmp_path / "photo.jpg")
    return tmp_path


@pytest.fixture
def expected(server) -> dict:
    """REST's answer to the photo."""
    content = (ROOT / "examples/cat.jpg").read_bytes()
    return httpx2.post(f"{server}/predict", files={"image": content}, data={"top_k": 3}).json()


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shell_snippet_answers_what_rest_answers(server, folder, expected):
    """It is one line, and prints the JSON to stdout."""
    need("curl")
    answer = json.loads(run(["sh", "-c", snippet("code.curl", server).replace("curl ", "curl -sS ", 1)], folder))
    assert {**answer, "request_id": ""} == {**expected, "request_id": ""}


@pytest.mark.parametrize("title", ["code.python_client", "code.python_requests"])
def test_the_python_snippets_print_the_label_and_its_score(server, folder, expected, title):
    """They run as a file, with the packages that the first line names."""
    (folder / "classify.py").write_text(snippet(title, server))
    shown = run([sys.executable, "classify.py"], folder)
    assert shown.splitlines()[-1] == f"{expected['predicted_class']} {expected['confidence']}"


def test_the_snippet_for_requests_prints_the_error_message_of_the_server(server, folder):
    """It exits with a status other than 0."""
    (folder / "photo.jpg").write_text("no photo")
    (folder / "classify.py").write_text(snippet("code.python_requests", server))
    done = subprocess.run(
        [sys.executable, "classify.py"], check=False, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "whatever its name says" in done.stderr


@pytest.mark.slow
def test_the_javascript_snippet_prints_the_label_and_its_score(server, node_folder, expected):
    """It runs under Node with the client that its first line names. The same client can call the other endpoints."""
    shutil.copy(ROOT / "examples/cat.jpg", node_folder / "photo.jpg")
    (node_folder / "classify.mjs").write_text(snippet("code.javascript", server))
    shown = run([need("node"), "classify.mjs"], node_folder)
    assert shown.splitlines()[-1] == f"{expected['predicted_class']} {expected['confidence']}"

    (node_folder / "others.mjs").write_text(f"""
import {{ readFile }} from "node:fs/promises";
import {{ Client }} from "@gradio/client";
const client = await Client.connect("{server}/");
const image = new Blob([await readFile("photo.jpg")]);
const [why] = (await client.predict("/explain", {{ image, label: "dog" }})).data;
const [batch] = (await client.predict("/predict_batch", {{ files: [image, image], top_k: 3 }})).data;
const [models] = (await client.predict("/models", {{}})).data;
console.log(JSON.stringify([why, batch, models]));
client.close();
""")
    why, batch, models = json.loads(run([need("node"), "others.mjs"], node_folder).splitlines()[-1])
    content = (ROOT / "examples/cat.jpg").read_bytes()
    by_rest = httpx2.post(f"{server}/explain", files={"image": content}, data={"label": "dog"}, timeout=60).json()
    assert why == {key: value for key, value in by_rest.items() if key != "request_id"}
    assert [row["top_k"] for row in batch["rows"]] == [expected["top_k"]] * 2
    assert models["default"] == expected["model"]["version"]


@pytest.mark.slow
def test_the_mcp_configuration_contains_the_address_of_the_tools(tmp_path):
    """A real MCP client can call a tool at the address in it."""
    with running(tmp_path, CIFAR_MCP="true") as server:
        (entry,) = json.loads(snippet("code.mcp", server.address))["mcpServers"].values()

        async def talk() -> str:
            async with streamable_http_client(entry["url"]) as (read, write, _), ClientSession(read, write) as session:
                await session.initialize()
                result = await session.call_tool("predict", {"image": DATA_URL})
                return result.structuredContent["predicted_class"]

        assert asyncio.run(talk()) == "cat"


def test_every_snippet_of_the_page_is_run_by_a_test_above():
    """A new snippet needs a test in this file."""
    names = ["curl", "python_client", "python_requests", "javascript", "mcp"]
    assert list(SNIPPETS) == [f"code.{name}" for name in names]
