"""The A/B report and the drift report as text for a terminal."""

from __future__ import annotations

from cifar.analytics.ab import MAX_USERS_PER_SOURCE, ABReport, VersionReport
from cifar.analytics.drift_report import MIN_IMAGES, VersionDrift
from cifar.analytics.rows import MAX_ROWS
from cifar.analytics.sequential import MIN_USERS
from cifar.format import number, percent, percent_range, points, text_table

_NO_RECORDS = "No predictions were recorded in this period."


def ab_text(report: ABReport) -> str:
    """Format the tables of the versions, the difference in accuracy, and the verdict."""
    cut = f"; only the newest {MAX_ROWS:,} records" if report.cut else ""
    lines = [f"{report.model}, the last {report.since_days:g} days{cut}", ""]
    if report.versions:
        lines += [_traffic(report.versions), "", _feedback(report.versions), ""]
    if concentration := concentration_text(report):
        lines += [concentration, ""]
    if report.comparison and (now := report.comparison.now):
        lines.append(
            f"accuracy of version {report.comparison.second} minus that of version {report.comparison.first}: {points(now.value)} points, "
            f"95 % interval valid at any time {points(now.low)} to {points(now.high)}, p = {now.p_value:.3g}"
        )
    return "\n".join([*lines, verdict_text(report)])


def _traffic(versions: list[VersionReport]) -> str:
    head = (
        "version",
        "requests",
        "share",
        "median ms",
        "p95 ms",
        "confidence",
        "in distribution",
        "disagrees in shadow traffic",
    )
    rows = [
        (
            row.version,
            row.requests,
            percent(row.share),
            number(row.median_ms, 1, missing="-"),
            number(row.p95_ms, 1, missing="-"),
            number(row.confidence, 3, missing="-"),
            percent(row.in_distribution, missing="-"),
            f"{percent(row.disagreement)} of {row.compared}" if row.compared else "-",
        )
        for row in versions
    ]
    return text_table(head, rows)


def _feedback(versions: list[VersionReport]) -> str:
    head = ("version", "feedback", "users", "accuracy", "95 % interval", "design effect")
    rows = [
        (
            row.version,
            row.feedback,
            row.users,
            percent(row.accuracy, missing="-"),
            percent_range(row.low, row.high, missing="-"),
            number(row.design_effect, 2),
        )
        for row in versions
    ]
    return text_table(head, rows)


def concentration_text(report: ABReport) -> str:
    """Say how much of the feedback came from one address, and what is left out of the test; empty if there is nothing to say."""
    sentences = []
    if report.largest_source is not None:
        sentences.append(
            f"Feedback came from {report.sources:,} addresses or signed-in callers, {percent(report.largest_source)} of it from one."
        )
    if report.left_out:
        sentences.append(
            f"{report.left_out:,} answers with feedback do not count: at most {MAX_USERS_PER_SOURCE} users of one address do."
        )
    if report.named:
        sentences.append(f"{report.named:,} requests named a version and are left out.")
    return " ".join(sentences)


def verdict_text(report: ABReport) -> str:
    """Return the verdict as a sentence."""
    if report.verdict == "no_records":
        return _NO_RECORDS
    comparison = report.comparison
    if comparison is None:
        return "Only one version answered requests: there is nothing to compare."
    if report.verdict == "better":
        other = comparison.first if report.better == comparison.second else comparison.second
        return f"Version {report.better} is better than version {other}."
    if comparison.now:
        missing = f"the interval includes zero. There are {comparison.now.feedback:,} answers with feedback."
    else:
        missing = f"versions {comparison.first} and {comparison.second} each need feedback by {MIN_USERS} users."
    return (
        f"Not decided yet: {missing} A difference of {comparison.effect * 100:g} points is found in four of five cases with about "
        f"{comparison.needed:,} answers with feedback."
    )


def drift_text(report: list[VersionDrift]) -> str:
    """Format one line for each version, followed by a table of its features if drift was measured."""
    if not report:
        return _NO_RECORDS
    lines = []
    for version in report:
        status = {
            "measured": f"compared with the {version.reference_images} images of its reference",
            "few": f"too few: drift needs at least {MIN_IMAGES}",
            "no_reference": "its manifest holds no reference",
        }[version.status]
        lines.append(f"version {version.version}, {version.images} recent images, {status}")
        if version.features:
            rows = [(each.feature, f"{each.psi:.3f}", f"{each.chance:.3f}", each.level) for each in version.features]
            lines.append(text_table(("feature", "PSI", "by chance", "drift"), rows))
    return "\n".join(lines)
