"""What `python -m cifar models` does: versions, labels and traffic. Running servers follow within their poll."""

from __future__ import annotations

import argparse
import getpass
import json
import socket
import sys
from typing import Any

from cifar.errors import BadParameter
from cifar.registry import Registry, Version
from cifar.routing import Routing, RoutingLog
from cifar.settings import Settings


def stable_version(settings: Settings) -> Version:
    """The version that answers who is sent nowhere else."""
    log = _log(settings)
    return log.registry.get(log.now().stable)


def listed(arguments: argparse.Namespace, settings: Settings) -> None:
    """List the versions, with their labels and traffic."""
    from cifar.inspection import list_versions

    log = _log(settings)
    rows, problems = list_versions(log.registry)
    routing = log.now() if rows else None
    for row in rows:
        labels = [label for label, number in routing.labels.items() if number == row["version"]] if routing else []
        row["labels"] = ",".join(labels)
        row["traffic"] = sum(routing.traffic.get(label, 0) for label in labels) if routing else 0
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        _table(rows)
    else:
        _say(f"There is no version of {settings.model_name} in {settings.registry}.")
    for problem in problems:
        _say(problem)


def promote(arguments: argparse.Namespace, settings: Settings) -> None:
    """Make a version the stable one."""
    _done(_log(settings).promote(arguments.number, by=_who(), prove=lambda version: _load(version, settings)), settings)


def rollback(_: argparse.Namespace, settings: Settings) -> None:
    """Take the last promotion back."""
    _done(_log(settings).rollback(by=_who(), prove=lambda version: _load(version, settings)), settings)


def label(arguments: argparse.Namespace, settings: Settings) -> None:
    """Give a version another name, or take one away."""
    name, number = (arguments.remove, None) if arguments.remove else arguments.label
    _done(_log(settings).label(name, number, by=_who()), settings)


def traffic(arguments: argparse.Namespace, settings: Settings) -> None:
    """Share out the users between labels."""
    shares, shadow = _once(arguments.traffic), _once(arguments.shadow)
    _done(_log(settings).split(shares, shadow=shadow, by=_who()), settings)


def changes(arguments: argparse.Namespace, settings: Settings) -> None:
    """Show who changed what."""
    rows = [change.model_dump() for change in _log(settings).changes()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        _table([{name: row[name] for name in ("revision", "at", "by", "action")} for row in rows])
    else:
        _say("Nothing has been changed yet: the highest version is the stable one.")


def _log(settings: Settings) -> RoutingLog:
    return RoutingLog(Registry(settings.registry, settings.model_name), pinned=settings.model_version)


def _load(version: Version, settings: Settings) -> None:
    from cifar.engines import engine_of
    from cifar.predictor import Predictor

    Predictor.load(version, engine_of(settings))


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _once(pairs: list[tuple[str, int]]) -> dict[str, int]:
    shares = dict(pairs)
    if len(shares) < len(pairs):
        raise BadParameter(f"A label comes once; got {', '.join(name for name, _ in pairs)}.")
    return shares


def _done(routing: Routing, settings: Settings) -> None:
    """What counts now, as data, and in words."""
    shares = " ".join(f"{name}={percent} (version {routing.labels[name]})" for name, percent in routing.traffic.items())
    print(shares)
    _say(
        f"Revision {routing.revision}; running servers follow within {settings.registry_poll_seconds:g} s of loading it."
    )


def _table(rows: list[dict[str, Any]]) -> None:
    for row in (list(rows[0]), *(row.values() for row in rows)):
        print(*row, sep="\t")


def _say(words: str) -> None:
    print(f"cifar: {words}", file=sys.stderr)
