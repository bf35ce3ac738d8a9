"""Rate limits, in memory and in a real Redis, and the loss of Redis."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from support.databases import real_redis
from support.pictures import encoded, noise
from support.servers import free_port, wait_until_ready
from support.waiting import until

from app import create_app
from cifar.errors import SettingsError
from cifar.serving.auth.principal import Principal, rate_limit_key
from cifar.settings import Settings, load_settings

PHOTO = encoded(noise())


@contextmanager
def app(**settings) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(**settings)), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def ask(client: TestClient, **headers: str) -> int:
    return client.post("/predict", files={"image": PHOTO}, headers=headers).status_code


def test_a_caller_over_the_limit_is_answered_429_with_retry_after():
    """Every limited answer has headers that say how many requests are left."""
    with app(rate_limit_predict="3/hour") as client:
        first = client.post("/predict", files={"image": PHOTO})
        assert first.status_code == 200
        assert first.headers["ratelimit-policy"] == '"predict";q=3;w=3600'
        assert re.fullmatch(r'"predict";r=2;t=\d+', first.headers["ratelimit"])
        assert [ask(client) for _ in range(3)] == [200, 200, 429]
        refused = client.post("/predict", files={"image": PHOTO})
        assert set(refused.json()) == {"error", "code", "request_id"}
        assert refused.json()["code"] == "rate_limited"
        assert "More than 3 requests in 3600 seconds" in refused.json()["error"]
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert '"predict";r=0;' in refused.headers["ratelimit"]
        assert client.get("/health").status_code == 200, "probes are not limited"
        assert client.get("/").status_code == 200, "nor is looking at the page"


def test_the_body_of_a_refused_request_is_not_read():
    """A body of twenty megabytes is not received only to be thrown away."""
    with app(rate_limit_predict="1/hour") as client:
        ask(client)
        assert client.post("/predict", content=b"x" * 30_000_000).status_code == 429, "not 413"


def test_the_page_and_its_api_have_a_separate_limit():
    """Calls and uploads count on every route; `POST /predict` does not."""
    with app(rate_limit_page="4/hour") as client:
        routes = ["run/predict", "api/predict", "call/predict", "queue/join"]
        answers = [client.post(f"/gradio_api/{route}", json={"data": [None]}).status_code for route in routes]
        assert 429 not in answers
        assert client.post("/gradio_api/upload", files={"files": PHOTO}).status_code == 429
        assert client.post("/gradio_api/run/predict", json={"data": [None]}).json()["code"] == "rate_limited"
        assert ask(client) == 200


@pytest.mark.parametrize(
    ("client", "caller"),
    [
        (("203.0.113.7", 1234), "203.0.113.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 1), "2001:db8:1:2::/64"),
        (("::ffff:203.0.113.7", 1), "203.0.113.7"),
        (("testclient", 1), "None"),
        (None, "None"),
    ],
)
def test_callers_are_identified_by_address_or_network(client, caller):
    """An IPv6 user has 2**64 addresses and is still one caller."""
    assert rate_limit_key({"state": {}, "client": client}) == caller


def test_a_principal_is_counted_by_name_at_any_address():
    """An office behind one address is not one caller."""
    scope = {"state": {"principal": Principal("key:ada", frozenset())}, "client": ("203.0.113.7", 1)}
    assert rate_limit_key(scope) == "caller:key:ada"


def test_a_limit_that_cannot_be_parsed_ends_the_start(monkeypatch):
    """A mistyped limit must not mean that there is none."""
    monkeypatch.setenv("CIFAR_RATE_LIMIT_PREDICT", "600 per fortnight")
    with pytest.raises(SettingsError, match=r"CIFAR_RATE_LIMIT_PREDICT='600 per fortnight' is not usable.*600/minute"):
        load_settings()


@pytest.mark.slow
def test_two_processes_share_one_count_in_redis(tmp_path):
    """Two apps have one limit together."""
    with real_redis(tmp_path) as url:
        settings = {"rate_limit_predict": "5/hour", "redis_url": url}
        with app(**settings) as one, app(**settings) as two:
            answers = [ask(client) for _ in range(4) for client in (one, two)]
    assert answers == [200] * 5 + [429] * 3


@pytest.mark.slow
def test_without_redis_each_process_counts_alone_and_logs_one_line(tmp_path, caplog, monkeypatch):
    """Redis is missing, starts, is killed and returns: every request is answered, and `/readyz` names Redis while it is down."""
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 1)
    port = free_port()
    settings = {"rate_limit_predict": "1000/minute", "redis_url": f"redis://127.0.0.1:{port}/0"}

    def without(client: TestClient) -> list[str]:
        return client.get("/readyz").json()["without"]

    def ask_until(client: TestClient, missing: list[str]) -> None:
        until(lambda: without(client) == missing or ask(client) != 200, f"expected {missing}")
        assert without(client) == missing, "every request is answered"

    caplog.set_level("INFO", "cifar.dependency")
    with app(**settings) as client:
        assert [ask(client) for _ in range(20)] == [200] * 20
        assert without(client) == ["redis"]
        for _ in range(2):
            with real_redis(tmp_path, port):
                ask_until(client, [])
            ask_until(client, ["redis"])
        assert [ask(client) for _ in range(20)] == [200] * 20
        assert 'cifar_breaker_open{dependency="redis"} 1.0' in client.get("/metrics").text
    lines = [record.message for record in caplog.records if record.name == "cifar.dependency"]
    assert [bool(re.match("redis is down", line)) for line in lines] == [True, False, True, False, True]


@pytest.mark.slow
def test_a_redis_that_hangs_is_not_called_after_a_few_timeouts(monkeypatch):
    """It accepts connections and never answers. After a few requests that wait, the circuit is open."""
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with app(rate_limit_predict="1000/minute", redis_url=url) as client:
            assert [ask(client) for _ in range(20)] == [200] * 20
            failures = re.search(r'cifar_remote_failures_total{dependency="redis"} (\S+)', client.get("/metrics").text)
            before = float(failures[1])
            assert [ask(client) for _ in range(10)] == [200] * 10
            assert f'cifar_remote_failures_total{{dependency="redis"}} {before}' in client.get("/metrics").text


@pytest.mark.slow
def test_a_redis_that_takes_nothing_more_is_one_outage(tmp_path, caplog, monkeypatch):
    """A full Redis still answers reads. Each request used to log that it is down and that it is back."""
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 1)
    caplog.set_level("INFO", "cifar.dependency")
    with (
        real_redis(tmp_path) as url,
        app(rate_limit_predict="1000/minute", redis_url=url) as client,
        Redis.from_url(url) as redis,
    ):
        redis.config_set("maxmemory", 1)
        for _ in range(30):
            assert ask(client) == 200
            assert client.get("/readyz").json()["without"] == ["redis"]
        redis.config_set("maxmemory", 0)
        until(lambda: ask(client) == 200 and client.get("/readyz").json()["without"] == [], "Redis is used again")
    lines = [record.message for record in caplog.records if record.name == "cifar.dependency"]
    assert [line.partition(" (")[0] for line in lines] == ["redis is down", "redis is back"]
