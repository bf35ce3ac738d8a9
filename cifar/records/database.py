"""The database: SQLite in the records folder, or the one that `database_url` names. Alembic keeps its tables up to date."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cifar.errors import SettingsError
from cifar.settings import Settings

_MIGRATIONS = Path(__file__).parent / "migrations"
_JSON: dict[str, Any] = {
    "json_serializer": lambda value: orjson.dumps(value).decode(),
    "json_deserializer": orjson.loads,
}
_POSTGRESQL_LOCK = 0x0C1FA2
"""Any number that no other program takes an advisory lock by."""


def database_url(settings: Settings) -> URL:
    """Where the records are.

    Raises:
        SettingsError: `database_url` is none of SQLite or PostgreSQL.
    """
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.records_folder / "records.sqlite"))
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):  # the second: a port that is no number
        url = None
    if url is None or url.drivername not in {"sqlite", "postgresql+psycopg"} or not url.database:
        raise SettingsError(  # never with the address: it may hold a password
            "CIFAR_DATABASE_URL is not usable: expected postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or sqlite:////PATH."
        )
    return url


def open_engine(settings: Settings) -> Engine:
    """The database of the settings. Connects with the first use; safe to share between threads, not between processes."""
    url, seconds = database_url(settings), settings.records_timeout_seconds
    if url.drivername == "sqlite":
        engine = create_engine(url, connect_args={"timeout": seconds}, **_JSON)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    options = f"-c statement_timeout={int(seconds * 1000)}"
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=seconds,
            **_JSON,
            connect_args={"connect_timeout": max(2, int(seconds)), "options": options},
        )
    except ModuleNotFoundError as error:
        raise SettingsError("PostgreSQL needs the package psycopg: pip install 'psycopg[binary]'.") from error


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin below: Python's own would not hold what makes tables
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def migrate(engine: Engine, folder: Path) -> str:
    """Bring the tables to the newest revision; of several processes, or hosts, one does and the others wait.

    Returns:
        The revision.

    Raises:
        OSError: the folder cannot be written.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer, or a newer version of ours made its tables.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with only_one(folder / "migrate.lock"), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
        config.attributes["connection"] = connection
        there = MigrationContext.configure(connection)
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise SQLAlchemyError(
                f"the tables are of revision {there.get_current_revision()}, which this version does not know"
            ) from error
        return str(there.get_current_revision())


@contextmanager
def only_one(file: Path) -> Iterator[None]:
    """Held by one process of this host at a time; whoever ends, however, lets go."""
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows what to do on a conflict, in the words of the connection's database."""
    make: Callable[[Table], Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    return make(table)
