"""The registry: the folder of exported models, with their versions and checksums.

    saved_model/<name>/<n>/                a SavedModel; TensorFlow Serving can use <name>/ as its base path
    saved_model/<name>/<n>/manifest.json   written last: a folder without it is not a complete version

This module only reads files and needs no TensorFlow. A SavedModel can contain any code, so a version must be loaded only
after `Version.verify` has compared every file with the SHA-256 in the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from cifar.errors import BadParameter, VersionNotFound, VersionUnusable
from cifar.files import sha256
from cifar.models.manifest import Manifest

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""At most nine digits, so that a version fits the integer column of the records database."""
_EXPORT_AGAIN = "Restore the version, or remove its folder and export again."


@dataclass(frozen=True)
class Version:
    """One complete version on disk."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.manifest.name

    @property
    def number(self) -> int:
        return self.manifest.version

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            VersionUnusable: a file is missing, was changed, or is not listed. The message names it.
        """
        listed = self.manifest.files
        for relative, info in listed.items():
            file = self.path / relative
            if not file.is_file():
                raise VersionUnusable(f"{self._shown(relative)} is listed in {MANIFEST} but missing. {_EXPORT_AGAIN}")
            if sha256(file) != info.sha256:
                raise VersionUnusable(
                    f"{self._shown(relative)} is not the file that was exported: its SHA-256 differs. {_EXPORT_AGAIN}"
                )
        for file in model_files(self.path):
            relative = file.relative_to(self.path).as_posix()
            if relative not in listed:
                raise VersionUnusable(f"{self._shown(relative)} is not listed in {MANIFEST}. {_EXPORT_AGAIN}")

    def _shown(self, relative: str) -> str:
        """Return a file's path within the registry, for messages: HTTP clients must not learn the server's paths."""
        return f"{self.name}/{self.number}/{relative}"


class Registry:
    """The versions of one model. Every call looks at the disk, so new, changed and removed versions are noticed at once."""

    def __init__(self, root: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise BadParameter(
                f"A model's name is also a folder's name: letters, digits, '.', '-' and '_', the first a letter or digit; got {name!r}."
            )
        self.base = root / name
        self.name = name

    def numbers(self) -> list[int]:
        """Return the complete versions, ascending. A folder without a manifest is an export that did not finish.

        A copy of another version, or a link to one, is left out: it has no number of its own, so it is no newer version.
        """
        return sorted(
            int(path.name)
            for path in self._folders()
            if is_version_number(path.name) and (path / MANIFEST).is_file() and not self._is_copy(path)
        )

    def has(self, number: int) -> bool:
        """Return whether there is such a version, by its manifest alone."""
        path = self.base / str(number)
        return (path / MANIFEST).is_file() and not self._is_copy(path)

    def files_of(self, numbers: Sequence[int]) -> list[tuple[str, int, int]]:
        """Return path, size and time of the files of some versions. If it has not changed, loading them would have the same result."""
        files = [file for number in numbers for file in sorted((self.base / str(number)).rglob("*"))]
        return [(str(file), file.lstat().st_size, file.stat().st_mtime_ns) for file in files]

    def problems(self) -> dict[str, str]:
        """Return what is wrong with each folder that is not a usable version: folder name to message.

        Only the manifests are read, not the other files. Hidden folders, such as those of running exports, are skipped.
        """
        return {path.name: problem for path in self._folders() if (problem := self._problem(path))}

    def get(self, number: int | None = None) -> Version:
        """Return one version by number, or the highest complete one. Call `verify()` before you load it.

        Raises:
            VersionNotFound: there is no such version. The message lists the versions that exist.
            VersionUnusable: the folder exists but is not a complete version.
        """
        if number is None:
            numbers = self.numbers()
            if not numbers:
                missing = VersionNotFound(
                    f"No version of {self.name} in the registry (CIFAR_REGISTRY). Export one: `python -m cifar export runs/NAME --name {self.name}`."
                )
                missing.add_note(self._described())
                raise missing
            number = numbers[-1]
        path = self.base / str(number)
        file = path / MANIFEST
        if not is_version_number(str(number)) or not file.is_file():
            if path.is_dir():
                raise VersionUnusable(self._problem(path))
            existing = ", ".join(map(str, self.numbers())) or "none"
            raise VersionNotFound(f"{self.name} has no version {number}; there are: {existing}.")
        version = Version(path, _read_manifest(file, shown=f"{self.name}/{number}/{MANIFEST}"))
        if (version.name, version.number) != (self.name, number):
            raise VersionUnusable(
                f"{self.name}/{number} holds {version.name} version {version.number}: a version must not be moved or renamed."
            )
        return version

    def get_folder(self, folder_name: str) -> Version:
        """Return one version by the name of its folder.

        Raises:
            VersionNotFound: as `get` does.
            VersionUnusable: as `get` does, or the name is not a whole number.
        """
        if not is_version_number(folder_name):
            raise VersionUnusable(self._problem(self.base / folder_name))
        return self.get(int(folder_name))

    def _described(self) -> str:
        """Return a sentence for the operator. It has the server's path, which HTTP clients must not learn: see `Version._shown`."""
        root = self.base.parent
        if not root.is_dir():
            return f"The registry is {root}, which {'is a file' if root.exists() else 'does not exist'}."
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
        return f"The registry is {root}; its models are: {', '.join(names) or 'none'}."

    def _is_copy(self, path: Path) -> bool:
        try:
            manifest = _read_manifest(path / MANIFEST, shown=path.name)
        except VersionUnusable:
            return False
        return (manifest.name, manifest.version) != (self.name, int(path.name))

    def _folders(self) -> list[Path]:
        if not self.base.is_dir():
            return []
        return sorted(path for path in self.base.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _problem(self, path: Path) -> str:
        """Return why a folder is not a usable version; empty when it is one."""
        if not is_version_number(path.name):
            return f"{self.name}/{path.name} is not a version: the folder's name must be a whole number like 1 or 12, of at most nine digits."
        if not (path / MANIFEST).is_file():
            return (
                f"{self.name}/{path.name} has no {MANIFEST}, so its export did not finish. Remove it and export again."
            )
        try:
            self.get(int(path.name))
        except VersionUnusable as error:
            return str(error)
        return ""


def model_files(folder: Path) -> list[Path]:
    """List every file of a version except its manifest, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def is_version_number(name: str) -> bool:
    """Return whether a folder's name is a version number: 1, 2, 3, ... without leading zeros."""
    return bool(_NUMBER.fullmatch(name))


def _read_manifest(file: Path, *, shown: str) -> Manifest:
    try:
        status = file.stat()
        return _parsed_manifest(file, (status.st_ino, status.st_size, status.st_mtime_ns))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise VersionUnusable(f"{shown} is not a usable manifest: {where}: {first['msg']}. {_EXPORT_AGAIN}") from error
    except OSError as error:
        raise VersionUnusable(f"{shown} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=1024)
def _parsed_manifest(file: Path, _state: tuple[int, int, int]) -> Manifest:
    """Read a manifest once for each state of its file: parsing it takes ten times as long as looking at the file."""
    return Manifest.model_validate_json(file.read_bytes())
