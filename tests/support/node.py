"""Gradio's JavaScript client, from npm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.servers import need

JS_CLIENT = "@gradio/client@2.7.0"


def install_js_client(folder: Path) -> None:
    """Install the client in a folder. Without a network the test is skipped; with CI=true it fails."""
    command = [need("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(folder), JS_CLIENT]
    installed = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=200)
    if installed.returncode and os.environ.get("CI") != "true":
        pytest.skip("npm cannot fetch the client")
    assert installed.returncode == 0, installed.stderr
