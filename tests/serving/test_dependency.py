"""Outside services: the circuit breaker, the log lines, the metrics."""

from __future__ import annotations

import asyncio
import re

import pytest

from cifar.dependency import MAX_FAILURES, CircuitOpen, Dependency
from cifar.serving.process.metrics import exposition, watch


def fail(dependency: Dependency, error: Exception) -> None:
    with pytest.raises(type(error)), dependency.guard():
        raise error


def metric(name: str, dependency: Dependency) -> float:
    sample = rf'^{name}{{dependency="{dependency.name}"}} (\S+)$'
    return float(re.search(sample, exposition()[0].decode(), re.MULTILINE)[1])


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends(caplog):
    """A line for each failed call would hide everything else."""
    caplog.set_level("INFO", "cifar.dependency")
    service = Dependency("store", impact="Nothing is stored until it is back.", failures=OSError)
    for _ in range(3):
        fail(service, OSError("refused\nby the host"))
    assert service.failing
    for _ in range(3):
        with service.guard():
            pass
    assert not service.failing
    assert [record.getMessage() for record in caplog.records] == [
        "store is down (OSError: refused). Nothing is stored until it is back.",
        "store is back",
    ]


def test_an_exception_that_is_no_failure_counts_as_an_answer():
    """The service rejected the call, so it is up."""
    service = Dependency("rejecting", impact="", failures=OSError)
    fail(service, OSError())
    fail(service, ValueError())
    assert not service.failing


def test_after_failures_in_a_row_calls_are_not_made_until_the_recovery_time(monkeypatch):
    """A service that is down gets no further load, and callers do not wait for its timeout."""
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 0.2)
    service = Dependency("slow", impact="", failures=OSError)

    async def call() -> str:
        with service.guard():
            return "answer"

    for _ in range(MAX_FAILURES):
        fail(service, OSError())
    with pytest.raises(CircuitOpen):
        asyncio.run(call())

    async def later() -> str:
        await asyncio.sleep(0.3)
        return await call()

    assert asyncio.run(later()) == "answer"


def test_failures_and_outages_are_metrics():
    """Operators can alert on any outside service in the same way."""
    service = Dependency("watched", impact="", failures=OSError)
    watch(service)
    assert metric("cifar_breaker_open", service) == 0
    for _ in range(2):
        fail(service, OSError())
    assert metric("cifar_breaker_open", service) == 1
    assert metric("cifar_remote_failures_total", service) == 2
    service.report(None)
    assert metric("cifar_breaker_open", service) == 0
