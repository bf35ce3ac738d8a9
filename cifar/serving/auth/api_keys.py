"""API keys: a file of their hashes, read by the workers and written by `python -m cifar keys`.

A key is `cifar_ID_SECRET`. The id finds the entry, and is no secret; the secret's 256 random bits are not in the file,
only their SHA-256. A slow hash is for what people choose: nobody can try 2**256 secrets, however quick the hash is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cifar.errors import InvalidCredentials, KeysError
from cifar.serving.auth.principal import SCOPES, Principal, make_principal

log = logging.getLogger(__name__)

RELOAD_SECONDS = 1
"""Age at which running workers look whether the file has changed."""
PREFIX = "cifar_"
"""Marks our keys for people, and for programs that search code for secrets."""
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_([\w-]{{43}})", re.ASCII)
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)


class Entry(BaseModel):
    """One key, as the file knows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    id: str
    sha256: str
    scopes: tuple[str, ...]
    created: str


_Entries = TypeAdapter(list[Entry])


class ApiKeys:
    """Tells who a key belongs to, by the file as it was at most `RELOAD_SECONDS` ago."""

    def __init__(self, file: Path) -> None:
        """Read the file; one that is not there yet holds no key.

        Raises:
            KeysError: it is there, and cannot be read.
        """
        self._file = file
        self._stamp = self._complained = _stamp(file)
        self._entries = {entry.id: entry for entry in read(file)}
        self._looked = time.monotonic()

    def principal(self, key: str) -> Principal:
        """Who sent `key`.

        Raises:
            InvalidCredentials: nobody that the file knows.
        """
        self._look_again()
        match = _KEY.fullmatch(key)
        entry = self._entries.get(match[1]) if match else None
        if match is None or entry is None or not hmac.compare_digest(_digest(match[2]), entry.sha256):
            raise InvalidCredentials("The API key is not known. It may have been revoked.")
        return make_principal("key", entry.name, entry.scopes)

    def _look_again(self) -> None:
        """Read the file anew where it changed. A damaged one changes nothing: the keys before it stay."""
        now = time.monotonic()
        if now - self._looked < RELOAD_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._entries = {entry.id: entry for entry in read(self._file)}
            self._stamp = stamp
        except KeysError as error:
            if stamp != self._complained:
                log.error("%s The keys read before stay in force.", error)  # noqa: TRY400 - the sentence says all
            self._complained = stamp


def read(file: Path) -> list[Entry]:
    """The entries of a file, in the order in which they were made; none where there is no file.

    Raises:
        KeysError: the file cannot be read, or is no list of keys.
    """
    try:
        return _Entries.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeysError(f"The file of API keys, {file}, cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise KeysError(f"The file of API keys, {file}, is damaged: {error.errors()[0]['msg']}.") from error


def listed(file: Path) -> list[dict[str, str]]:
    """What may be shown of the keys: names, beginnings, scopes, days. As `read`, it raises KeysError."""
    return [
        {
            "name": entry.name,
            "key": f"{PREFIX}{entry.id}_…",
            "scopes": ",".join(entry.scopes),
            "created": entry.created,
        }
        for entry in read(file)
    ]


def create(file: Path, name: str, scopes: Sequence[str]) -> str:
    """Add a key and return it: the one time that anybody sees it.

    Raises:
        KeysError: the name is taken or no name, or there is no such scope.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(f"A key's name has 1 to 64 letters, digits, or . _ @ -; got {name!r}.")
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise KeysError(f"There is no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}.")
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    with _locked(file):
        entries = read(file)
        if name in {entry.name for entry in entries}:
            raise KeysError(f"There is a key {name} already. Revoke it first, or choose another name.")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        _write(
            file, [*entries, Entry(name=name, id=key_id, sha256=_digest(secret), scopes=tuple(scopes), created=created)]
        )
    return f"{PREFIX}{key_id}_{secret}"


def revoke(file: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        KeysError: there is none of this name.
    """
    with _locked(file):
        entries = read(file)
        left = [entry for entry in entries if entry.name != name]
        if len(left) == len(entries):
            names = ", ".join(entry.name for entry in entries) or "none"
            raise KeysError(f"There is no key {name!r}; there are: {names}.")
        _write(file, left)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when the file is replaced."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One writer at a time: a key that was revoked must not come back with another writer's list."""
    import fcntl  # servers on Windows read keys too, and have no such module

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, entries: Sequence[Entry]) -> None:
    """Replace the file in one step. It is its owner's alone, and stays its owner's when root writes it."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump([entry.model_dump() for entry in entries], stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists() and os.geteuid() == 0:
            os.chown(temporary, file.stat().st_uid, file.stat().st_gid)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
