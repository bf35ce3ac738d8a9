"""The records database: SQLite in the records folder, or the one that the setting `database_url` names."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
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
_POSTGRESQL = re.compile(r"^postgres(?:ql)?(?:\+\w+)?(?=://)", re.IGNORECASE)
_SEVERAL_HOSTS = re.compile(
    r"(?P<before>postgres[\w+]*://(?:.*@)?)(?P<hosts>[^@/?]*,[^@/?]*)/(?P<database>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_SERVER = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(?P<port>\d*))?")
_OF_OTHER_PROGRAMS = ("pgbouncer", "connection_limit", "pool_timeout", "supa")
"""Parts of platforms' addresses that are for other clients; PostgreSQL's own refuses names that it does not know."""
_POSTGRESQL_LOCK = 0x0C1FA2
"""Key of the advisory lock: any number that no other program uses."""


def database_url(settings: Settings) -> URL:
    """Return the address of the database. `postgres://` and `postgresql://`, which platforms give, and other drivers' mean psycopg.

    Raises:
        SettingsError: `database_url` is no address of a SQLite or PostgreSQL database.
    """
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.records_folder / "records.sqlite"))
    address = settings.database_url.get_secret_value().strip()
    try:
        url = make_url(_with_one_host(_POSTGRESQL.sub("postgresql+psycopg", address, count=1)))
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        url = None
    if url is None or url.drivername not in {"sqlite", "postgresql+psycopg"} or not url.database:
        raise SettingsError(  # never with the address: it may hold a password
            "CIFAR_DATABASE_URL is not usable: expected postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:////PATH."
        )
    return url.difference_update_query(_OF_OTHER_PROGRAMS)


def open_engine(settings: Settings) -> Engine:
    """Return an engine for the database. It connects at first use. Safe to share between threads, but not between processes."""
    url = database_url(settings)
    if url.drivername == "sqlite":
        engine = create_engine(url, connect_args={"timeout": TIMEOUT_SECONDS}, **_JSON)
        event.listen(engine, "connect", _prepare_sqlite)
        if settings.database_url is None:
            event.listen(engine, "do_connect", lambda *_: _make_private(settings.records_folder / "records.sqlite"))
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    # Behind a pooler each transaction may get another connection of PostgreSQL's, so nothing is left on one: no prepared
    # statements, and no timeout beyond the transaction. A pooler refuses such a timeout as an option of the connection.
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=TIMEOUT_SECONDS,
            **_JSON,
            connect_args={"connect_timeout": TIMEOUT_SECONDS, "prepare_threshold": None},
        )
    except ModuleNotFoundError as error:
        raise SettingsError("PostgreSQL needs the package psycopg: pip install 'psycopg[binary]'.") from error
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _with_one_host(address: str) -> str:
    """Write `USER@A:1,B:2/DATABASE` as SQLAlchemy does, which puts several hosts into the query."""
    found = _SEVERAL_HOSTS.fullmatch(address)
    if not found:
        return address
    servers = [_SERVER.fullmatch(server) for server in found["hosts"].split(",")]
    if not all(servers):
        raise ValueError("a host or port is malformed")
    hosts = ",".join(server["host"].strip("[]") for server in servers if server)
    ports = ",".join(server["port"] or "5432" for server in servers if server)
    more = f"&{found['query']}" if found["query"] else ""
    return f"{found['before']}/{found['database']}?host={hosts}&port={ports}{more}"


def _make_private(file: Path) -> None:
    """Create the file, readable by its owner only, unless it exists. SQLite gives its log and index the same mode."""
    with suppress(OSError):  # it exists, or SQLite says why it cannot
        os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = (
        None  # see `_begin_sqlite`: the transactions of Python's driver do not include CREATE TABLE
    )
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # By the driver's own cursor: the option yield_per makes SQLAlchemy's one of the server's, which knows SELECT only.
    cursor = connection.connection.cursor()
    cursor.execute(f"SET LOCAL statement_timeout = {TIMEOUT_SECONDS * 1000}")
    cursor.close()


def migrate(engine: Engine, folder: Path) -> str:
    """Migrate the tables to the newest revision, and return it. When several processes or hosts try, one does it and the others wait.

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
