"""Commands for operators: serve, check, keys, records, ab, drift."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from typer import Argument, Exit, Option, Typer

from cifar.cli.arguments import JSON, OUT, TwoVersions, difference, duration, two_versions
from cifar.console import json_text, print_report, print_table, say
from cifar.environment import process_environment
from cifar.errors import CifarError, RecordsError
from cifar.files import unwritable
from cifar.models.registry import Registry
from cifar.settings import ROOT, Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = Typer()
keys = Typer(help="Create, list and revoke API keys.")
records = Typer(help="Export, delete and migrate predictions and feedback.")
app.add_typer(keys, name="keys", epilog="example: python -m cifar keys create ci")
app.add_typer(records, name="records", epilog="example: python -m cifar records export --out records.csv")

_KINDS: dict[str, Literal["csv", "parquet"]] = {"": "csv", ".csv": "csv", ".parquet": "parquet"}
_VERSIONS = "The version in use and the one on trial. Default: the stable one and the other one with traffic."
_EFFECT = "Print how much feedback it takes to detect this difference. Default: CIFAR_AB_EFFECT_SHARE."


@app.command(epilog="example: python -m cifar serve --port 8000")
def serve(
    host: str | None = Option(None, help="Address to listen on. Default: CIFAR_HOST."),
    workers: int | None = Option(None, min=1, max=4096, help="Processes. Default: CIFAR_WORKERS."),
    port: int | None = Option(None, help="Port to listen on. Default: CIFAR_PORT."),
) -> NoReturn:
    """Serve the page and the API, as app.py does."""
    settings = load_settings()
    count = workers or settings.workers
    chosen = {"HOST": host or settings.host, "PORT": settings.port if port is None else port, "WORKERS": count}
    command = ["app.py"] if count == 1 else ["-m", "gunicorn", "-c", "gunicorn.conf.py", "app:app"]
    environment = process_environment() | {f"CIFAR_{name}": str(value) for name, value in chosen.items()}
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, *command], environment)


@app.command(epilog="example: python -m cifar check")
def check() -> None:
    """Check settings, the version to serve, records and sign-in. Use it before a start or a reload."""
    settings = load_settings()
    from cifar.cli.check import failures

    found = failures(settings)
    for sentence in found:
        say(sentence)
    if settings.records and (reason := unwritable(settings.records_folder)):
        say(f"A server starts, but records nothing: CIFAR_RECORDS_FOLDER cannot be written, because {reason}.")
    if found:
        raise Exit(1)


@app.command("ab", epilog="example: python -m cifar ab report")
def ab_report(
    _action: Literal["report"] = Argument(..., metavar="report"),
    versions: TwoVersions | None = Option(None, parser=two_versions, metavar="A,B", help=_VERSIONS),
    since: float | None = Option(None, parser=duration, metavar="DAYS", help="Default: CIFAR_AB_WINDOW_DAYS."),
    effect: float | None = Option(None, parser=difference, metavar="SHARE", help=_EFFECT),
    as_json: bool = JSON,
) -> None:
    """Report whether one version is better than another."""
    settings = load_settings()
    from cifar.analytics.ab import ab_report
    from cifar.analytics.tables import ab_text

    with _records_database(settings) as engine:
        report = ab_report(engine, settings, versions=versions or (), since_days=since, effect=effect)
    print(json_text(report.as_json()) if as_json else ab_text(report))


@app.command(epilog="example: python -m cifar drift --since 6")
def drift(
    since: float | None = Option(None, parser=duration, metavar="HOURS", help="Default: 24."),
    as_json: bool = JSON,
) -> None:
    """Report whether recent photos and predictions differ from those of the training."""
    settings = load_settings()
    from cifar.analytics.drift_report import drift_report
    from cifar.analytics.tables import drift_text

    with _records_database(settings) as engine:
        found = drift_report(engine, Registry(settings.registry, settings.model_name), since_hours=since)
    print(json_text([version.as_json() for version in found]) if as_json else drift_text(found))


@keys.command("create", epilog="example: python -m cifar keys create ci --scopes predict")
def create_key(
    name: str = Argument(..., metavar="NAME", help="Who the key is for."),
    scopes: str = Option("predict", metavar="A,B", help="predict, feedback, admin."),
) -> None:
    """Create a key and print it. It cannot be shown again."""
    settings = load_settings()
    from cifar.serving.auth.api_keys import create

    print(create(_keys_file(settings), name, scopes.split(",")))
    say(f"The key {name} is shown only this once; store it with your secrets.")


@keys.command("list", epilog="example: python -m cifar keys list")
def list_keys(as_json: bool = JSON) -> None:
    """List the names and scopes of all keys."""
    settings = load_settings()
    from cifar.serving.auth.api_keys import listed

    print_table(["name", "key", "scopes", "created"], listed(_keys_file(settings)), as_json=as_json)


@keys.command("revoke", epilog="example: python -m cifar keys revoke ci")
def revoke_key(name: str = Argument(..., metavar="NAME", help="The name of the key.")) -> None:
    """Make a key invalid."""
    settings = load_settings()
    from cifar.serving.auth.api_keys import RELOAD_SECONDS, revoke

    revoke(_keys_file(settings), name)
    say(f"The key {name} is revoked; running servers follow within {RELOAD_SECONDS} s.")


def _keys_file(settings: Settings) -> Path:
    if settings.api_keys_file is None:
        raise CifarError("Set CIFAR_API_KEYS_FILE to the file that holds the keys' hashes, such as api-keys.json.")
    return settings.api_keys_file


@records.command("export", epilog="example: python -m cifar records export --out records.csv")
def export_records(
    out: Path = OUT,
    kind: Literal["csv", "parquet"] | None = Option(None, "--format", help="Default: by the ending of --out."),
) -> None:
    """Write all predictions with their feedback as a table."""
    if (kind := kind or _KINDS.get(out.suffix.lower())) is None:
        raise RecordsError(f"The ending of {out} is neither .csv nor .parquet. Choose another, or add --format csv.")
    with _records_database(load_settings()) as engine:
        from cifar.records.export import export_table

        count = export_table(engine, out, kind)
    say(f"{count:,} predictions are in {out}.")


@records.command("images", epilog="example: python -m cifar records images --out data/feedback")
def export_images(out: Path = OUT, as_json: bool = JSON) -> None:
    """Write the kept images that have feedback as an image folder to train on."""
    settings = load_settings()
    with _records_database(settings) as engine:
        from cifar.records.export import export_images

        written, left_out = export_images(engine, settings, out)
    print_report({name: written[name] for name in sorted(written)}, as_json=as_json)
    say(f"{sum(written.values()):,} images are in {out}: python -m cifar train --data {out} --out runs/NAME")
    for reason, count in left_out.items():
        say(f"{count:,} were left out: {reason}.")


@records.command("sweep", epilog="example: python -m cifar records sweep")
def sweep_records(as_json: bool = JSON) -> None:
    """Delete records older than CIFAR_RECORDS_RETENTION_DAYS now. A server does it once a day."""
    settings = load_settings()
    with _records_database(settings) as engine:
        from cifar.records.retention import sweep

        print_report(sweep(engine, settings)._asdict(), as_json=as_json)


@records.command("migrate", epilog="example: python -m cifar records migrate")
def migrate_records() -> None:
    """Bring the database tables to the newest revision, and print it."""
    settings = load_settings()
    with _records_database(settings) as engine:
        from cifar.records.database import migrate

        print(migrate(engine, settings.records_folder))


@contextmanager
def _records_database(settings: Settings) -> Iterator[Engine]:
    """Yield the records' database with its tables up to date. Database errors are raised as `RecordsError`."""
    from sqlalchemy.exc import SQLAlchemyError

    from cifar.records.database import migrate, open_engine

    engine = open_engine(settings)
    folder = settings.records_folder
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            migrate(engine, folder)
        except OSError as error:
            raise RecordsError(
                f"The records' folder {folder} cannot be written: {error.strerror}. Set CIFAR_RECORDS_FOLDER to another."
            ) from error
        yield engine
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise RecordsError(f"The records' database cannot be used: {reason}.") from error
    finally:
        engine.dispose()
