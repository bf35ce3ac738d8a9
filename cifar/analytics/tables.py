"""The A/B report and drift for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cifar.analytics.ab import Comparison, Report, VersionReport
from cifar.analytics.drift_report import VersionDrift
from cifar.analytics.sequential import MIN_USERS


def report_text(report: Report) -> str:
    """A table of the versions, the difference, and the verdict in a sentence."""
    cut = "; of more records than CIFAR_MAX_REPORT_ROWS, the newest" if report.cut else ""
    lines = [f"{report.model}, the last {report.since_days:g} days{cut}", ""]
    if report.versions:
        lines += [*_traffic(report.versions), "", *_feedback(report.versions), ""]
    if report.comparison and (now := report.comparison.now):
        pair = f"accuracy of {report.comparison.second} less that of {report.comparison.first}"
        interval = f"95 % at all times {_points(now.low)} to {_points(now.high)}"
        lines += [f"{pair}: {_points(now.value)} points, {interval}, p = {now.p_value:.3g}"]
    return "\n".join([*lines, sentence(report)])


def _traffic(versions: list[VersionReport]) -> list[str]:
    head = ("version", "requests", "share", "median ms", "p95 ms", "confidence", "in distribution", "differs in shadow")
    rows = [
        (
            row.version,
            row.requests,
            _percent(row.share),
            _number(row.median_ms, 1),
            _number(row.p95_ms, 1),
            _number(row.confidence, 3),
            _percent(row.in_distribution),
            f"{_percent(row.disagreement)} of {row.compared}" if row.compared else "-",
        )
        for row in versions
    ]
    return _table(head, rows)


def _feedback(versions: list[VersionReport]) -> list[str]:
    head = ("version", "feedback", "by users", "accuracy", "95 % interval", "design effect")
    rows = [
        (
            row.version,
            row.feedback,
            row.users,
            _percent(row.accuracy),
            _interval(row.low, row.high),
            _number(row.design_effect, 2),
        )
        for row in versions
    ]
    return _table(head, rows)


def sentence(report: Report) -> str:
    """The verdict."""
    compared = report.comparison
    if compared is None:
        if report.verdict == "no_records":
            return "Nothing is recorded of this time."
        return "Only one version has answered: there is nothing to compare."
    if report.verdict == "better":
        other = compared.first if report.better == compared.second else compared.second
        return f"Version {report.better} is better than version {other}."
    return f"Not decided yet: {_missing(compared, few=report.verdict == 'few')}"


def _missing(compared: Comparison, *, few: bool) -> str:
    needed = f"about {compared.needed:,} answers with feedback find a difference of {compared.effect * 100:g} points in four of five cases."
    if few:
        return f"feedback by {MIN_USERS} users of each of the versions {compared.first} and {compared.second} is needed first; {needed}"
    there = compared.now.feedback if compared.now else 0
    return f"the interval holds zero. There are {there:,} answers with feedback; {needed}"


def drift_text(found: list[VersionDrift], *, min_images: int) -> str:
    """A line for each version and feature."""
    if not found:
        return "Nothing is recorded of this time."
    lines = []
    for version in found:
        said = {
            "measured": f"beside {version.reference_images} of its reference",
            "few": f"too few: at least {min_images} are needed",
            "no_reference": "no reference in its manifest",
        }[version.status]
        lines.append(f"version {version.version}, {version.images} recent images, {said}")
        rows = [(f.feature, f"{f.psi:.3f}", f"{f.chance:.3f}", f.level) for f in version.features]
        lines += _table(("feature", "PSI", "by chance", "drift"), rows) if rows else []
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    texts = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in texts]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f} %"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low * 100:.1f} - {high * 100:.1f} %"


def _points(difference: float) -> str:
    return f"{difference * 100:+.1f}"
