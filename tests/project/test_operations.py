"""The promises of docs/operations.md to operators, compared with the code."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re

from pydantic import SecretStr

from cifar.serving.front.observe import Observe
from cifar.serving.process.logs import log_config
from cifar.settings import ROOT, Settings


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
    page = (ROOT / "docs/operations.md").read_text().partition("## Metrics")[2]
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
    assert set(re.findall(r"^\| `([A-Z][a-z]\w+)` \| ", page, re.MULTILINE)) == alerts


def test_every_log_field_is_in_the_table_of_the_operators(caplog):
    """Whoever writes a query or an alert over the logs reads the table. The line is made by the server's own formatter."""

    async def fail(_scope, _receive, _send):
        try:
            raise ValueError
        except ValueError:
            logging.getLogger("cifar").exception("a failure that is logged")

    config = log_config(Settings(log_format="json"))
    formatter, of_request = config["formatters"]["json"]["()"](), config["filters"]["request"]["()"]()
    caplog.handler.addFilter(of_request)
    caplog.set_level(logging.INFO, "cifar")
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"traceparent", trace)]}
    try:
        asyncio.run(
            Observe(fail, access_log=True, log_addresses=True)({**scope, "client": ("192.0.2.1", 1)}, None, None)
        )
    finally:
        caplog.handler.removeFilter(of_request)
    failure, request = (json.loads(formatter.format(record)).keys() for record in caplog.records)
    page = (ROOT / "docs/operations.md").read_text().partition("## Logs")[2].partition("## Metrics")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", page, re.MULTILINE))
    assert rows.keys() == failure | request
    assert {
        name for name, where in rows.items() if where.startswith(("every line", "events of a request"))
    } == request & failure


def test_only_the_line_of_a_request_has_fields_of_its_own():
    """The table above has them all, as long as no other event adds some."""
    call = re.compile(r"\blog\.(?:log|debug|info|warning|error|exception|critical)\((?:[^()]|\([^()]*\))*\bextra=")
    sources = [*(ROOT / "cifar").rglob("*.py"), ROOT / "app.py", ROOT / "gunicorn.conf.py"]
    assert [file.name for file in sources if call.search(file.read_text())] == ["observe.py"]


def test_the_rotation_of_every_secret_is_described():
    """The day on which a secret has leaked is a bad one to find out what depends on it."""
    table = (ROOT / "docs/operations.md").read_text().partition("## Rotating secrets")[2].partition("\n## ")[0]
    rotated = set(re.findall(r"`CIFAR_(\w+)`", "".join(re.findall(r"^\| (.*?) \| .* \| .* \|$", table, re.MULTILINE))))
    assert {
        name.upper() for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None
    } <= rotated
