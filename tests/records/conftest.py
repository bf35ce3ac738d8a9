"""Fixtures of the records: an empty database of each kind, and a recorder for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from support.databases import Cluster, real_postgres
from support.samples import records_settings, started

from cifar.records.recorder import Recorder
from cifar.settings import Settings


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL for all tests, which make their own databases in it. A test that stops one starts its own."""
    with real_postgres() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path) -> Settings:
    """Settings of records in a new, empty database of each kind."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster").new_database(f"t{time.monotonic_ns()}")
    return records_settings(tmp_path, database_url=url)


@pytest.fixture
def recorder(settings) -> Iterator[Recorder]:
    recorder = started(settings)
    yield recorder
    recorder.stop()
