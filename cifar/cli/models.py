"""What `python -m cifar models` does: versions, labels and traffic. Running servers follow within their poll."""

from __future__ import annotations

import argparse
import getpass
import socket

from cifar.console import print_json, print_table, say
from cifar.errors import BadParameter
from cifar.models.registry import Version
from cifar.models.rollout import STABLE, Rollout, RolloutLog
from cifar.settings import Settings


def listed(arguments: argparse.Namespace, settings: Settings) -> None:
    """List the versions, with their labels and traffic."""
    from cifar.models.inspection import list_versions

    log = RolloutLog.of(settings)
    rows, problems = list_versions(log.registry)
    routing = log.now() if rows else None
    for row in rows:
        labels = [label for label, number in routing.labels.items() if number == row["version"]] if routing else []
        row["labels"] = ",".join(labels)
        row["traffic"] = sum(routing.traffic.get(label, 0) for label in labels) if routing else 0
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), rows)
    else:
        say(f"There is no version of {settings.model_name} in {settings.registry}.")
    for problem in problems:
        say(problem)


def promote(arguments: argparse.Namespace, settings: Settings) -> None:
    """Make a version the stable one."""
    _done(
        RolloutLog.of(settings).promote(
            arguments.number, by=_who(), check_loadable=lambda version: _load(version, settings)
        ),
        settings,
    )


def rollback(_: argparse.Namespace, settings: Settings) -> None:
    """Take the last promotion back."""
    _done(
        RolloutLog.of(settings).rollback(by=_who(), check_loadable=lambda version: _load(version, settings)), settings
    )


def label(arguments: argparse.Namespace, settings: Settings) -> None:
    """Give a version another name, or take one away."""
    name, number = (arguments.remove, None) if arguments.remove else arguments.label
    _done(RolloutLog.of(settings).label(name, number, by=_who()), settings)


def traffic(arguments: argparse.Namespace, settings: Settings) -> None:
    """Share out the users between labels."""
    shares, shadow = _once(arguments.traffic), _once(arguments.shadow)
    _done(RolloutLog.of(settings).split(shares, shadow=shadow, by=_who()), settings)


def changes(arguments: argparse.Namespace, settings: Settings) -> None:
    """Show who changed what."""
    rows = [change.model_dump() for change in RolloutLog.of(settings).changes()]
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(["revision", "at", "by", "action"], rows)
    else:
        say("Nothing has been changed yet: the highest version is the stable one.")


def _load(version: Version, settings: Settings) -> None:
    from cifar.models.engines import engine_of
    from cifar.models.predictor import Predictor

    Predictor.load(version, engine_of(settings))


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _once(pairs: list[tuple[str, int]]) -> dict[str, int]:
    shares = dict(pairs)
    if len(shares) < len(pairs):
        raise BadParameter(f"A label comes once; got {', '.join(name for name, _ in pairs)}.")
    return shares


def _done(routing: Rollout, settings: Settings) -> None:
    """What counts now, as data, and in words."""
    shares = " ".join(f"{name}={percent} (version {routing.labels[name]})" for name, percent in routing.traffic.items())
    print(shares)
    for name, number in routing.labels.items():
        if number == routing.stable and name != STABLE:
            say(
                f"{name} is the stable version too, so it tries nothing. To have an older one be stable meanwhile: models promote N"
            )
    say(
        f"Revision {routing.revision}; running servers follow within {settings.registry_poll_seconds:g} s of loading it."
    )
