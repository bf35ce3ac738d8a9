"""The secret key of the records: it turns users into hashes that cannot be computed from a guessed address."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress

from cifar.files import create_once
from cifar.settings import Settings

KEY_BYTES = 32


def records_key(settings: Settings, *, new: bytes | None = None) -> bytes:
    """Return the key: derived from the setting `records_key`, else the content of `users.key`, which is created if needed.

    A file that does not exist is created with the key `new`, by default a random one.

    Raises:
        OSError: the folder or the file cannot be used, or the file does not have `KEY_BYTES` bytes.
    """
    if settings.records_key:
        return hashlib.blake2b(settings.records_key.get_secret_value().encode(), digest_size=KEY_BYTES).digest()
    path = settings.records_folder / "users.key"
    with suppress(FileExistsError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            create_once(path, new or secrets.token_bytes(KEY_BYTES), mode=0o600)
    with path.open("rb") as file:
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise OSError(
            f"{path} has {path.stat().st_size} bytes instead of {KEY_BYTES}. Restore it from a backup, or delete it: a new one is "
            "created, and users get new hashes."
        )
    return key
