"""Gradio's Python client, connected to the server that all tests share."""

from __future__ import annotations

import pytest
from gradio_client import Client


@pytest.fixture(scope="session")
def client(server) -> Client:
    return Client(server, verbose=False)
