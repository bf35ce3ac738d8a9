"""The snippets that the page shows, run as a reader would: copied, beside a `photo.jpg`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from support.mcp_server import DATA_URL, served
from support.servers import need

from cifar.serving.page import snippets
from cifar.settings import ROOT

JS_CLIENT = "@gradio/client@2.7.0"


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copy(ROOT / "examples/cat.jpg", tmp_path / "photo.jpg")
    return tmp_path


@pytest.fixture
def wanted(server) -> dict:
    """What REST says of the photo."""
    content = (ROOT / "examples/cat.jpg").read_bytes()
    return httpx.post(f"{server}/predict", files={"image": content}, data={"top_k": 3}).json()


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shell_snippet_answers_what_rest_answers(server, folder, wanted):
    """One line, and the JSON on stdout."""
    need("curl")
    answer = json.loads(run(["sh", "-c", snippets.curl(server).replace("curl ", "curl -sS ", 1)], folder))
    assert {**answer, "request_id": ""} == {**wanted, "request_id": ""}


@pytest.mark.parametrize("write", [snippets.python_client, snippets.python_requests])
def test_the_python_snippets_print_the_label_and_its_score(server, folder, wanted, write):
    """Saved as a file and run, with the packages that its first line names."""
    (folder / "classify.py").write_text(write(server))
    shown = run([sys.executable, "classify.py"], folder)
    assert shown.splitlines()[-1] == f"{wanted['predicted_class']} {wanted['confidence']}"


def test_the_snippet_for_requests_says_what_went_wrong(server, folder):
    """The server's sentence, and an exit status."""
    (folder / "photo.jpg").write_text("no photo")
    (folder / "classify.py").write_text(snippets.python_requests(server))
    done = subprocess.run(
        [sys.executable, "classify.py"], check=False, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "whatever its name says" in done.stderr


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory) -> Path:
    """A folder with Gradio's JavaScript client, from npm. Without a network the test is skipped, or under CI=true fails."""
    folder = tmp_path_factory.mktemp("node")
    command = [need("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(folder), JS_CLIENT]
    installed = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=200)
    if installed.returncode and os.environ.get("CI") != "true":
        pytest.skip("npm cannot fetch the client")
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.mark.slow
def test_the_javascript_snippet_prints_the_label_and_its_score(server, node_folder, wanted):
    """Under Node, with the client that its first line names; and the client can call the other endpoints too."""
    shutil.copy(ROOT / "examples/cat.jpg", node_folder / "photo.jpg")
    (node_folder / "classify.mjs").write_text(snippets.javascript(server))
    shown = run([need("node"), "classify.mjs"], node_folder)
    assert shown.splitlines()[-1] == f"{wanted['predicted_class']} {wanted['confidence']}"

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
    by_rest = httpx.post(f"{server}/explain", files={"image": content}, data={"label": "dog"}, timeout=60).json()
    assert why == {key: value for key, value in by_rest.items() if key != "request_id"}
    assert [row["top_k"] for row in batch["rows"]] == [wanted["top_k"]] * 2
    assert models["default"] == wanted["model"]["version"]


@pytest.mark.slow
def test_the_configuration_for_assistants_leads_to_the_tools(tmp_path):
    """Parsed as an assistant does, its address answers a real client."""
    with served(tmp_path) as address:
        (entry,) = json.loads(snippets.mcp(address))["mcpServers"].values()

        async def talk() -> str:
            async with streamable_http_client(entry["url"]) as (read, write, _), ClientSession(read, write) as session:
                await session.initialize()
                result = await session.call_tool("predict", {"image": DATA_URL})
                return result.structuredContent["predicted_class"]

        assert asyncio.run(talk()) == "cat"


def test_every_snippet_of_the_page_has_its_test():
    """Whoever adds one adds a test here."""
    assert [snippet.name for snippet in snippets.SNIPPETS] == [
        "curl",
        "python_client",
        "python_requests",
        "javascript",
        "mcp",
    ]
