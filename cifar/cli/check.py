"""Checks that find what would stop a server that starts, or reloads, with these settings."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from cifar.console import with_notes
from cifar.errors import CifarError, RecordsError, SettingsError
from cifar.files import unwritable
from cifar.models.rollout import RolloutLog
from cifar.records.database import open_engine
from cifar.records.key import records_key
from cifar.serving.auth.signin import add_sign_in
from cifar.settings import Settings


def failures(settings: Settings) -> list[str]:
    """Return one sentence for each failure: of the version, of the records' settings and key, of the uploads' folder, of sign-in.

    Outside services, such as the database, are not asked: a server starts without them.
    """
    checks = (_check_version, _check_records, _check_uploads, _check_sign_in)
    return [sentence for check in checks if (sentence := _failure(check, settings))]


def _failure(check: Callable[[Settings], None], settings: Settings) -> str:
    try:
        check(settings)
    except (CifarError, OSError) as error:
        return with_notes(error)
    return ""


def _check_version(settings: Settings) -> None:
    RolloutLog.of(settings).stable_version().verify()


def _check_records(settings: Settings) -> None:
    if not settings.records:
        return
    open_engine(settings).dispose()
    if settings.records_key or (settings.records_folder / "users.key").exists():  # without the file, one is created
        try:
            records_key(settings)
        except OSError as error:
            raise RecordsError(f"The records' key cannot be used: {error}") from error


def _check_uploads(settings: Settings) -> None:
    if settings.uploads and (reason := unwritable(settings.uploads)):
        raise SettingsError(f"CIFAR_UPLOADS={str(settings.uploads)!r} cannot be written: {reason}.")


def _check_sign_in(settings: Settings) -> None:
    api = FastAPI()
    add_sign_in(api, api, settings)
