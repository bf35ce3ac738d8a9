"""The records database: SQLite in the records folder, or the one that the setting `database_url` names."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cifar.errors import SettingsError
from cifar.files import locked
from cifar.settings import Settings

TIMEOUT_SECONDS = 5
"""Longest wait for a connection, for a lock and for one statement."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_JSON: dict[str, Any] = {
    "json_serializer": lambda value: orjson.dumps(value).decode(),
    "json_deserializer": orjson.loads,
}
_POSTGRESQL_LOCK = 0x0C1FA2
"""Key of the advisory lock: any number that no other program uses."""


def database_url(settings: Settings) -> URL:
    """Return the address of the database.

    Raises:
        SettingsError: `database_url` is no address of a SQLite or PostgreSQL database.
    """
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.records_folder / "records.sqlite"))
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        url = None
    if url is None or url.drivername not in {"sqlite", "postgresql+psycopg"} or not url.database:
        raise SettingsError(  # never with the address: it may hold a password
            "CIFAR_DATABASE_URL is not usable: expected postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or sqlite:////PATH."
        )
    return url


def open_engine(settings: Settings) -> Engine:
    """Return an engine for the database. It connects at first use. Safe to share between threads, but not between processes."""
    url = database_url(settings)
    if url.drivername == "sqlite":
        engine = create_engine(url, connect_args={"timeout": TIMEOUT_SECONDS}, **_JSON)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=TIMEOUT_SECONDS,
            **_JSON,
            connect_args={
                "connect_timeout": TIMEOUT_SECONDS,
                "options": f"-c statement_timeout={TIMEOUT_SECONDS * 1000}",
            },
        )
    except ModuleNotFoundError as error:
        raise SettingsError("PostgreSQL needs the package psycopg: pip install 'psycopg[binary]'.") from error


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = (
        None  # see `_begin_sqlite`: the transactions of Python's driver do not include CREATE TABLE
    )
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def migrate(engine: Engine, folder: Path) -> str:
    """Migrate the tables to the newest revision. When several processes or hosts try, one does it and the others wait.

    Returns:
        The revision.

    Raises:
        OSError: `folder`, which holds the lock, cannot be written.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer, or a newer release of this project made its tables.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with locked(folder / "migrate.lock"), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
        config.attributes["connection"] = connection
        migrations = MigrationContext.configure(connection)
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise SQLAlchemyError(
                f"the tables are of revision {migrations.get_current_revision()}, which this version does not know"
            ) from error
        return str(migrations.get_current_revision())


def insert(dialect: str, table: Table) -> Any:
    """Return an INSERT statement that supports ON CONFLICT, for `sqlite` or `postgresql`."""
    insert_into: Callable[[Table], Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]
    return insert_into(table)
