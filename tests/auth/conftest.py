"""Fixtures for sign-in: API keys, and apps that need them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from support.identities import AUDIENCE, ISSUER, SECRET, OneUserProvider
from support.servers import running, wait_until_ready

from app import create_app
from cifar.serving.auth.api_keys import create
from cifar.settings import Settings


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(keys) -> dict[str, str]:
    """Keys with different scopes, by name."""
    scopes = {"caller": ["predict"], "critic": ["feedback"], "boss": ["predict", "feedback", "admin"]}
    return {name: create(keys, name, which) for name, which in scopes.items()}


@pytest.fixture(autouse=True)
def _keys_are_read_at_each_request(monkeypatch):
    monkeypatch.setattr("cifar.serving.auth.api_keys.RELOAD_SECONDS", 0)


@pytest.fixture(scope="module")
def closed(keys, key):  # noqa: ARG001 - the keys exist before the app starts
    """The whole app in this process, with every way to sign in."""
    settings = Settings(
        api_keys_file=keys,
        jwt_secret=SECRET,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        oidc_provider_url="http://127.0.0.1:9",
        oidc_client_id=OneUserProvider.CLIENT[0],
        oidc_client_secret=OneUserProvider.CLIENT[1],
        public_url="https://cifar.example",
    )
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture(scope="module")
def closed_server(keys, key, tmp_path_factory):  # noqa: ARG001 - the keys exist before the server starts
    """`python app.py` behind keys and tokens; yields its address and the file of its log."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "secret").write_text(f"{SECRET}\n")
    tokens = {
        "CIFAR_JWT_SECRET_FILE": str(folder / "secret"),
        "CIFAR_JWT_ISSUER": ISSUER,
        "CIFAR_JWT_AUDIENCE": AUDIENCE,
    }
    with running(folder, CIFAR_API_KEYS_FILE=str(keys), **tokens) as server:
        yield server.address, server.log
