"""Which version answers to which name, and whom: labels, traffic and shadow, kept in the registry's folder.

    saved_model/<name>/.routing/<revision>.json    one file for each change, never written twice; the highest one counts

A change is a whole file that gets its name in one step, and no two files can get the same one. So readers see the old state or the
new, of two changes at once one is refused, and a crash leaves nothing half done. Together the files say who changed what, and when.
Without any, `stable` is the highest complete version and answers everybody. TensorFlow Serving passes over the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cifar.errors import (
    BadParameter,
    LabelNotFound,
    NothingToRollBack,
    RegistryReadOnly,
    RolloutChanged,
    VersionNotFound,
    VersionUnusable,
)
from cifar.models.registry import Registry, Version
from cifar.settings import Settings

STABLE = "stable"
"""The label that always is there: it answers who is sent nowhere else."""
FOLDER = ".routing"

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_CHANGE = re.compile(r"[1-9][0-9]*\.json")
_WHOLE = 100

CheckLoadable = Callable[[Version], object]
"""Loads a version, or raises why it cannot be."""


class Rollout(BaseModel):
    """The state after one change, and the change."""

    model_config = ConfigDict(frozen=True)

    revision: int = Field(ge=0, description="Counts up; 0 before the first change.")
    at: str = Field("", description="UTC, ISO 8601.")
    by: str = Field("", description="Who made the change.")
    action: str = Field("", description="What they asked for.")
    labels: dict[str, int] = Field(description="Versions by label; `stable` is always there.")
    traffic: dict[str, int] = Field(description="Percent of the users by label; they add to 100.")
    shadow: dict[str, int] = Field(
        {}, description="Percent of the requests that a label answers in the background too."
    )
    history: list[int] = Field([], description="The versions that were stable before, the last one last.")

    @model_validator(mode="after")
    def _refuse_what_contradicts_itself(self) -> Self:
        if not {STABLE, *self.traffic, *self.shadow} <= self.labels.keys():
            raise ValueError("stable, and each label in traffic or shadow, must be in labels")
        if sum(self.traffic.values()) != _WHOLE or min((*self.traffic.values(), *self.shadow.values())) < 0:
            raise ValueError("traffic must add to 100 percent, and no share be less than 0")
        return self

    @property
    def stable(self) -> int:
        """The version that is sent who is sent nowhere else."""
        return self.labels[STABLE]

    @property
    def live(self) -> list[int]:
        """The versions that answer somebody, the stable one first; shadows too."""
        return list(dict.fromkeys(self.labels[label] for label in (STABLE, *self.traffic, *self.shadow)))


class RolloutLog:
    """The routing of one model: reads it, and changes it."""

    def __init__(self, registry: Registry, *, pinned: int | None = None) -> None:
        """Look after the routing of `registry`.

        Args:
            registry: whose versions there are.
            pinned: a version that is stable whatever the files say (the setting `model_version`).
        """
        self.registry = registry
        self.pinned = pinned
        self.folder = registry.base / FOLDER

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The routing of the model that the settings name."""
        return cls(Registry(settings.registry, settings.model_name), pinned=settings.model_version)

    def stable_version(self) -> Version:
        """The version that answers who is sent nowhere else.

        Raises:
            VersionNotFound, VersionUnusable: see `now` and `Registry.get`.
        """
        number = self.now().stable
        try:
            return self.registry.get(number)
        except VersionNotFound as error:
            if self.pinned or not self._revisions():
                raise
            raise VersionNotFound(
                f"{error} It was made stable; make another one that: python -m cifar models promote N"
            ) from None

    def now(self) -> Rollout:
        """What counts now.

        Raises:
            VersionNotFound: there is no version at all.
            VersionUnusable: the last change's file is damaged.
        """
        if self.pinned and not self._revisions():
            return Rollout(revision=0, labels={STABLE: self.pinned}, traffic={STABLE: _WHOLE})
        written = self._written()
        return (
            written.model_copy(update={"labels": {**written.labels, STABLE: self.pinned}}) if self.pinned else written
        )

    def changes(self) -> list[Rollout]:
        """Every change, the first one first."""
        return [self._read(revision) for revision in self._revisions()]

    def promote(self, number: int, *, by: str, check_loadable: CheckLoadable) -> Rollout:
        """Make a version the stable one, for everybody. It gives up its other labels, and the way back is remembered.

        Raises:
            VersionNotFound, VersionUnusable: there is no such version, or it cannot be loaded; nothing is changed.
            BadParameter: the stable version is pinned.
            RolloutChanged, RegistryReadOnly: see `_write`.
        """
        now = self._unpinned()
        check_loadable(self.registry.get(number))
        history = now.history if number == now.stable else [*now.history, now.stable]
        return self._make_stable(now, number, history, by=by, action=f"promote {number}")

    def rollback(self, *, by: str, check_loadable: CheckLoadable) -> Rollout:
        """Make the version stable again that was before the last promotion.

        Raises:
            NothingToRollBack: no promotion is left to take back.
            VersionNotFound, VersionUnusable: that version is gone, or cannot be loaded; nothing is changed.
            BadParameter: the stable version is pinned.
            RolloutChanged, RegistryReadOnly: see `_write`.
        """
        now = self._unpinned()
        if not now.history:
            raise NothingToRollBack(
                f"Version {now.stable} was not promoted over another one, so there is none to go back to. "
                "Any version can be promoted: python -m cifar models promote N"
            )
        *history, number = now.history
        check_loadable(self.registry.get(number))
        return self._make_stable(now, number, history, by=by, action=f"rollback to {number}")

    def label(self, name: str, number: int | None, *, by: str) -> Rollout:
        """Give a version another name, or with None take the name away.

        Raises:
            BadParameter: no label has such a name, or it is `stable`, which `promote` sets.
            LabelNotFound: what should be taken away is not there.
            VersionNotFound, VersionUnusable: there is no such version, or its files are not what was exported.
            RolloutChanged, RegistryReadOnly: see `_write`.
        """
        now = self._written()
        if not _LABEL.fullmatch(name):
            raise BadParameter(
                f"A label has small letters, digits, - and _, and begins with a letter; got {name[:40]!r}."
            )
        if name == STABLE:
            raise BadParameter("The label stable is set by promote, which remembers the way back.")
        if number is None:
            _known(now, name)
            if name in now.traffic or name in now.shadow:
                raise BadParameter(f"The label {name} has traffic; give it to others first: traffic stable=100.")
            labels = {label: version for label, version in now.labels.items() if label != name}
            return self._write(now, by=by, action=f"label --remove {name}", labels=labels)
        self.registry.get(number).verify()
        return self._write(now, by=by, action=f"label {name}={number}", labels={**now.labels, name: number})

    def split(self, traffic: Mapping[str, int], *, by: str, shadow: Mapping[str, int] | None = None) -> Rollout:
        """Say how many percent of the users each label answers, and how many requests shadows answer too.

        Args:
            traffic: percent by label; labels that are not named get nobody.
            by: who says so.
            shadow: percent by label; none by default.

        Raises:
            BadParameter: the percentages do not add to 100, or one is out of range.
            LabelNotFound: there is no such label.
            RolloutChanged, RegistryReadOnly: see `_write`.
        """
        now, shadow = self._written(), shadow or {}
        for label, percent in (*traffic.items(), *shadow.items()):
            _known(now, label)
            if not 0 <= percent <= _WHOLE:
                raise BadParameter(f"{label} must be from 0 to 100 percent; got {percent}.")
        if sum(traffic.values()) != _WHOLE:
            raise BadParameter(f"Traffic must add to 100 percent; {_listed(traffic)} is {sum(traffic.values())}.")
        if STABLE in shadow:
            raise BadParameter("The stable version is what shadows are compared with; give a shadow to another label.")
        action = f"traffic {_listed(traffic)}" + (f" --shadow {_listed(shadow)}" if shadow else "")
        return self._write(now, by=by, action=action, traffic=_some(traffic), shadow=_some(shadow))

    def _written(self) -> Rollout:
        """The last change; before the first one, what counts without any."""
        if revisions := self._revisions():
            return self._read(revisions[-1])
        return Rollout(revision=0, labels={STABLE: self.registry.get().number}, traffic={STABLE: _WHOLE})

    def _unpinned(self) -> Rollout:
        """The same, for who wants to change the stable version."""
        if self.pinned:
            raise BadParameter(
                f"Version {self.pinned} is pinned by CIFAR_MODEL_VERSION, so no other one can be made stable. "
                "Take that setting away first."
            )
        return self._written()

    def _make_stable(self, now: Rollout, number: int, history: list[int], *, by: str, action: str) -> Rollout:
        labels = {STABLE: number} | {
            label: version for label, version in now.labels.items() if label != STABLE and version != number
        }
        shadow = {label: percent for label, percent in now.shadow.items() if label in labels}
        return self._write(
            now, by=by, action=action, labels=labels, traffic={STABLE: _WHOLE}, shadow=shadow, history=history
        )

    def _write(self, now: Rollout, *, by: str, action: str, **changes: object) -> Rollout:
        """Make the change that comes after `now`.

        Raises:
            RolloutChanged: another change came first.
            RegistryReadOnly: the folder cannot be written.
        """
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        update = {**changes, "revision": now.revision + 1, "at": stamp, "by": by, "action": action}
        after = Rollout.model_validate({**now.model_dump(), **update})
        target = self.folder / f"{after.revision}.json"
        with _writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _whole_file(self.folder, after.model_dump_json(indent=2) + "\n") as temporary:
                try:
                    os.link(temporary, target)  # fails where the name is taken; a rename would replace it
                except FileExistsError:
                    raise RolloutChanged(
                        f"Somebody else changed the routing of {self.registry.name} at the same time "
                        f"({self._read(after.revision).action}). Look at it, and try again."
                    ) from None
            _sync(self.folder)
        return after

    def _revisions(self) -> list[int]:
        with suppress(FileNotFoundError):
            return sorted(int(file.stem) for file in self.folder.iterdir() if _CHANGE.fullmatch(file.name))
        return []

    def _read(self, revision: int) -> Rollout:
        file = self.folder / f"{revision}.json"
        try:
            routing = Rollout.model_validate_json(file.read_bytes())
        except (ValidationError, OSError) as error:
            raise self._unusable(file, type(error).__name__) from error
        if routing.revision != revision:  # a copy: the next change would come before it, and never count
            raise self._unusable(file, f"it is revision {routing.revision}")
        return routing

    def _unusable(self, file: Path, why: str) -> VersionUnusable:
        return VersionUnusable(
            f"{self.registry.name}/{FOLDER}/{file.name} is no usable routing ({why}). "
            "Remove it to go back to the change before it."
        )


class Split:
    """Which version answers a user: the same one each time, on every host that has the same key."""

    def __init__(self, shares: Mapping[int, int], key: bytes) -> None:
        """Share out users.

        Args:
            shares: percent by version, in an order that stays: a share that grows keeps the users it had.
            key: nobody who does not know it can choose where they belong.
        """
        self._bounds: list[tuple[float, int]] = []
        bound = 0
        for number, percent in shares.items():
            bound += percent
            self._bounds.append((bound / _WHOLE * 2**64, number))
        self._key = key

    def __call__(self, user: str) -> int | None:
        """The version for a user; None where the shares leave them out."""
        if len(self._bounds) == 1 and self._bounds[0][0] == 2**64:
            return self._bounds[0][1]
        digest = hashlib.blake2b(user.encode(), digest_size=8, key=self._key).digest()
        place = int.from_bytes(digest)
        return next((number for bound, number in self._bounds if place < bound), None)


def traffic_split(routing: Rollout, key: bytes) -> Split:
    """The users' split. The stable version's share begins at zero, so that those of the others grow downwards."""
    order = sorted(routing.traffic, key=lambda label: (label != STABLE, label))
    shares: dict[int, int] = {}
    for label in order:
        number = routing.labels[label]
        shares[number] = shares.get(number, 0) + routing.traffic[label]
    return Split(shares, key)


def shadow_split(routing: Rollout, key: bytes) -> dict[int, Split]:
    """For each version that answers in the background, which requests; of several labels the largest share holds those of the others."""
    shares: dict[int, int] = {}
    for label, share in routing.shadow.items():
        number = routing.labels[label]
        shares[number] = max(share, shares.get(number, 0))
    return {number: Split({number: share}, key) for number, share in shares.items()}


def _known(routing: Rollout, label: str) -> None:
    if label not in routing.labels:
        raise LabelNotFound(f"There is no label {label[:40]!r}; there are: {', '.join(routing.labels)}.")


def _some(shares: Mapping[str, int]) -> dict[str, int]:
    return {label: percent for label, percent in shares.items() if percent}


def _listed(shares: Mapping[str, int]) -> str:
    return " ".join(f"{label}={percent}" for label, percent in shares.items())


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RegistryReadOnly(
            f"The routing cannot be changed here: {folder.parent.name}/{FOLDER} cannot be written ({error.strerror}). "
            "Make the change where the registry's folder is writable."
        ) from error


@contextmanager
def _whole_file(folder: Path, content: str) -> Iterator[Path]:
    """A file under a name that nobody reads, whole and on disk; gone afterwards."""
    temporary = folder / f".{secrets.token_hex(8)}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """A name is kept through a loss of power only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
