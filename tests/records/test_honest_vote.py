"""The influence of a stranger without sign-in on the A/B test: no more than the feedback of a few users."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from support.samples import open_records, write_answers, write_two_versions
from support.servers import CAT, wait_until_ready

from app import create_app
from cifar.analytics.ab import MAX_USERS_PER_SOURCE, ABReport, ab_report
from cifar.analytics.drift_report import drift_report
from cifar.analytics.tables import ab_text
from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.records.tables import comparisons, feedback, predictions
from cifar.serving.page.ab_tab import ab_html
from cifar.settings import ROOT, Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(records_folder=tmp_path / "var")


@pytest.fixture
def engine(settings):
    engine = open_records(settings)
    yield engine
    engine.dispose()


def write_votes(engine: Any, **columns: object) -> None:
    """Write feedback of 300 users of each version, by which version 2 is far better."""
    for version, share in ((1, 0.1), (2, 1.0)):
        write_answers(engine, version, right=np.arange(300) < 300 * share, hours=10 - version / 10, **columns)


def test_many_users_of_one_address_cannot_decide_the_test(engine, settings):
    """One program with 120 cookies used to get "version 2 is better", with p below 0.0001."""
    write_votes(engine, source="one address")
    report = ab_report(engine, settings)
    assert report.verdict == "few"
    assert sum(version.users for version in report.versions) == MAX_USERS_PER_SOURCE
    assert (report.sources, report.largest_source, report.left_out) == (1, 1.0, 600 - MAX_USERS_PER_SOURCE)
    words = f"595 answers with feedback do not count: at most {MAX_USERS_PER_SOURCE} users of one address do."
    assert words in ab_text(report)
    assert "100.0 % of it from one." in ab_text(report)
    assert "595 answers with feedback are not counted" in ab_html(report)


def test_users_of_many_addresses_decide_the_test(engine, settings):
    """The same feedback counts when it is from independent users; also what was recorded before there were sources."""
    write_votes(engine, source=[f"address {number}" for number in range(300)])
    now = ab_report(engine, settings)
    assert (now.verdict, now.better, now.left_out, now.sources) == ("better", 2, 0, 300)
    with engine.begin() as connection:
        connection.execute(update(predictions).values(source=None, named=None))
    before = ab_report(engine, settings)
    assert (before.verdict, before.better, before.left_out, before.sources) == ("better", 2, 0, 600)


def test_a_user_who_answers_often_is_one_user_and_shown(engine, settings):
    """All feedback of the first users of an address counts; the report shows how much came from one."""
    write_answers(engine, 1, right=np.ones(30, bool), users=np.arange(30) // 10, source="busy")
    write_answers(engine, 2, right=np.ones(10, bool), source=[f"address {number}" for number in range(10)])
    report = ab_report(engine, settings)
    assert (report.left_out, report.sources, report.largest_source) == (0, 11, 0.75)


def test_answers_of_a_named_version_are_in_no_figure_of_the_test(engine, settings):
    """Their users were not assigned at random: `version=`, Compare and the drop-down of the page."""
    write_answers(engine, 1, right=np.ones(50, bool), named=False)
    write_answers(engine, 2, right=np.ones(50, bool), named=[True] * 40 + [False] * 10)
    report = ab_report(engine, settings)
    assert [(version.requests, version.feedback) for version in report.versions] == [(50, 50), (10, 10)]
    assert report.named == 40
    assert "40 requests named a version and are left out." in ab_text(report)
    assert "40 requests named a version" in ab_html(report)
    assert ABReport(**json.loads(json.dumps(report.as_json()))).named == 40


def test_records_from_the_future_are_in_no_report(engine, settings):
    """A host whose clock is a year ahead would otherwise count as "the last 14 days" for a year."""
    write_answers(engine, 1, right=np.ones(20, bool))
    write_answers(engine, 2, right=np.ones(20, bool))
    ahead = time.time() + 365 * 24 * 3600
    with engine.begin() as connection:
        connection.execute(update(predictions).where(predictions.c.version == 2).values(at=ahead))
        row = {"id": "a", "at": ahead, "model": "cifar_classifier", "version": 1, "shadow_version": 3}
        connection.execute(comparisons.insert().values(**row, agrees=True, distance=0.0))
    assert [version.version for version in ab_report(engine, settings).versions] == [1]
    shipped = Registry(ROOT / "saved_model", "cifar_classifier")
    assert [version.version for version in drift_report(engine, shipped)] == [1]
    with engine.begin() as connection:
        connection.execute(update(feedback).values(at=ahead))
    assert [version.feedback for version in ab_report(engine, settings).versions] == [0]


def test_the_server_records_whether_a_version_was_named_and_the_address_as_a_hash(tmp_path):
    """One address is one source, whatever cookies it has; a named version is marked, whichever it is."""
    write_two_versions(tmp_path / "registry")
    settings = Settings(registry=tmp_path / "registry", records_folder=tmp_path / "var", workers=1)
    RolloutLog.of(settings).promote(1, by="ada", check_loadable=lambda _: None)
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client)
        for fields in ({}, {"version": 1}, {"version": 2}):
            client.cookies.clear()
            client.get("/")
            assert client.post("/predict", files={"image": CAT}, data=fields).status_code == 200
    engine = open_records(settings)
    with engine.connect() as connection:
        rows = connection.execute(
            select(predictions.c.version, predictions.c.named, predictions.c.user, predictions.c.source).order_by(
                predictions.c.at
            )
        ).all()
    engine.dispose()
    assert [(row.version, row.named) for row in rows] == [(1, False), (1, True), (2, True)]
    assert len({row.user for row in rows}) == 3
    assert len({row.source for row in rows}) == 1
    assert all(len(row.source) == 32 for row in rows)
