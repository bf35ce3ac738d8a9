"""The A/B report: what the records say of each version, and of the difference of two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import Engine, Select, func, select

from cifar.analytics.rows import columns
from cifar.analytics.sequential import Accuracy, Difference, difference, feedback_needed
from cifar.errors import BadParameter, CifarError
from cifar.models.rollout import RolloutLog
from cifar.records.tables import NONE, comparisons, feedback, predictions
from cifar.settings import Settings

_LOOKS = 40
"""Points of the interval over time, at most."""
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class VersionReport:
    """One version in the window. None and NaN never stand for zero: None is what nobody knows."""

    version: int
    requests: int
    share: float
    median_ms: float | None
    p95_ms: float | None
    confidence: float | None
    """Mean probability of the label given."""
    in_distribution: float | None
    """Share of the images that are like those of the training; None for a version that cannot tell."""
    compared: int
    """Requests that it answered in the shadow of another version."""
    disagreement: float | None
    """Share of those where it gave another label."""
    distance: float | None
    """Mean total variation between the two answers' scores, 0 to 1."""
    feedback: int
    users: int
    """Users who gave it."""
    accuracy: float | None
    low: float | None
    high: float | None
    """Wilson's interval at 95 %; see `Accuracy.interval`."""
    design_effect: float


@dataclass(frozen=True)
class Look:
    """The difference as it was known at one time."""

    at: float
    feedback: int
    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """The second version less the first."""

    first: int
    second: int
    now: Look | None
    """None while either has too few users with feedback."""
    looks: list[Look]
    effect: float
    needed: int
    """Feedback that both need together, to find a difference of `effect` with 80 % power, in the shares that they have now."""


Verdict = Literal["no_records", "one_version", "few", "open", "better"]


@dataclass(frozen=True)
class Report:
    """All that `python -m cifar ab report` and the page show."""

    model: str
    since_days: float
    cut: bool
    """Whether there were more rows than the setting `max_report_rows`: then the newest are looked at."""
    versions: list[VersionReport]
    comparison: Comparison | None
    verdict: Verdict
    better: int | None = None
    on_trial: bool = False
    """Whether the two compared are the stable version and the one on trial now."""

    def as_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return asdict(self)


def ab_report(
    engine: Engine,
    settings: Settings,
    *,
    versions: Sequence[int] = (),
    since_days: float | None = None,
    effect: float | None = None,
) -> Report:
    """Compare two versions by what was recorded.

    Args:
        engine: the database.
        settings: the model, the window, the limit of rows, and the smallest difference of interest.
        versions: the one in use and the one on trial. Default: the stable one and the other one that users are sent to; where
            there are no such two, those that answered most.
        since_days: days up to now; None for the setting.
        effect: the difference that `needed` is told for; None for the setting. It does not change the test.

    Raises:
        BadParameter: a version named has answered nothing in the window.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    days = settings.ab_window_days if since_days is None else since_days
    since, most, model = time.time() - days * _DAY_SECONDS, settings.max_report_rows, settings.model_name
    with engine.connect() as connection:
        asked = columns(connection, _asked(model, since), most)
        said = _judged(columns(connection, _said(model, since), most))
        shadows = {row.shadow_version: row for row in connection.execute(_shadows(model, since))}
    counts = _counts(asked["version"])
    there = sorted(counts.keys() | shadows.keys())
    judged = {number: _accuracy(said, number) for number in there}
    rows = [_version(number, asked, shadows.get(number), judged[number]) for number in there]
    trial = _on_trial(settings, counts)
    pair = _pair(versions or trial, counts)
    compared = None
    if pair:
        compared = _compare(*pair, said, judged, counts, settings=settings, effect=effect or settings.ab_effect_share)
    return Report(
        model,
        days,
        len(asked["version"]) == most,
        rows,
        compared,
        *_verdict(counts, compared),
        on_trial=pair == tuple(trial),
    )


def _asked(model: str, since: float) -> Select[Any]:
    names = ("version", "seconds", "score", "in_distribution")
    query = select(*(predictions.c[name] for name in names))
    return query.where(predictions.c.model == model, predictions.c.at >= since).order_by(predictions.c.at.desc())


def _said(model: str, since: float) -> Select[Any]:
    names = ("version", "user", "label", "in_distribution")
    query = select(*(predictions.c[name] for name in names), feedback.c.label.label("truth"), feedback.c.at)
    query = query.join_from(predictions, feedback)
    return query.where(predictions.c.model == model, predictions.c.at >= since).order_by(feedback.c.at.desc())


def _shadows(model: str, since: float) -> Select[Any]:
    """One row for each version that answered in the shadow of another."""
    table = comparisons.c
    counted = [func.count().label("compared"), func.count().filter(~table.agrees).label("differs")]
    query = select(table.shadow_version, *counted, func.avg(table.distance).label("distance"))
    return query.where(table.model == model, table.at >= since).group_by(table.shadow_version)


def _counts(numbers: np.ndarray) -> dict[int, int]:
    return {int(number): int(count) for number, count in zip(*np.unique(numbers, return_counts=True), strict=True)}


def _of(columns: dict[str, np.ndarray], *numbers: int) -> dict[str, np.ndarray]:
    chosen = np.isin(columns["version"], numbers)
    return {name: column[chosen] for name, column in columns.items()}


def _judged(said: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feedback as numbers. An answer was right if its label is the true one, or if it said itself that it was none of them."""
    none = (said["truth"] == NONE) & (said["in_distribution"] == False)  # noqa: E712 - of an array
    right = np.asarray((said["truth"] == said["label"]) | none, bool)
    users = np.unique(said["user"], return_inverse=True)[1]
    return {"version": said["version"], "at": said["at"], "user": users, "right": right}


def _accuracy(said: dict[str, np.ndarray], number: int) -> Accuracy:
    chosen = said["version"] == number
    return Accuracy.of(said["user"][chosen], said["right"][chosen])


def _version(number: int, asked: dict[str, np.ndarray], shadow: Any, judged: Accuracy) -> VersionReport:
    rows = _of(asked, number)
    count = len(rows["version"])
    median, p95 = np.quantile(rows["seconds"] * 1000, (0.5, 0.95)).tolist() if count else (None, None)
    told = [value for value in rows["in_distribution"].tolist() if value is not None]
    low, high = judged.interval() if judged.feedback else (None, None)
    return VersionReport(
        version=number,
        requests=count,
        share=count / max(1, len(asked["version"])),
        median_ms=median,
        p95_ms=p95,
        confidence=float(rows["score"].mean()) if count else None,
        in_distribution=float(np.mean(told)) if told else None,
        compared=shadow.compared if shadow else 0,
        disagreement=shadow.differs / shadow.compared if shadow else None,
        distance=float(shadow.distance) if shadow else None,
        feedback=judged.feedback,
        users=judged.users,
        accuracy=judged.share if judged.feedback else None,
        low=low,
        high=high,
        design_effect=judged.design_effect,
    )


def _on_trial(settings: Settings, counts: dict[int, int]) -> list[int]:
    """The stable version and the one on trial, when both have answered."""
    try:
        routing = RolloutLog.of(settings).now()
    except CifarError:  # the report does not depend on what is served now
        return []
    asked = dict.fromkeys(
        [routing.stable, *(routing.labels[label] for label in routing.traffic)]
    )  # shadows answer nobody
    tried = [number for number in asked if number in counts]
    return tried[:2] if len(tried) > 1 else []


def _pair(versions: Sequence[int], counts: dict[int, int]) -> tuple[int, int] | None:
    for number in versions if counts else ():
        if number not in counts:
            there = ", ".join(map(str, sorted(counts)))
            raise BadParameter(f"Version {number} has answered nothing in this time; these have: {there}.")
    chosen = list(versions) or sorted(counts, key=lambda number: (-counts[number], number))[:2]
    return (chosen[0], chosen[1]) if len(chosen) == 2 and counts else None


def _compare(
    first: int,
    second: int,
    said: dict[str, np.ndarray],
    judged: dict[int, Accuracy],
    counts: dict[int, int],
    *,
    settings: Settings,
    effect: float,
) -> Comparison:
    rows, mixture = _of(said, first, second), settings.ab_effect_share
    looks = []
    for end in np.unique(np.linspace(0, len(rows["at"]), _LOOKS + 1).astype(int)[1:]):
        until = {name: column[:end] for name, column in rows.items()}
        found = difference(_accuracy(until, first), _accuracy(until, second), mixture=mixture)
        looks += [_look(found, float(until["at"][-1]), int(end))] if found else []
    by_feedback = judged[first].feedback and judged[second].feedback
    weights = [judged[number].feedback if by_feedback else counts[number] for number in (first, second)]
    needed = feedback_needed(
        judged[first], judged[second], effect=effect, mixture=mixture, share=weights[1] / sum(weights)
    )
    return Comparison(first, second, looks[-1] if looks else None, looks, effect, needed)


def _look(found: Difference, at: float, count: int) -> Look:
    return Look(at, count, found.value, found.low, found.high, found.p_value)


def _verdict(counts: dict[int, int], compared: Comparison | None) -> tuple[Verdict, int | None]:
    if not counts:
        return "no_records", None
    if compared is None:
        return "one_version", None
    if compared.now is None:
        return "few", None
    if compared.now.low <= 0 <= compared.now.high:
        return "open", None
    return "better", compared.second if compared.now.value > 0 else compared.first
