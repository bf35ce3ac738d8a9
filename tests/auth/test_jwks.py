"""Public keys of a token issuer: caching, and a host that fails."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest
from fastapi.responses import RedirectResponse
from support.identities import EC_KEY, OneUserProvider, base64url, public, serving

from cifar.dependency import MAX_FAILURES, Dependency
from cifar.errors import SignInUnavailable
from cifar.serving.auth.jwks import REFETCH_SECONDS, PublicKeys
from cifar.settings import Settings

SYMMETRIC_KEY = {"kty": "oct", "kid": "oct", "use": "sig", "alg": "HS256", "k": base64url(b"s" * 32)}


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def provider():
    provider = OneUserProvider()
    with serving(provider) as address:
        provider.address = address
        yield provider


def public_keys(provider: OneUserProvider) -> tuple[PublicKeys, Clock]:
    clock = Clock()
    return PublicKeys(f"{provider.address}/jwks", Dependency("jwks", impact=""), clock=clock), clock


def test_callers_that_wait_for_keys_share_one_fetch(provider):
    """A hundred requests at the start cause one request to the provider."""
    keys, _ = public_keys(provider)

    async def go():
        return await asyncio.gather(*(keys.get("first") for _ in range(100)))

    assert all(asyncio.run(go()))
    assert provider.asked == {"/jwks": 1}


def test_invented_key_ids_do_not_flood_the_provider(provider):
    """200 tokens with unknown key ids cause one fetch in each period, and a new key is found in the next period."""
    keys, clock = public_keys(provider)

    async def go():
        assert await keys.get("first")
        for i in range(100):
            assert await keys.get(f"made-up-{i}") is None
        assert provider.asked["/jwks"] == 1
        provider.keys = [public(EC_KEY, "second")]
        clock.now += 31
        assert await keys.get("second")
        for i in range(100):
            assert await keys.get(f"made-up-{i}") is None
        assert await keys.get("first") is None, "the provider has withdrawn it"
        assert provider.asked["/jwks"] == 2

    asyncio.run(go())


def test_cached_keys_are_used_while_the_provider_is_down_but_not_for_ever(provider):
    """A short outage locks out no caller, and a withdrawn key does not stay valid for days."""
    keys, clock = public_keys(provider)

    async def go():
        assert await keys.get("first")
        provider.status = 500
        clock.now += 301
        assert await keys.get("first")
        clock.now += 3600
        with pytest.raises(SignInUnavailable):
            await keys.get("first")
        provider.status = 200
        assert await keys.get("first")

    asyncio.run(go())


def test_a_provider_that_keeps_failing_is_called_again_after_a_while(provider, monkeypatch):
    """The circuit opens after several failures in a row; some time later one request finds out that the host is back."""
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 1)
    host = Dependency("jwks", impact="")
    keys = PublicKeys(f"{provider.address}/jwks", host)
    provider.status = 500

    async def go():
        for _ in range(20):
            with pytest.raises(SignInUnavailable):
                await keys.get("first")
        assert provider.asked["/jwks"] == MAX_FAILURES
        assert host.failing
        provider.status = 200
        with pytest.raises(SignInUnavailable):
            await keys.get("first")
        await asyncio.sleep(1.1)
        assert await keys.get("first")
        assert not host.failing

    asyncio.run(go())


def test_a_provider_that_hangs_does_not_block_the_event_loop(monkeypatch):
    """Other work goes on while one request waits for keys."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/jwks"
        monkeypatch.setattr("cifar.serving.auth.jwks.TIMEOUT_SECONDS", 0.5)
        keys = PublicKeys(url, Dependency("jwks", impact=""))

        async def go():
            waiting = asyncio.create_task(keys.get("first"))
            turns = 0
            while not waiting.done():
                await asyncio.sleep(0.01)
                turns += 1
            with pytest.raises(SignInUnavailable):
                waiting.result()
            return turns

        assert asyncio.run(go()) > 10


@pytest.mark.parametrize(
    "answer",
    [
        *([], {}, {"keys": []}, {"keys": [{"kty": "RSA"}]}, {"keys": [SYMMETRIC_KEY]}, {"keys": 7}),
        {"keys": [public(EC_KEY, "unknown")], "more": "x" * 300_000},
    ],
    ids=lambda answer: str(answer)[:40],
)
def test_an_answer_without_a_usable_key_does_not_replace_the_cached_keys(provider, answer):
    """One wrong answer of the provider must not lock out all callers."""
    keys, clock = public_keys(provider)

    async def go():
        assert await keys.get("first")
        provider.router.routes[:] = [route for route in provider.router.routes if route.path != "/jwks"]
        provider.get("/jwks")(lambda: answer)
        clock.now += REFETCH_SECONDS + 1
        assert await keys.get("unknown") is None
        assert provider.asked["/jwks"] == 2
        assert await keys.get("first")

    asyncio.run(go())


def test_a_malformed_key_beside_a_usable_one_locks_nobody_out(provider):
    """An issuer may publish keys of a new kind, or one by mistake."""
    good = public(EC_KEY, "first")
    odd = [
        None,
        "x",
        [],
        {**good, "kid": ["x"]},
        {**good, "alg": ["ES256"]},
        {**good, "use": ["sig"]},
        {**good, "x": 5},
    ]
    provider.keys = [*odd, good]
    keys, _ = public_keys(provider)
    assert asyncio.run(keys.get("first"))


def moved(provider: OneUserProvider, path: str, target: str) -> None:
    provider.get(path)(lambda: RedirectResponse(target, status_code=301))


def test_one_redirect_of_the_address_is_followed(provider):
    """Django's issuers, such as authentik, redirect to the address with a slash."""
    moved(provider, "/o/jwks", "/jwks")
    keys = PublicKeys(f"{provider.address}/o/jwks", Dependency("jwks", impact=""))
    assert asyncio.run(keys.get("first"))


@pytest.mark.parametrize("target", ["/twice", "http://127.0.0.2:9/jwks", "ftp://127.0.0.1/jwks"])
def test_further_redirects_and_those_to_other_hosts_without_tls_are_not_followed(provider, target, caplog):
    """An attacker who can change an answer without TLS could sign in as anybody. The log says what the host answered."""
    moved(provider, "/o/jwks", target)
    moved(provider, "/twice", "/jwks")
    keys = PublicKeys(f"{provider.address}/o/jwks", Dependency("jwks", impact=""))
    with pytest.raises(SignInUnavailable, match="could not be fetched"):
        asyncio.run(keys.get("first"))
    assert re.search(r"redirects to .*301|Unsupported protocol|UnsupportedProtocol", caplog.text), caplog.text


def test_the_address_is_used_as_it_is_given():
    """Without its last slash it is another address. That of a page is the same with and without."""
    settings = Settings(
        jwks_url="https://a.example/o/cifar/jwks/", jwt_issuer="a", jwt_audience="b", public_url="https://c.example/"
    )
    assert settings.jwks_url == "https://a.example/o/cifar/jwks/"
    assert settings.public_url == "https://c.example"
