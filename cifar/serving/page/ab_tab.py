"""What the records say, as HTML: the tab A/B, and drift on the tab Model."""

from __future__ import annotations

from cifar.analytics.ab import Comparison, Look, Report, VersionReport
from cifar.analytics.drift_report import VersionDrift
from cifar.analytics.sequential import MIN_USERS
from cifar.serving.page.answer import percent
from cifar.serving.page.plots import band
from cifar.serving.page.texts import say, words
from cifar.settings import Settings

_FEATURES = {
    "labels": "drift.labels",
    "confidence": "drift.confidence",
    "brightness": "drift.brightness",
    "contrast": "drift.contrast",
    "in_distribution": "drift.in_distribution",
}
_LEVELS = {"none": "drift.none", "warn": "drift.warn", "alert": "drift.alert"}
_HEAD = ("ab.requests", "ab.latency", "ab.confidence", "ab.in_distribution", "ab.shadow", "ab.feedback", "ab.accuracy")
_UNKNOWN = "–"  # noqa: RUF001 - a dash in an empty cell


def ab_html(report: Report, settings: Settings) -> str:
    """The tab's content."""
    days = f"{report.since_days:g}"
    if report.verdict == "no_records":
        return f'<p class="missing">{say("ab.no_records", days=days)}</p>'
    parts = [f"<p>{say('ab.intro', days=days)}</p>", f'<p class="verdict">{_verdict(report)}</p>']
    if report.comparison:
        if not report.on_trial:
            parts.append(f"<p>{say('ab.no_trial', first=report.comparison.first, second=report.comparison.second)}</p>")
        parts += _compared(
            report.comparison, sum(row.feedback for row in report.versions if row.version in _pair(report))
        )
    parts.append(_table(report.versions))
    if report.cut:
        parts.append(f"<p>{say('ab.cut', most=f'{settings.max_report_rows:,}')}</p>")
    return f'<div class="ab">{"".join(parts)}</div>'


def _pair(report: Report) -> tuple[int, ...]:
    compared = report.comparison
    return (compared.first, compared.second) if compared else ()


def _verdict(report: Report) -> str:
    if report.verdict == "better":
        (other,) = {*_pair(report)} - {report.better}
        return say("ab.better", better=report.better, other=other)
    if report.verdict == "few":
        return say("ab.few", users=MIN_USERS)
    return say("ab.open") if report.verdict == "open" else say("ab.one_version")


def _compared(compared: Comparison, there: int) -> list[str]:
    needed = say("ab.needed", effect=f"{compared.effect * 100:g}", needed=f"{compared.needed:,}", there=f"{there:,}")
    if compared.now is None:
        return [f"<p>{needed}</p>"]
    now = compared.now
    said = say(
        "ab.difference",
        first=compared.first,
        second=compared.second,
        value=_points(now.value),
        low=_points(now.low),
        high=_points(now.high),
        p=_p(now.p_value),
    )
    decided = not now.low <= 0 <= now.high
    return [
        f"<p>{said if decided else f'{said} {needed}'}</p>",
        band(words("ab.plot"), words("ab.axis"), [_scaled(look) for look in compared.looks]),
    ]


def _scaled(look: Look) -> tuple[int, float, float, float]:
    return look.feedback, look.value * 100, look.low * 100, look.high * 100


def _p(value: float) -> str:
    return f"= {value:.4f}" if value >= 0.0001 else "< 0.0001"


def _points(value: float) -> str:
    return f"{value * 100:+.1f}"


def _table(versions: list[VersionReport]) -> str:
    head = "".join(f'<th scope="col">{say(key)}</th>' for key in ("model.version", *_HEAD))
    rows = "".join(
        f'<tr><th scope="row">{row.version}</th>{"".join(f"<td>{cell}</td>" for cell in _cells(row))}</tr>'
        for row in versions
    )
    return (
        f'<section class="card"><h2 class="part" id="ab-title">{say("ab.table")}</h2>'
        '<div class="wide" tabindex="0" role="region" aria-labelledby="ab-title">'
        f'<table class="versions"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _cells(row: VersionReport) -> list[str]:
    latency, accuracy, shadow = _UNKNOWN, _UNKNOWN, _UNKNOWN
    if row.median_ms is not None and row.p95_ms is not None:
        latency = f"{row.median_ms:.1f}, {row.p95_ms:.1f}"
    if row.accuracy is not None and row.low is not None and row.high is not None:
        accuracy = say("ab.to", share=percent(row.accuracy), low=percent(row.low), high=percent(row.high))
    if row.disagreement is not None:
        shadow = say("ab.of", share=percent(row.disagreement), all=f"{row.compared:,}")
    return [
        f"{row.requests:,} ({percent(row.share)})",
        latency,
        _UNKNOWN if row.confidence is None else percent(row.confidence),
        _UNKNOWN if row.in_distribution is None else percent(row.in_distribution),
        shadow,
        f"{row.feedback:,} ({row.users:,})",
        accuracy,
    ]


def drift_html(found: VersionDrift, settings: Settings) -> str:
    """The section's content for one version."""
    hours, images = f"{settings.drift_window_hours:g}", f"{found.images:,}"
    if found.status == "no_reference":
        return f"<p>{say('drift.no_reference')}</p>"
    if found.status == "few":
        return f"<p>{say('drift.few', hours=hours, images=images, least=f'{settings.drift_min_images:,}')}</p>"
    head = "".join(
        f'<th scope="col">{say(key)}</th>' for key in ("drift.feature", "drift.psi", "drift.chance", "drift.level")
    )
    rows = "".join(
        f'<tr class="drifts-{one.level}"><th scope="row">{say(_FEATURES[one.feature])}</th><td>{one.psi:.3f}</td>'
        f"<td>{one.chance:.3f}</td><td>{say(_LEVELS[one.level])}</td></tr>"
        for one in found.features
    )
    return (
        f"<p>{say('drift.help', hours=hours, images=images, reference=f'{found.reference_images:,}')}</p>"
        '<div class="wide" tabindex="0" role="region" aria-labelledby="drift-title">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
