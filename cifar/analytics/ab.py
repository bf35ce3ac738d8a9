"""The A/B report: traffic and feedback of each version, and the difference in accuracy between two of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import Engine, Select, func, select

from cifar.analytics.rows import MAX_ROWS, read_columns
from cifar.analytics.sequential import Accuracy, difference, feedback_needed
from cifar.errors import BadParameter, CifarError
from cifar.models.rollout import RolloutLog
from cifar.records.tables import comparisons, feedback, predictions
from cifar.records.values import NONE_LABEL
from cifar.settings import Settings

MAX_USERS_PER_SOURCE = 5
"""Users of one address, or of one signed-in caller, whose feedback counts: the first ones. A new cookie costs nothing."""
_MAX_LOOKS = 40
_DAY_SECONDS = 86_400

Columns = dict[str, np.ndarray]
Window = tuple[float, float]
"""The first and the last moment, in seconds since 1970."""


@dataclass(frozen=True)
class VersionReport:
    """The requests and the feedback of one version within the window.

    A field is None if there is nothing to compute it from.
    """

    version: int
    requests: int
    share: float
    """Share of all requests, in [0, 1]."""
    median_ms: float | None
    p95_ms: float | None
    confidence: float | None
    """Mean probability of the predicted label."""
    in_distribution: float | None
    """Share of the images that are in distribution; None for a version without an out-of-distribution score."""
    compared: int
    """Requests that the version answered as shadow traffic."""
    disagreement: float | None
    """Share of the shadow answers with another label than the answer that was served."""
    distance: float | None
    """Mean total variation distance between the scores of the two answers, in [0, 1]."""
    feedback: int
    users: int
    """Users who sent feedback."""
    accuracy: float | None
    low: float | None
    high: float | None
    """Bounds of the 95 % Wilson interval; see `Accuracy.interval`."""
    design_effect: float


@dataclass(frozen=True)
class Look:
    """The estimated difference in accuracy at one moment of the test."""

    at: float
    """Time of the newest feedback that is included, in seconds since 1970."""
    feedback: int
    """Number of answers with feedback up to then."""
    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class AccuracyComparison:
    """The accuracy of the second version minus that of the first."""

    first: int
    second: int
    now: Look | None
    """None if a version has feedback by fewer than `MIN_USERS` users."""
    looks: list[Look]
    """Up to `_MAX_LOOKS` moments of the test, from the oldest to `now`."""
    effect: float
    needed: int
    """Answers with feedback, of both versions together, that detect a difference of `effect`; see `feedback_needed`."""


Verdict = Literal["no_records", "one_version", "few", "open", "better"]


@dataclass(frozen=True)
class ABReport:
    """The result of `python -m cifar ab report` and of the page's tab A/B."""

    model: str
    since_days: float
    cut: bool
    """True if the report read only the newest `MAX_ROWS` records of the window."""
    versions: list[VersionReport]
    comparison: AccuracyComparison | None
    verdict: Verdict
    better: int | None = None
    on_trial: bool = False
    """True if users are split between the compared versions now."""
    named: int = 0
    """Requests that named a version; they are in no other figure."""
    sources: int = 0
    """Addresses and signed-in callers that gave feedback."""
    largest_source: float | None = None
    """Share of all feedback that came from one of them, the largest, in [0, 1]; None without feedback."""
    left_out: int = 0
    """Answers with feedback that do not count, because they are of further users of one address; see `MAX_USERS_PER_SOURCE`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ab_report(
    engine: Engine,
    settings: Settings,
    *,
    versions: Sequence[int] = (),
    since_days: float | None = None,
    effect: float | None = None,
    max_rows: int = MAX_ROWS,
) -> ABReport:
    """Compare two versions by their recorded predictions and feedback.

    Args:
        engine: the records' database.
        settings: the model, the window, and the smallest difference of interest.
        versions: the version in use and the version on trial. Default: the two versions that share the traffic now, or the two
            with the most requests if no two versions share it.
        since_days: length of the window up to now, in days. Default: the setting `ab_window_days`.
        effect: the difference for which `needed` is computed; it does not change the test. Default: the setting `ab_effect_share`.
        max_rows: the largest number of predictions, and of answers with feedback, to read.

    Raises:
        BadParameter: one of `versions` has answered no request within the window.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    days = settings.ab_window_days if since_days is None else since_days
    now, model = time.time(), settings.model_name
    window = now - days * _DAY_SECONDS, now  # rows in the future come from a host whose clock is wrong
    with engine.connect() as connection:
        answered = read_columns(connection, _answered_query(model, window), max_rows)
        given = read_columns(connection, _feedback_query(model, window, max_rows), max_rows)
        shadows = {row.shadow_version: row for row in connection.execute(_shadow_query(model, window))}
        named = connection.execute(_named_query(model, window)).scalar_one()
    counted = _of_few_users_per_source(given)
    judged = _judged({name: column[counted] for name, column in given.items()})
    requests = Counter(answered["version"].tolist())
    numbers = sorted(requests.keys() | shadows.keys())
    accuracies = {number: _accuracy(judged, number) for number in numbers}
    rows = [_version_report(number, answered, shadows.get(number), accuracies[number]) for number in numbers]
    on_trial = _versions_on_trial(settings, requests)
    pair = _pair(versions or on_trial, requests)
    comparison = None
    if pair:
        effect = effect or settings.ab_effect_share
        comparison = _compare(*pair, judged, accuracies, requests, mixture=settings.ab_effect_share, effect=effect)
    return ABReport(
        model,
        days,
        len(answered["version"]) == max_rows,
        rows,
        comparison,
        *_verdict(requests, comparison),
        on_trial=pair == tuple(on_trial),
        named=named,
        sources=len(np.unique(given["source"])),
        largest_source=_largest_share(given["source"]),
        left_out=int((~counted).sum()),
    )


def _answered_query(model: str, window: Window) -> Select[Any]:
    table = predictions.c
    query = select(table.version, table.seconds, table.score, table.in_distribution)
    query = query.where(table.model == model, table.at.between(*window), table.named.is_not(True))
    return query.order_by(table.at.desc())


def _named_query(model: str, window: Window) -> Select[Any]:
    table = predictions.c
    query = select(func.count()).select_from(predictions)
    return query.where(table.model == model, table.at.between(*window), table.named.is_(True))


def _feedback_query(model: str, window: Window, limit: int) -> Select[Any]:
    """Select the newest feedback, and then the predictions that it is about. As a plain join, SQLite would sort all predictions."""
    since, until = window
    given = feedback.c.at
    # + 0.0: if an index served both bounds, SQLite would begin with all predictions in the window
    newest = select(feedback).where(given >= since, given + 0.0 <= until).order_by(given.desc()).limit(limit).subquery()
    table = predictions.c
    query = select(
        table.version,
        table.user,
        func.coalesce(table.source, table.user).label("source"),
        table.label,
        table.in_distribution,
        newest.c.label.label("truth"),
        newest.c.at,
    )
    query = query.join_from(newest, predictions, newest.c.request_id == table.request_id)
    query = query.where(table.model == model, table.at >= since, table.at + 0.0 <= until, table.named.is_not(True))
    return query.order_by(newest.c.at.desc())


def _shadow_query(model: str, window: Window) -> Select[Any]:
    """Select one row for each version that answered shadow traffic."""
    table = comparisons.c
    counted = [func.count().label("compared"), func.count().filter(~table.agrees).label("differs")]
    query = select(table.shadow_version, *counted, func.avg(table.distance).label("distance"))
    return query.where(table.model == model, table.at.between(*window)).group_by(table.shadow_version)


def _of_versions(columns: Columns, *numbers: int) -> Columns:
    chosen = np.isin(columns["version"], numbers)
    return {name: column[chosen] for name, column in columns.items()}


def _of_few_users_per_source(rows: Columns) -> np.ndarray:
    """Return which rows are of the first `MAX_USERS_PER_SOURCE` users of their address. The rows must be in order of time."""
    users_of: dict[str, set[str]] = {}
    counted = np.zeros(len(rows["user"]), bool)
    for at, (source, user) in enumerate(zip(rows["source"].tolist(), rows["user"].tolist(), strict=True)):
        users = users_of.setdefault(source, set())
        if len(users) < MAX_USERS_PER_SOURCE:
            users.add(user)
        counted[at] = user in users
    return counted


def _largest_share(sources: np.ndarray) -> float | None:
    return float(np.unique(sources, return_counts=True)[1].max() / len(sources)) if len(sources) else None


def _judged(rows: Columns) -> Columns:
    """Replace the labels by whether they are right, and the names of the users by numbers.

    An answer is right if its label is the true one. An answer that was marked as out of distribution is also right if the true
    label is "none of the classes".
    """
    none = (rows["truth"] == NONE_LABEL) & (rows["in_distribution"] == False)  # noqa: E712 - compares an array
    right = np.asarray((rows["truth"] == rows["label"]) | none, bool)
    users = np.unique(rows["user"], return_inverse=True)[1]
    return {"version": rows["version"], "at": rows["at"], "user": users, "right": right}


def _accuracy(judged: Columns, number: int) -> Accuracy:
    chosen = judged["version"] == number
    return Accuracy.of(judged["user"][chosen], judged["right"][chosen])


def _version_report(number: int, answered: Columns, shadow: Any, accuracy: Accuracy) -> VersionReport:
    rows = _of_versions(answered, number)
    count = len(rows["version"])
    median, p95 = np.quantile(rows["seconds"] * 1000, (0.5, 0.95)).tolist() if count else (None, None)
    in_distribution = [value for value in rows["in_distribution"].tolist() if value is not None]
    low, high = accuracy.interval() if accuracy.feedback else (None, None)
    return VersionReport(
        version=number,
        requests=count,
        share=count / max(1, len(answered["version"])),
        median_ms=median,
        p95_ms=p95,
        confidence=float(rows["score"].mean()) if count else None,
        in_distribution=float(np.mean(in_distribution)) if in_distribution else None,
        compared=shadow.compared if shadow else 0,
        disagreement=shadow.differs / shadow.compared if shadow else None,
        distance=float(shadow.distance) if shadow else None,
        feedback=accuracy.feedback,
        users=accuracy.users,
        accuracy=accuracy.share if accuracy.feedback else None,
        low=low,
        high=high,
        design_effect=accuracy.design_effect,
    )


def _versions_on_trial(settings: Settings, requests: dict[int, int]) -> list[int]:
    """Return the stable version and the other version that receives traffic, if both have answered requests; else an empty list."""
    try:
        rollout = RolloutLog.of(settings).current()
    except CifarError:  # the report does not depend on the versions that are served now
        return []
    served = [rollout.stable, *(rollout.labels[label] for label in rollout.traffic)]  # without shadow versions
    answering = [number for number in dict.fromkeys(served) if number in requests]
    return answering[:2] if len(answering) > 1 else []


def _pair(versions: Sequence[int], requests: dict[int, int]) -> tuple[int, int] | None:
    if not requests:
        return None
    for number in versions:
        if number not in requests:
            known = ", ".join(map(str, sorted(requests)))
            raise BadParameter(f"Version {number} has answered no request in this period. Versions that have: {known}.")
    pair = versions or sorted(requests, key=lambda number: (-requests[number], number))[:2]
    return (pair[0], pair[1]) if len(pair) == 2 else None


def _compare(
    first: int,
    second: int,
    judged: Columns,
    accuracies: dict[int, Accuracy],
    requests: dict[int, int],
    *,
    mixture: float,
    effect: float,
) -> AccuracyComparison:
    rows = _of_versions(judged, first, second)
    looks = []
    for end in np.unique(np.linspace(0, len(rows["at"]), _MAX_LOOKS + 1).astype(int)[1:]):
        until = {name: column[:end] for name, column in rows.items()}
        estimate = difference(_accuracy(until, first), _accuracy(until, second), mixture=mixture)
        if estimate:
            looks.append(Look(float(until["at"][-1]), int(end), *estimate))
    pair = accuracies[first], accuracies[second]
    counts = [each.feedback for each in pair]
    if not all(counts):
        counts = [requests[first], requests[second]]
    needed = feedback_needed(*pair, effect=effect, mixture=mixture, share=counts[1] / sum(counts))
    return AccuracyComparison(first, second, looks[-1] if looks else None, looks, effect, needed)


def _verdict(requests: dict[int, int], comparison: AccuracyComparison | None) -> tuple[Verdict, int | None]:
    if not requests:
        return "no_records", None
    if comparison is None:
        return "one_version", None
    if comparison.now is None:
        return "few", None
    if comparison.now.low <= 0 <= comparison.now.high:
        return "open", None
    return "better", comparison.second if comparison.now.value > 0 else comparison.first
