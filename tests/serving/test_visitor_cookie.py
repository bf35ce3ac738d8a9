"""The visitor cookie: signed, set by the page, and valid for every process of a server."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.identities import visitor_cookie

from app import create_app
from cifar.serving.auth.principal import Principal, Requester
from cifar.serving.front.visitor import VisitorCookie
from cifar.settings import Settings


def test_the_page_sets_a_visitor_cookie_once_and_the_api_sets_none():
    """The value is random and hidden from scripts. Over HTTPS, the cookie is sent over HTTPS only."""
    app = create_app(Settings())
    client = TestClient(app)
    cookie = client.get("/").headers["set-cookie"]
    assert re.fullmatch(
        r"cifar_user=[0-9a-f]{32}\.[0-9a-f]{32}; Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax", cookie
    )
    assert "set-cookie" not in client.get("/").headers
    assert "set-cookie" not in client.get("/health").headers
    secure = TestClient(app, base_url="https://testserver")
    assert secure.get("/").headers["set-cookie"].endswith("; Secure")


def test_the_page_replaces_an_invalid_visitor_cookie():
    """Otherwise the address would decide, and the user would get another version on each network."""
    app = create_app(Settings())
    for cookie in ("cifar_user=x", f"cifar_user={'a' * 32}", f"not_cifar_user={'a' * 32}", "seen=cifar_user"):
        answer = TestClient(app).get("/", headers={"Cookie": cookie})
        assert answer.headers["set-cookie"].startswith("cifar_user="), cookie


def user_of(settings: Settings, cookie: bytes, **state: object) -> str:
    """Return the user of a request for the page with this cookie, from the address 192.0.2.7."""
    found = []

    async def app(scope: Any, _receive: object, _send: object) -> None:
        found.append(Requester.of(scope).user)

    scope = {"type": "http", "path": "/", "method": "GET", "scheme": "http", "client": ("192.0.2.7", 1)}
    scope |= {"headers": [(b"cookie", cookie)], "state": {"request_id": "1", **state}}
    asyncio.run(VisitorCookie(app, settings)(scope, None, None))  # type: ignore[arg-type]
    return found[0]


def test_a_visitor_cookie_counts_only_with_a_signature_of_this_server(tmp_path):
    """Otherwise a program could pose as many users and decide the A/B test, or choose its version by trying ids."""
    settings = Settings(records_folder=tmp_path)
    good = visitor_cookie(0xABC, settings).encode()
    assert user_of(settings, good) == f"{0xABC:032x}"
    other = visitor_cookie(0xABC, Settings(records_folder=tmp_path / "other")).encode()
    unsigned = good.partition(b".")[0]
    swapped = visitor_cookie(1, settings).encode().partition(b".")[0] + b"." + good.partition(b".")[2]
    upper, longer = good.upper().replace(b"CIFAR_USER", b"cifar_user"), good + b"b"
    for bad in (
        other,
        unsigned,
        swapped,
        unsigned + b".",
        upper,
        longer,
        good[:-1],
        b"not_" + good,
        b"cifar_user=x",
        b"",
    ):
        assert user_of(settings, bad) == "192.0.2.7", bad
    ada = Principal("key:ada", frozenset({"predict"}))
    assert user_of(settings, good, principal=ada) == "caller:key:ada"


@pytest.mark.parametrize("kind", ["records", "traffic_secret", "records_key", "nothing that lasts", "a wrong key file"])
def test_a_visitor_cookie_is_valid_for_every_process_of_a_server(tmp_path, kind):
    """Workers and hosts share the secret, or the key file; without both, workers share what their master made."""
    folder = {"records_folder": tmp_path}
    settings = Settings(
        **{
            "records": folder,
            "traffic_secret": {"records": False, "traffic_secret": "s" * 32},
            "records_key": {"records_folder": tmp_path / "a", "records_key": "k" * 32},
            "nothing that lasts": {"records": False},
            "a wrong key file": folder,
        }[kind]
    )
    if kind == "a wrong key file":
        (tmp_path / "users.key").write_bytes(b"")
    cookie = visitor_cookie(7, settings).encode()
    elsewhere = settings.model_copy(update={"records_folder": tmp_path / "b"} if kind == "records_key" else {})
    assert user_of(elsewhere, cookie) == f"{7:032x}"
