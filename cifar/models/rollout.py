"""The rollout of a model's versions: labels, traffic split and shadow traffic, stored in the registry's folder.

    saved_model/<name>/.routing/<revision>.json    one file for each change; the file with the highest number is in force

A change creates the file with the next number in one step (compare-and-swap without a lock server). Readers see the old state
or the new one, a crash leaves no half-made change, and one of two changes made at the same time is refused. The files are also
the log: author, time and command of each change. Without any file, `stable` is the highest complete version and gets all
traffic. TensorFlow Serving ignores the folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from cifar.files import create_once
from cifar.models.registry import Registry, Version
from cifar.settings import Settings

STABLE = "stable"
"""The label that always exists. Its version answers every user whom the traffic split sends to no other label."""
FOLDER = ".routing"

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_CHANGE = re.compile(r"[1-9][0-9]*\.json")

CheckLoadable = Callable[[Version], object]
"""Loads a version, and raises `VersionUnusable` when that fails."""


class Rollout(BaseModel):
    """Labels, traffic and shadow traffic after one change, and who made that change."""

    model_config = ConfigDict(frozen=True)

    revision: int = Field(ge=0, description="Number of the change; 0 before the first one.")
    at: str = Field("", description="Time of the change: UTC, ISO 8601.")
    by: str = Field("", description="Author of the change.")
    action: str = Field("", description="The command that made the change.")
    labels: dict[str, int] = Field(description="Version by label; `stable` always exists.")
    traffic: dict[str, int] = Field(description="Percentage of the users by label; the sum is 100.")
    shadow: dict[str, int] = Field(
        {}, description="Percentage of the requests, by label, that the label's version also answers in the background."
    )
    history: list[int] = Field([], description="Earlier stable versions, the latest one last.")

    @model_validator(mode="after")
    def _check_labels_and_percentages(self) -> Self:
        if not {STABLE, *self.traffic, *self.shadow} <= self.labels.keys():
            raise ValueError("stable, and each label in traffic or shadow, must be in labels")
        if sum(self.traffic.values()) != 100 or min((*self.traffic.values(), *self.shadow.values())) < 0:
            raise ValueError("traffic must add to 100 percent, and no share be less than 0")
        return self

    @property
    def stable(self) -> int:
        """The version for users who are assigned to no other label."""
        return self.labels[STABLE]

    @property
    def live(self) -> list[int]:
        """The versions that get traffic or shadow traffic, the stable one first."""
        return list(dict.fromkeys(self.labels[label] for label in (STABLE, *self.traffic, *self.shadow)))


class RolloutLog:
    """Reads and changes the rollout of one model.

    The methods that change it raise:
        RolloutChanged: another change was made at the same time.
        RegistryReadOnly: the registry's folder cannot be written.
    """

    def __init__(self, registry: Registry, *, pinned: int | None = None) -> None:
        """Open the log of one model. A `pinned` stable version takes precedence over it (the setting `model_version`)."""
        self.registry = registry
        self.pinned = pinned
        self.folder = registry.base / FOLDER

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the log of the model that the settings name."""
        return cls(Registry(settings.registry, settings.model_name), pinned=settings.model_version)

    def stable_version(self) -> Version:
        """Return the version that is stable now.

        Raises:
            VersionNotFound, VersionUnusable: see `current` and `Registry.get`.
        """
        number = self.current().stable
        try:
            return self.registry.get(number)
        except VersionNotFound as error:
            if self.pinned or not self._revisions():
                raise
            raise VersionNotFound(
                f"{error} Version {number} is the stable one; promote another: python -m cifar models promote N"
            ) from None

    def current(self) -> Rollout:
        """Return the rollout in force.

        Raises:
            VersionNotFound: the model has no version at all.
            VersionUnusable: the file of the last change is damaged.
        """
        if self.pinned and not self._revisions():
            return Rollout(revision=0, labels={STABLE: self.pinned}, traffic={STABLE: 100})
        last = self._last()
        return last.model_copy(update={"labels": {**last.labels, STABLE: self.pinned}}) if self.pinned else last

    def changes(self) -> list[Rollout]:
        """Return every change, the oldest first."""
        return [self._read(revision) for revision in self._revisions()]

    def promote(self, number: int, *, by: str, check_loadable: CheckLoadable) -> Rollout:
        """Make a version the stable one and give it all traffic. Its other labels are removed.

        Raises:
            VersionNotFound, VersionUnusable: there is no such version, or it cannot be loaded; nothing is changed.
            BadParameter: the stable version is pinned.
        """
        last = self._last_unless_pinned()
        check_loadable(self.registry.get(number))
        history = last.history if number == last.stable else [*last.history, last.stable]
        return self._make_stable(last, number, history, by=by, action=f"promote {number}")

    def rollback(self, *, by: str, check_loadable: CheckLoadable) -> Rollout:
        """Undo the last promotion that was not undone yet: the version before it becomes stable again.

        Raises:
            NothingToRollBack: no promotion is left to undo.
            VersionNotFound, VersionUnusable: that version was deleted, or cannot be loaded; nothing is changed.
            BadParameter: the stable version is pinned.
        """
        last = self._last_unless_pinned()
        if not last.history:
            raise NothingToRollBack(
                f"Version {last.stable} was not promoted over another one, so there is none to go back to. "
                "Any version can be promoted: python -m cifar models promote N"
            )
        *history, number = last.history
        check_loadable(self.registry.get(number))
        return self._make_stable(last, number, history, by=by, action=f"rollback to {number}")

    def label(self, name: str, number: int | None, *, by: str) -> Rollout:
        """Set the label `name` to version `number`, or remove it if `number` is None.

        Raises:
            BadParameter: the name is not a valid label, is `stable` (use `promote`), or is to be removed but has traffic.
            LabelNotFound: the label to remove does not exist.
            VersionNotFound, VersionUnusable: there is no such version, or its files differ from the exported ones.
        """
        last = self._last()
        if not _LABEL.fullmatch(name):
            raise BadParameter(
                f"A label has small letters, digits, - and _, and begins with a letter; got {name[:40]!r}."
            )
        if name == STABLE:
            raise BadParameter("The label stable is set by promote, so that rollback can undo it.")
        if number is None:
            _check_label(last, name)
            if name in last.traffic or name in last.shadow:
                raise BadParameter(f"The label {name} has traffic; give it to others first: traffic stable=100.")
            labels = {label: version for label, version in last.labels.items() if label != name}
            return self._write(last, by=by, action=f"label --remove {name}", labels=labels)
        self.registry.get(number).verify()
        return self._write(last, by=by, action=f"label {name}={number}", labels={**last.labels, name: number})

    def split(self, traffic: Mapping[str, int], *, by: str, shadow: Mapping[str, int] | None = None) -> Rollout:
        """Split the traffic between labels, by percentage of the users, and set the shadow traffic, by percentage of the requests.

        Labels that are not listed get none.

        Raises:
            BadParameter: the percentages do not add to 100, or one is out of range.
            LabelNotFound: a label does not exist.
        """
        last, shadow = self._last(), shadow or {}
        for label, percent in (*traffic.items(), *shadow.items()):
            _check_label(last, label)
            if not 0 <= percent <= 100:
                raise BadParameter(f"{label} must be from 0 to 100 percent; got {percent}.")
        if sum(traffic.values()) != 100:
            raise BadParameter(f"Traffic must add to 100 percent; {_as_text(traffic)} is {sum(traffic.values())}.")
        if STABLE in shadow:
            raise BadParameter(
                "Shadows are compared with the stable version; give the shadow traffic to another label."
            )
        action = f"traffic {_as_text(traffic)}" + (f" --shadow {_as_text(shadow)}" if shadow else "")
        return self._write(last, by=by, action=action, traffic=_without_zeros(traffic), shadow=_without_zeros(shadow))

    def _last(self) -> Rollout:
        """Return the last change, or the default before the first one. `pinned` is ignored."""
        if revisions := self._revisions():
            return self._read(revisions[-1])
        return Rollout(revision=0, labels={STABLE: self.registry.get().number}, traffic={STABLE: 100})

    def _last_unless_pinned(self) -> Rollout:
        if self.pinned:
            raise BadParameter(
                f"The setting CIFAR_MODEL_VERSION pins version {self.pinned}, so no other version can be made stable. "
                "Remove the setting first."
            )
        return self._last()

    def _make_stable(self, last: Rollout, number: int, history: list[int], *, by: str, action: str) -> Rollout:
        labels = {STABLE: number} | {
            label: version for label, version in last.labels.items() if label != STABLE and version != number
        }
        shadow = {label: percent for label, percent in last.shadow.items() if label in labels}
        return self._write(
            last, by=by, action=action, labels=labels, traffic={STABLE: 100}, shadow=shadow, history=history
        )

    def _write(self, last: Rollout, *, by: str, action: str, **changes: object) -> Rollout:
        """Write the change that follows `last`."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        update = {**changes, "revision": last.revision + 1, "at": stamp, "by": by, "action": action}
        change = Rollout.model_validate({**last.model_dump(), **update})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                create_once(self._file(change.revision), (change.model_dump_json(indent=2) + "\n").encode())
            except FileExistsError:
                raise RolloutChanged(
                    f"The rollout of {self.registry.name} was changed at the same time "
                    f"({self._read(change.revision).action}). Look at the new state, and try again."
                ) from None
        except OSError as error:
            raise RegistryReadOnly(
                f"The rollout cannot be changed here: {self.registry.name}/{FOLDER} cannot be written ({error.strerror}). "
                "Make the change on a machine that can write the registry's folder."
            ) from error
        return change

    def _revisions(self) -> list[int]:
        if not self.registry.base.is_dir():
            return []
        with suppress(FileNotFoundError):
            return sorted(int(file.stem) for file in self.folder.iterdir() if _CHANGE.fullmatch(file.name))
        return []

    def _file(self, revision: int) -> Path:
        return self.folder / f"{revision}.json"

    def _read(self, revision: int) -> Rollout:
        file = self._file(revision)
        try:
            rollout = Rollout.model_validate_json(file.read_bytes())
        except (ValidationError, OSError) as error:
            raise self._unusable(file, type(error).__name__) from error
        if rollout.revision != revision:  # a copy of another change: the next change would get too low a number
            raise self._unusable(file, f"it is revision {rollout.revision}")
        return rollout

    def _unusable(self, file: Path, reason: str) -> VersionUnusable:
        return VersionUnusable(
            f"{self.registry.name}/{FOLDER}/{file.name} is not a usable rollout ({reason}). "
            "Remove it to return to the change before it."
        )


class Split:
    """Assigns users to versions. The same user gets the same version each time, on every host that has the same key."""

    def __init__(self, shares: Mapping[int, int], key: bytes) -> None:
        """Divide the users.

        Args:
            shares: percentage by version. As long as the order stays the same, a share that grows keeps its users.
            key: a secret, so that a client cannot make up a user name that gets a certain version.
        """
        self._bounds: list[tuple[float, int]] = []
        bound = 0
        for number, percent in shares.items():
            bound += percent
            self._bounds.append((bound / 100 * 2**64, number))
        self._key = key

    def __call__(self, user: str) -> int | None:
        """Return the version for a user, or None when the shares are less than 100 % and leave the user out."""
        if len(self._bounds) == 1 and self._bounds[0][0] == 2**64:
            return self._bounds[0][1]
        digest = hashlib.blake2b(user.encode(), digest_size=8, key=self._key).digest()
        position = int.from_bytes(digest)
        return next((number for bound, number in self._bounds if position < bound), None)


def traffic_split(rollout: Rollout, key: bytes) -> Split:
    """Return the split of the users. The stable version comes first, so that a canary whose share grows keeps its users."""
    order = sorted(rollout.traffic, key=lambda label: (label != STABLE, label))
    shares: dict[int, int] = {}
    for label in order:
        number = rollout.labels[label]
        shares[number] = shares.get(number, 0) + rollout.traffic[label]
    return Split(shares, key)


def shadow_split(rollout: Rollout, key: bytes) -> dict[int, Split]:
    """Return the split of the requests for each version with shadow traffic.

    When several labels of one version have shadow traffic, the largest percentage counts.
    """
    shares: dict[int, int] = {}
    for label, share in rollout.shadow.items():
        number = rollout.labels[label]
        shares[number] = max(share, shares.get(number, 0))
    return {number: Split({number: share}, key) for number, share in shares.items()}


def _check_label(rollout: Rollout, label: str) -> None:
    if label not in rollout.labels:
        raise LabelNotFound(f"There is no label {label[:40]!r}; there are: {', '.join(rollout.labels)}.")


def _without_zeros(shares: Mapping[str, int]) -> dict[str, int]:
    return {label: percent for label, percent in shares.items() if percent}


def _as_text(shares: Mapping[str, int]) -> str:
    return " ".join(f"{label}={percent}" for label, percent in shares.items())
