"""API keys: a file of their hashes, read by the workers and written by `python -m cifar keys`.

A key is `cifar_ID_SECRET`. The id finds the entry and is not secret. The file holds only the SHA-256 of the secret. A slow
hash is meant for passwords that people choose; the secret is 256 random bits, which cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cifar.errors import InvalidCredentials, KeysError
from cifar.files import locked, replacing
from cifar.serving.auth.principal import SCOPES, Principal, make_principal

log = logging.getLogger(__name__)

RELOAD_SECONDS = 1
"""Interval at which a running worker checks whether the file has changed."""
PREFIX = "cifar_"
"""Prefix of every key, so that people and secret scanners recognise it."""
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_([\w-]{{43}})", re.ASCII)
_NAME = "[A-Za-z0-9_.@-]{1,64}"


class Entry(BaseModel):
    """One key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Literal["predict", "feedback", "admin"], ...]
    created: str


_Entries = TypeAdapter(list[Entry])


class ApiKeys:
    """Finds the owner of a key. A change of the file takes effect within `RELOAD_SECONDS`."""

    def __init__(self, file: Path) -> None:
        """Read the file. A file that does not exist yet holds no keys.

        Raises:
            KeysError: the file cannot be read.
        """
        self._file = file
        self._stamp = self._reported = _stamp(file)
        self._entries = {entry.id: entry for entry in read(file)}
        if not file.exists():
            log.warning("There are no API keys: %s does not exist. python -m cifar keys create NAME writes it.", file)
        self._checked_at = time.monotonic()

    def principal(self, key: str) -> Principal:
        """Return the owner of `key`.

        Raises:
            InvalidCredentials: the file has no such key.
        """
        self._reload()
        match = _KEY.fullmatch(key)
        entry = self._entries.get(match[1]) if match else None
        if match is None or entry is None or not hmac.compare_digest(_digest(match[2]), entry.sha256):
            raise InvalidCredentials("The API key is not known. It may have been revoked.")
        return make_principal("key", entry.name, entry.scopes)

    def _reload(self) -> None:
        """Read the file again if it has changed. If it is damaged, the keys of the last valid file stay valid."""
        now = time.monotonic()
        if now - self._checked_at < RELOAD_SECONDS:
            return
        self._checked_at = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._entries = {entry.id: entry for entry in read(self._file)}
            self._stamp = stamp
        except KeysError as error:
            if stamp != self._reported:
                log.error("%s The keys that were read before stay valid.", error)  # noqa: TRY400 - the message suffices
            self._reported = stamp


def id_in(text: str) -> str:
    """Return the id of the API key in a header, or an empty string. The key is not checked, so the id proves nothing."""
    found = _KEY.search(text)
    return found[1] if found else ""


def read(file: Path) -> list[Entry]:
    """Return the entries of a file, oldest first. A file that does not exist has none.

    Raises:
        KeysError: the file cannot be read, or is not a list of keys.
    """
    try:
        entries = _Entries.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeysError(f"The file of API keys, {file}, cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KeysError(f"The file of API keys, {file}, is damaged: {where}: {first['msg']}.") from error
    for kind in ("id", "name"):
        counts = Counter(getattr(entry, kind) for entry in entries)
        if twice := [value for value, count in counts.items() if count > 1]:
            raise KeysError(f"The file of API keys, {file}, has two keys with the {kind} {twice[0]}.")
    return entries


def listed(file: Path) -> list[dict[str, str]]:
    """Return the public part of each key: its name, first characters, scopes and date.

    Raises:
        KeysError: the file cannot be read, or is not a list of keys.
    """
    return [
        {"name": entry.name, "key": f"{PREFIX}{entry.id}_…", "scopes": ",".join(entry.scopes), "created": entry.created}
        for entry in read(file)
    ]


def create(file: Path, name: str, scopes: Sequence[str]) -> str:
    """Add a key to the file and return it. This is the only time that the whole key can be seen.

    Raises:
        KeysError: the name is taken or not valid, or a scope does not exist.
    """
    if not re.fullmatch(_NAME, name):
        raise KeysError(f"A key's name has 1 to 64 letters, digits, or . _ @ -; got {name!r}.")
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise KeysError(f"There is no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}.")
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Entry(name=name, id=key_id, sha256=_digest(secret), scopes=tuple(scopes), created=created)
    with _changing(file) as entries:
        if name in {other.name for other in entries}:
            raise KeysError(f"There is a key {name} already. Revoke it first, or choose another name.")
        entries.append(entry)
    return f"{PREFIX}{key_id}_{secret}"


def revoke(file: Path, name: str) -> None:
    """Remove a key from the file.

    Raises:
        KeysError: there is no key of this name.
    """
    with _changing(file) as entries:
        names = [entry.name for entry in entries]
        if name not in names:
            raise KeysError(f"There is no key {name!r}; there are: {', '.join(names) or 'none'}.")
        del entries[names.index(name)]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when the file is replaced."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _changing(file: Path) -> Iterator[list[Entry]]:
    """Yield the entries to change, then write them back. A lock keeps two writers from undoing each other's changes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f".{file.name}.lock")):
        entries = read(file)
        yield entries
        with replacing(file, mode=0o600) as temporary:
            temporary.write_text(json.dumps([entry.model_dump() for entry in entries], indent=1))
