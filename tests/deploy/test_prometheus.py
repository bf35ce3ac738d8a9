"""Tests of `deploy/prometheus` with the real promtool: every alert fires when it should, and only then."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support.servers import need

from cifar.settings import ROOT

DEPLOY = ROOT / "deploy/prometheus"
ALERTMANAGER = DEPLOY / "alertmanager.yml"


def read_alerts() -> dict[str, dict]:
    groups = yaml.safe_load((DEPLOY / "rules/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


ALERTS = read_alerts()


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([need("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)


def weakened(alert: str) -> list[tuple[str, dict[str, str], str]]:
    """Return variants of an alert with one part broken, as (description, changed fields, test that must fail)."""
    expr = ALERTS[alert]["expr"]
    conditions, cases = expr.split(" and on "), expr.split(" or ")
    changes = [("never true", {"expr": "vector(0) > 1"}, "fires"), ("always true", {"expr": "vector(1)"}, "silent")]
    if "for" in ALERTS[alert]:
        changes.append(("without duration", {"for": "0s"}, "silent"))
    if len(cases) > 1:
        changes += [(f"without case {i}", {"expr": rest}, "fires") for i, rest in _without_each(cases, " or ")]
    if len(conditions) > 1:
        conditions = [condition.removeprefix("(job) ").removeprefix("(job, version) ") for condition in conditions]
        changes += [
            (f"without condition {i}", {"expr": rest}, "silent")
            for i, rest in _without_each(conditions, " and on (job) ")
        ]
    return changes


def _without_each(parts: list[str], joint: str) -> list[tuple[int, str]]:
    return [(i, joint.join(parts[:i] + parts[i + 1 :])) for i in range(len(parts))]


WEAKENED = [(alert, *change) for alert in ALERTS for change in weakened(alert)]


def test_prometheus_accepts_its_configuration_and_its_rules():
    """A syntax error would stop Prometheus from starting; `--lint-fatal` also finds duplicate rules."""
    checked = promtool("check", "config", "--lint-fatal", DEPLOY / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert f"{len(list((DEPLOY / 'rules').glob('*.yml')))} rule files found" in checked.stdout


def test_the_commented_parts_of_the_configuration_are_valid_too(tmp_path):
    """They are the ones to use with sign-in."""
    shutil.copytree(DEPLOY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "token").write_text("a key\n")
    config = re.sub(r"^( *)#(?=\S)", r"\1", (DEPLOY / "prometheus.yml").read_text(), flags=re.MULTILINE)
    (tmp_path / "prometheus.yml").write_text(config)
    assert yaml.safe_load(config)["scrape_configs"][0]["authorization"] == {"credentials_file": "token"}
    checked = promtool("check", "config", "--lint-fatal", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr


def amtool(*arguments: str | Path) -> str:
    return subprocess.run([need("amtool"), *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("commented", [False, True])
def test_alertmanager_accepts_its_configuration(tmp_path, commented):
    """Also with the receivers that are commented out, which every operator has to fill in."""
    config = ALERTMANAGER.read_text()
    if commented:
        config = re.sub(r"^( *)#(?=\S)", r"\1", config, flags=re.MULTILINE)
        assert len(re.findall(r"^ +webhook_configs:", config, re.MULTILINE)) == 2
    (tmp_path / "alertmanager.yml").write_text(config)
    assert "SUCCESS" in amtool("check-config", tmp_path / "alertmanager.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_reaches_the_receiver_of_its_severity(alert):
    """A page that becomes a ticket is read in the morning; a ticket that becomes a page wakes somebody for nothing."""
    severity = ALERTS[alert]["labels"]["severity"]
    labels = (f"alertname={alert}", f"severity={severity}")
    found = amtool("config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels)
    assert found.split() == [severity]


def test_prometheus_sends_its_alerts_to_the_alertmanager_of_compose():
    """Without it nobody is told."""
    (manager,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["alerting"]["alertmanagers"]
    (target,) = manager["static_configs"][0]["targets"]
    name, port = target.split(":")
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][name]
    assert service["ports"][0].endswith(f":{port}")
    assert f"./{ALERTMANAGER.relative_to(ROOT)}:/etc/alertmanager.yml:ro" in service["volumes"]


def test_each_alert_has_a_test_that_fires_it_and_one_that_does_not():
    """Each alert has a severity, a summary and an action for the person on call."""
    files = {file.name for file in (DEPLOY / "tests").glob("*.yml")}
    assert files == {f"{alert}.{kind}.yml" for alert in ALERTS for kind in ("fires", "silent")}
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "action"}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_should_and_is_silent_when_not(alert):
    """Promtool simulates hours of metrics in a moment."""
    for kind, fires in (("fires", True), ("silent", False)):
        file = DEPLOY / "tests" / f"{alert}.{kind}.yml"
        cases = [case for group in yaml.safe_load(file.read_text())["tests"] for case in group["alert_rule_test"]]
        assert {case["alertname"] for case in cases} == {alert}
        assert all(bool(case["exp_alerts"]) == fires for case in cases)
        played = promtool("test", "rules", file)
        assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("alert", "change", "fields", "noticed_by"), WEAKENED, ids=[f"{alert} {change}" for alert, change, *_ in WEAKENED]
)
def test_the_tests_of_an_alert_fail_when_a_part_of_it_is_broken(tmp_path, alert, change, fields, noticed_by):
    """Each condition, each case and the duration of each alert is covered by one of its tests."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    rules = yaml.safe_load((DEPLOY / "rules/alerts.yml").read_text())
    for group in rules["groups"]:
        group["rules"] = [{**rule, **fields} for rule in group["rules"] if rule["alert"] == alert]
    (tmp_path / "deploy/rules/alerts.yml").write_text(yaml.safe_dump(rules))
    played = promtool("test", "rules", tmp_path / "deploy/tests" / f"{alert}.{noticed_by}.yml")
    assert played.returncode == 1, f"{alert} {change} passes its tests"
    assert f"alertname: {alert}" in played.stdout + played.stderr, "the alert differs, and the rules are readable"
