"""The tab A/B: the A/B report as HTML."""

from __future__ import annotations

from cifar.analytics.ab import MAX_USERS_PER_SOURCE, ABReport, AccuracyComparison, VersionReport
from cifar.analytics.rows import MAX_ROWS
from cifar.analytics.sequential import MIN_USERS
from cifar.format import percent, points
from cifar.serving.page.plots import interval_plot, wide_table
from cifar.serving.page.texts import html_text, text

_COLUMNS = (
    "model.version",
    "ab.requests",
    "ab.latency",
    "ab.confidence",
    "ab.in_distribution",
    "ab.shadow",
    "ab.feedback",
    "ab.accuracy",
)
_UNKNOWN = "–"  # noqa: RUF001 - a dash in an empty cell


def ab_html(report: ABReport) -> str:
    days = f"{report.since_days:g}"
    if report.verdict == "no_records":
        return f'<p class="missing">{html_text("ab.no_records", days=days)}</p>'
    parts = [f"<p>{html_text('ab.intro', days=days)}</p>", f'<p class="verdict">{_verdict(report)}</p>']
    if pair := report.comparison:
        if not report.on_trial:
            parts.append(f"<p>{html_text('ab.no_trial', first=pair.first, second=pair.second)}</p>")
        available = sum(row.feedback for row in report.versions if row.version in {pair.first, pair.second})
        parts += _difference(pair, available)
    parts.append(_table(report.versions))
    if sentences := _concentration(report):
        parts.append(f"<p>{' '.join(sentences)}</p>")
    if report.cut:
        parts.append(f"<p>{html_text('ab.cut', limit=f'{MAX_ROWS:,}')}</p>")
    return f'<div class="ab">{"".join(parts)}</div>'


def _concentration(report: ABReport) -> list[str]:
    sentences = []
    if report.largest_source is not None:
        sources, largest = f"{report.sources:,}", percent(report.largest_source)
        sentences.append(html_text("ab.sources", sources=sources, largest=largest))
    if report.left_out:
        sentences.append(html_text("ab.left_out", count=f"{report.left_out:,}", users=MAX_USERS_PER_SOURCE))
    if report.named:
        sentences.append(html_text("ab.named", count=f"{report.named:,}"))
    return sentences


def _verdict(report: ABReport) -> str:
    if report.verdict == "better" and report.comparison:
        (other,) = {report.comparison.first, report.comparison.second} - {report.better}
        return html_text("ab.better", better=report.better, other=other)
    if report.verdict == "few":
        return html_text("ab.few", users=MIN_USERS)
    return html_text("ab.open") if report.verdict == "open" else html_text("ab.one_version")


def _difference(pair: AccuracyComparison, available: int) -> list[str]:
    """Return the difference with its interval, and how much feedback is needed as long as the interval contains zero."""
    needed = html_text(
        "ab.needed", effect=f"{pair.effect * 100:g}", needed=f"{pair.needed:,}", available=f"{available:,}"
    )
    now = pair.now
    if now is None:
        return [f"<p>{needed}</p>"]
    difference = html_text(
        "ab.difference",
        first=pair.first,
        second=pair.second,
        value=points(now.value),
        low=points(now.low),
        high=points(now.high),
        p=f"= {now.p_value:.4f}" if now.p_value >= 0.0001 else "< 0.0001",
    )
    decided = not now.low <= 0 <= now.high
    looks = [(look.feedback, look.value * 100, look.low * 100, look.high * 100) for look in pair.looks]
    return [
        f"<p>{difference if decided else f'{difference} {needed}'}</p>",
        interval_plot(text("ab.plot"), text("ab.axis"), looks),
    ]


def _table(versions: list[VersionReport]) -> str:
    rows = [
        f'<tr><th scope="row">{row.version}</th>{"".join(f"<td>{cell}</td>" for cell in _cells(row))}</tr>'
        for row in versions
    ]
    table = wide_table("versions", map(html_text, _COLUMNS), rows)
    return f'<section class="card"><h2 class="part" id="versions-title">{html_text("ab.table")}</h2>{table}</section>'


def _cells(row: VersionReport) -> list[str]:
    latency, accuracy, shadow = _UNKNOWN, _UNKNOWN, _UNKNOWN
    if row.median_ms is not None and row.p95_ms is not None:
        latency = f"{row.median_ms:.1f}, {row.p95_ms:.1f}"
    if row.accuracy is not None and row.low is not None and row.high is not None:
        accuracy = html_text(
            "ab.share_interval", share=percent(row.accuracy), low=percent(row.low), high=percent(row.high)
        )
    if row.disagreement is not None:
        shadow = html_text("ab.share_of", share=percent(row.disagreement), all=f"{row.compared:,}")
    return [
        f"{row.requests:,} ({percent(row.share)})",
        latency,
        percent(row.confidence, missing=_UNKNOWN),
        percent(row.in_distribution, missing=_UNKNOWN),
        shadow,
        f"{row.feedback:,} ({row.users:,})",
        accuracy,
    ]
