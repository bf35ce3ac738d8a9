"""The A/B report from a real database: its figures, its verdict, the command, and the page's tab."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from playwright.sync_api import expect
from pydantic import SecretStr
from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from support.browser import WAIT_MS, open_tab, visit
from support.cli import cifar
from support.databases import real_postgres
from support.samples import open_records, write_a_day, write_answers, write_comparisons, write_two_versions

from cifar.analytics import ab
from cifar.analytics import drift_report as drift_report_module
from cifar.analytics.ab import ab_report
from cifar.analytics.drift_report import drift_report
from cifar.analytics.rows import MAX_ROWS, read_columns
from cifar.analytics.tables import ab_text, verdict_text
from cifar.cli.main import main
from cifar.errors import BadParameter, RecordsUnavailable
from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.records.tables import feedback, predictions
from cifar.records.values import NONE_LABEL
from cifar.serving.page.ab_tab import ab_html
from cifar.serving.process.analytics import Analytics
from cifar.settings import ROOT, Settings

SHIPPED = Registry(ROOT / "saved_model", "cifar_classifier")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(records_folder=tmp_path)


@pytest.fixture
def engine(settings):
    engine = open_records(settings)
    yield engine
    engine.dispose()


def rights(count: int, share: float) -> np.ndarray:
    """Return `count` booleans in random order, of which this share is true."""
    return np.random.default_rng(5).permutation(np.arange(count) < round(count * share))


def test_each_version_is_described_by_its_records(engine, settings):
    """Requests, share, latency, confidence, distribution, shadow traffic and feedback are the figures counted by hand."""
    same = {"score": 0.75, "seconds": np.linspace(0.001, 0.1, 100), "in_distribution": [True] * 60 + [False] * 40}
    write_answers(engine, 3, right=rights(100, 0.8), **same)
    write_answers(engine, 4, right=rights(300, 0.9), in_distribution=None)
    write_comparisons(engine, 3, 5, agrees=[True] * 15 + [False] * 5, distance=0.125)
    report = ab_report(engine, settings)
    third, fourth, fifth = report.versions
    assert (third.version, third.requests, third.share) == (3, 100, 0.25)
    assert third.median_ms == pytest.approx(50.5)
    assert third.p95_ms == pytest.approx(95.05)
    assert (third.confidence, third.in_distribution) == (0.75, 0.6)
    assert (third.feedback, third.users, third.accuracy, third.design_effect) == (100, 100, 0.8, 1.0)
    assert (round(third.low, 4), round(third.high, 4)) == (0.7112, 0.8666)
    assert fourth.in_distribution is None
    assert (fifth.version, fifth.requests, fifth.compared) == (5, 0, 20)
    assert (fifth.disagreement, fifth.distance) == (0.25, 0.125)
    assert (fifth.median_ms, fifth.accuracy, third.disagreement) == (None, None, None)
    pair = (report.comparison.first, report.comparison.second)
    assert pair == (4, 3), "the version with most requests counts as the one in use"
    assert not report.cut


def test_a_clear_difference_is_decided_and_a_small_one_is_not(engine, settings):
    """The verdict names the better version, or how much feedback is missing."""
    write_answers(engine, 1, right=rights(2000, 0.7))
    write_answers(engine, 2, right=rights(1000, 0.9), hours=9)
    better = ab_report(engine, settings)
    assert (better.verdict, better.better) == ("better", 2)
    assert verdict_text(better) == "Version 2 is better than version 1."
    assert better.comparison.now.value == pytest.approx(0.2)
    assert better.comparison.now.p_value < 0.001
    worse = ab_report(engine, settings, versions=(2, 1))
    assert (worse.verdict, worse.better) == ("better", 2)
    write_answers(engine, 3, right=rights(1000, 0.71), hours=8)
    open_ = ab_report(engine, settings, versions=(1, 3), effect=0.05)
    assert (open_.verdict, open_.better) == ("open", None)
    assert verdict_text(open_) == (
        "Not decided yet: the interval includes zero. There are 3,000 answers with feedback. A difference of 5 points is found "
        f"in four of five cases with about {open_.comparison.needed:,} answers with feedback."
    )
    usual = ab_report(engine, settings, versions=(1, 3))
    assert usual.comparison.now == open_.comparison.now, "`effect` does not change the test"


def test_each_look_uses_only_the_feedback_before_it(engine, settings):
    """The intervals become narrower over time, and the last look is the current result."""
    write_answers(engine, 1, right=rights(1000, 0.7))
    write_answers(engine, 2, right=rights(1000, 0.8), hours=9.9)
    looks = ab_report(engine, settings).comparison.looks
    assert [look.feedback for look in looks] == sorted({look.feedback for look in looks})
    assert looks[-1].feedback == 2000
    widths = [look.high - look.low for look in looks]
    assert widths == sorted(widths, reverse=True)
    half = looks[len(looks) // 2]
    with engine.begin() as connection:
        connection.execute(delete(feedback).where(feedback.c.at > half.at))
    then = ab_report(engine, settings).comparison.now
    assert (then.value, then.low, then.p_value) == pytest.approx((half.value, half.low, half.p_value))


def test_much_feedback_by_few_users_decides_nothing(engine, settings):
    """Both versions need feedback from at least 20 users."""
    write_answers(engine, 1, right=rights(1000, 0.7))
    write_answers(engine, 2, right=np.ones(1000, bool), users=np.arange(1000) % 19, hours=9)
    report = ab_report(engine, settings)
    assert report.verdict == "few"
    assert "versions 1 and 2 each need feedback by 20 users" in verdict_text(report)
    assert report.comparison.looks == []


def test_feedback_none_of_the_classes_agrees_only_with_out_of_distribution_answers(engine, settings):
    """An answer that was in distribution, or of a version without a score, counts as wrong."""
    write_answers(engine, 1, right=np.zeros(40, bool), in_distribution=[False] * 30 + [None] * 5 + [True] * 5)
    with engine.begin() as connection:
        connection.execute(update(feedback).values(label=NONE_LABEL))
    assert ab_report(engine, settings).versions[0].accuracy == 0.75


def test_old_records_and_records_of_another_model_do_not_count(engine, settings):
    """The window is in days up to now. Of too many records, the report reads the newest."""
    write_answers(engine, 1, right=rights(50, 0.5), hours=30)
    with engine.begin() as connection:
        connection.execute(update(predictions).values(model="another"))
    write_answers(engine, 2, right=rights(100, 0.5), hours=48)
    whole = ab_report(engine, settings)
    assert [row.version for row in whole.versions] == [2]
    assert whole.verdict == "one_version"
    assert ab_report(engine, settings, since_days=1).versions[0].requests == pytest.approx(50, abs=1)
    write_answers(engine, 3, right=rights(60, 0.5), hours=1)
    few = ab_report(engine, settings, max_rows=60)
    assert few.cut
    assert "only the newest" in ab_text(few)
    assert {row.version for row in few.versions} == {3, 2}


def test_comparing_a_version_without_requests_is_refused(engine, settings):
    """The message names the versions that have answered requests."""
    assert ab_report(engine, settings, versions=(1, 2)).verdict == "no_records"
    write_answers(engine, 1, right=rights(5, 1))
    message = r"Version 7 has answered no request in this period\. Versions that have: 1\."
    with pytest.raises(BadParameter, match=message):
        ab_report(engine, settings, versions=(1, 7))


def test_a_version_with_only_shadow_traffic_is_not_on_trial(tmp_path):
    """Its only users asked for it by number and were not assigned at random. The tab says so."""
    write_two_versions(tmp_path)
    settings = Settings(registry=tmp_path, records_folder=tmp_path / "records")
    engine = open_records(settings)
    write_answers(engine, 1, right=rights(5, 1))
    write_answers(engine, 2, right=rights(9, 1))
    no_test = "No A/B test with answers by both of its versions is running. Shown are the two versions with the most answers, 2 and 1."
    log = RolloutLog.of(settings)
    log.promote(1, by="ada", check_loadable=lambda _: None)
    log.label("dark", 2, by="ada")
    log.split({"stable": 100}, shadow={"dark": 10}, by="ada")
    report = ab_report(engine, settings)
    assert not report.on_trial
    assert no_test in ab_html(report)
    log.split({"stable": 90, "dark": 10}, shadow={}, by="ada")
    report = ab_report(engine, settings)
    assert report.on_trial
    assert (report.comparison.first, report.comparison.second) == (1, 2)
    assert "No A/B test" not in ab_html(report)
    engine.dispose()


@pytest.mark.slow
def test_postgresql_gives_the_same_report_and_drift(engine, settings, tmp_path):
    """The same rows give the same figures in SQLite and in PostgreSQL."""
    figures = []
    with real_postgres() as cluster:
        url = SecretStr(cluster.new_database("report"))
        other = open_records(Settings(records_folder=tmp_path / "postgresql", database_url=url))
        for database in (engine, other):
            write_answers(database, 1, right=rights(500, 0.7))
            write_answers(database, 2, right=rights(500, 0.9), hours=9)
            write_comparisons(database, 1, 2, agrees=[True] * 3 + [False], distance=0.5)
            report = ab_report(database, settings)
            now, drift = report.comparison.now, [version.features for version in drift_report(database, SHIPPED)]
            figures.append((report.versions, report.verdict, now.value, now.p_value, drift))
        other.dispose()
    assert figures[0] == figures[1]
    assert figures[0][1] == "better"


@pytest.mark.parametrize(
    "wrong", ["--versions=1", "--versions=1,1", "--since=0", "--since=nan", "--effect=2", "--effect=x"]
)
def test_invalid_arguments_of_ab_report_are_wrong_use(wrong, capsys):
    """The command exits with 2 and says what it expected."""
    assert main(["ab", "report", wrong]) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(engine, tmp_path):
    """The report goes to stdout; a failure exits with 1 and a message."""
    assert "No predictions were recorded in this period." in cifar("ab", "report", CIFAR_RECORDS_FOLDER=tmp_path).stdout
    write_a_day(engine)
    table = cifar(
        "ab", "report", "--versions", "1,2", "--since", "3", "--effect", "0.05", CIFAR_RECORDS_FOLDER=tmp_path
    )
    assert table.returncode == 0, table.stderr
    assert "disagrees in shadow traffic" in table.stdout
    assert "30.0 % of 100" in table.stdout
    assert table.stdout.endswith("Version 2 is better than version 1.\n")
    report = json.loads(cifar("ab", "report", "--json", CIFAR_RECORDS_FOLDER=tmp_path).stdout)
    assert report["verdict"] == "better"
    assert [row["version"] for row in report["versions"]] == [1, 2]
    assert report["comparison"]["now"]["low"] > 0.1
    unknown = cifar("ab", "report", "--versions", "1,9", CIFAR_RECORDS_FOLDER=tmp_path)
    assert unknown.returncode == 1
    assert unknown.stderr == "cifar: Version 9 has answered no request in this period. Versions that have: 1, 2.\n"


def test_the_tab_says_what_is_missing_instead_of_a_table(engine, settings):
    """No records, one version, and too few users each have their own text, in both languages."""
    assert "Nothing was recorded in the last 14 days" in ab_html(ab_report(engine, settings))
    write_answers(engine, 1, right=rights(100, 0.7))
    assert "暂时无法比较" in ab_html(ab_report(engine, settings))
    write_answers(engine, 2, right=rights(5, 1), hours=9)
    page = ab_html(ab_report(engine, settings))
    assert "feedback from at least 20 users" in page
    assert "<svg" not in page
    assert "There are 105." in page


def test_records_that_cannot_be_read_raise_an_error_with_a_message(engine, settings):
    """The tables may have been removed, or never created."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE feedback")
    with pytest.raises(RecordsUnavailable, match="The records cannot be read now"):
        Analytics(engine, SHIPPED, settings).report()


def test_only_one_visitor_waits_for_a_database_that_does_not_answer(engine, settings, monkeypatch):
    """The same threads serve the page's files: without this, ten visitors of the tab blocked the page for a minute."""
    calls = []

    def silent(*_: object) -> None:
        calls.append(1)
        raise SQLAlchemyError

    monkeypatch.setattr("cifar.serving.process.analytics.ab_report", silent)
    analytics = Analytics(engine, SHIPPED, settings)
    for _ in range(10):
        with pytest.raises(RecordsUnavailable):
            analytics.report()
    assert len(calls) == 1


@pytest.mark.slow
def test_the_tab_shows_the_current_records_when_it_opens(browser, two_version_server):
    """It shows the verdict, the interval and the table; the tab Model shows drift."""
    with visit(browser, two_version_server) as page:
        open_tab(page, "ab")
        expect(page.locator("#ab .verdict")).to_have_text(
            "Version 2 is better than version 1.", use_inner_text=True, timeout=WAIT_MS
        )
        expect(page.locator("#ab svg .band")).to_be_visible()
        expect(page.locator("#ab tbody tr")).to_have_count(2)
        expect(page.locator("#ab tbody tr").nth(1)).to_contain_text("30.0 % of 100", use_inner_text=True)
        open_tab(page, "model")
        expect(page.locator("#model .drifts-alert")).to_contain_text("confidence", use_inner_text=True, timeout=WAIT_MS)


def test_the_reports_find_the_newest_rows_by_an_index(engine, settings, monkeypatch):
    """Without it, a report with a million rows took a minute of one core."""
    write_answers(engine, 1, right=rights(30, 0.5))
    plans = []

    def explained(connection, query, limit=MAX_ROWS):
        text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
        plans.append(" | ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")))
        return read_columns(connection, query, limit)

    for module in (ab, drift_report_module):
        monkeypatch.setattr(module, "read_columns", explained)
    ab_report(engine, settings)
    drift_report(engine, SHIPPED)
    answered, judged, recent = plans
    for plan in (answered, recent):
        assert plan == "SEARCH predictions USING INDEX predictions_model_at (model=? AND at>? AND at<?)"
    assert "SEARCH feedback USING INDEX feedback_at (at>?)" in judged
    assert "USING INDEX sqlite_autoindex_predictions_1 (request_id=?)" in judged


def test_rows_read_in_parts_are_those_of_one_query_oldest_first(engine):
    """A part may have values of another type than the others, such as None for a version without a score."""
    write_answers(engine, 1, right=rights(1500, 0.5), in_distribution=None, hours=5)
    write_answers(engine, 2, right=rights(1700, 0.5), in_distribution=[True, False] * 850, hours=1)
    query = select(predictions.c.at, predictions.c.label, predictions.c.in_distribution).order_by(
        predictions.c.at.desc()
    )
    with engine.connect() as connection:
        for limit in (0, 1, 2500, 5000):
            columns = read_columns(connection, query, limit)
            expected = [tuple(row) for row in connection.execute(query.limit(limit))][::-1]
            assert list(columns) == ["at", "label", "in_distribution"]
            assert list(zip(*(column.tolist() for column in columns.values()), strict=True)) == expected


def test_a_report_is_remembered_for_twenty_times_as_long_as_it_took(engine, settings, monkeypatch):
    """Otherwise anybody who reloads the page keeps one core busy."""
    now, calls = 1000.0, []

    def slow(*arguments, **options):
        nonlocal now
        calls.append(now)
        now += 3
        return ab_report(*arguments, **options)

    monkeypatch.setattr("cifar.serving.process.analytics.ab_report", slow)
    analytics = Analytics(engine, SHIPPED, settings, clock=lambda: now)
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(lambda _: analytics.report(), range(8)))
    assert all(report is reports[0] for report in reports)
    now = 1003 + 59.0
    assert analytics.report() is reports[0]
    now = 1003 + 61.0
    assert analytics.report() is not reports[0]
    assert calls == [1000, 1064]


def test_a_failure_is_forgotten_after_five_seconds(engine, settings, monkeypatch):
    """A query that ran into the time-out took long, but the database may be back at once."""
    now = 1000.0

    def fail(*_: object) -> None:
        nonlocal now
        now += 5
        raise SQLAlchemyError("time-out")

    analytics = Analytics(engine, SHIPPED, settings, clock=lambda: now)
    with monkeypatch.context() as patched:
        patched.setattr("cifar.serving.process.analytics.ab_report", fail)
        with pytest.raises(RecordsUnavailable):
            analytics.report()
    with pytest.raises(RecordsUnavailable):
        analytics.report()
    now += 5.1
    assert analytics.report().verdict == "no_records"
