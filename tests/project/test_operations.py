"""What docs/operations.md promises to operators, held against the code."""

from __future__ import annotations

import ast
import re

from cifar.settings import ROOT


def metrics() -> dict[str, tuple[str, str]]:
    """Return label names and meaning of each metric that the code creates, by name."""
    found = {}
    for node in ast.walk(ast.parse((ROOT / "cifar/serving/process/metrics.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Counter", "Histogram", "Gauge"}:
            name, meaning, *more = (ast.literal_eval(argument) for argument in node.args)
            found[name] = (", ".join(f"`{label}`" for label in (more[0] if more else [])), meaning)
    return found


def test_every_metric_is_in_the_table_of_the_operators_with_its_labels_and_meaning():
    """An operator who writes an alert reads the table, not the code."""
    page = (ROOT / "docs/operations.md").read_text()
    rows = re.findall(r"^\| `((?:cifar|request)_\w+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    assert {name: (labels, meaning) for name, labels, meaning in rows} == metrics()
    assert len(rows) == len(metrics()) > 20


def test_every_alert_has_an_entry_that_says_what_to_do():
    """An alert without one wakes somebody who then has to read the rule."""
    alerts = {
        name
        for file in (ROOT / "deploy/prometheus/rules").glob("*.y*ml")
        for name in re.findall(r"alert: (\w+)", file.read_text())
    }
    page = (ROOT / "docs/operations.md").read_text()
    assert len(alerts) > 3
    assert set(re.findall(r"^\| `(Cifar\w+|[A-Z]\w+)` \| ", page, re.MULTILINE)) == alerts
