"""Records what a process answers: at once into its journal, and from there, in a thread, into the database.

Nobody waits for the database. What was answered is in the journal before the answer leaves, so a process that is killed loses nothing;
while the database is away the journal grows to its limit, and what comes after that is dropped and counted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from cifar.dependency import Dependency
from cifar.records.database import insert, migrate, open_engine
from cifar.records.images import KeptImages
from cifar.records.journal import Journal, adopted, journals
from cifar.records.retention import sweep_daily
from cifar.records.tables import comparisons, metadata, predictions
from cifar.settings import Settings

log = logging.getLogger(__name__)

_AT_ONCE = 200
"""Records in one transaction: the thread must not keep the event loop waiting."""

Row = dict[str, Any]


class Recorder:
    """The records of one process. `start` before the first one, `stop` after the last. Safe to share between threads."""

    def __init__(self, settings: Settings, *, on_drop: Callable[[int], object] = lambda _: None) -> None:
        """Record by the settings.

        Args:
            settings: where, for how long, and how much.
            on_drop: told how many records were given up.

        Raises:
            SettingsError: `database_url` is no such address.
        """
        self.engine: Engine = open_engine(settings)
        self._settings = settings
        self._folder = settings.records_folder
        self._on_drop = on_drop
        self._key = b""
        self._journal: Journal | None = None
        self._full: Journal | None = None
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._migrating = threading.Lock()
        self._migrated = False
        self.dependency = Dependency(
            "records", impact="Predictions stay in the journal, and feedback is refused, until it is back."
        )
        """Whether folder and database could be used when that was last tried."""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.kept = KeptImages(settings) if settings.keep_uploads else None

    def start(self) -> None:
        """Open the journal; the thread does the rest."""
        with suppress(OSError):  # it was told, and is tried again
            self._open()
        self._thread = threading.Thread(target=self._work, name="records", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Move what there is into the database, and end."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
        self.flush()
        with self._writing:
            journal, self._journal = self._journal, None
        if journal:
            journal.close()
            if not journal.size:
                journal.path.unlink(missing_ok=True)
        self.engine.dispose()

    def user(self, name: str) -> str:
        """The keyed hash that stands for a user. Who has the records but not the key cannot try addresses."""
        return hashlib.blake2b(name.encode(), digest_size=16, key=self._key).hexdigest()

    def add(self, prediction: Row) -> None:
        """Record a prediction: the columns of `predictions`, save `at`. It survives the process when this returns."""
        self._append(predictions.name, prediction)

    def add_comparison(self, *, model: str, version: int, shadow_version: int, agrees: bool, distance: float) -> None:
        """Record what a shadow version said beside the served one.

        Args:
            model: the model's name.
            version: the version that was served.
            shadow_version: the other one.
            agrees: whether both name the same class.
            distance: total variation of the two score vectors, in [0, 1].
        """
        row = {"model": model, "version": version, "shadow_version": shadow_version, "agrees": agrees}
        self._append(comparisons.name, {"id": secrets.token_hex(16), **row, "distance": distance})

    def _append(self, table: str, row: Row) -> None:
        row["at"] = time.time()
        line = orjson.dumps((table, row), option=orjson.OPT_APPEND_NEWLINE)
        with self._writing:
            written = self._journal is not None and self._journal.append(line)
        if not written:
            self._on_drop(1)

    def find(self, request_id: str) -> Row | None:
        """A prediction, also one that another process of this host recorded a moment ago.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        self._migrate()
        if row := self._stored(request_id):
            return row
        needle = b'"request_id":' + orjson.dumps(request_id)  # an id may be any word, such as "star"
        for path in journals(self._folder):
            with suppress(FileNotFoundError):  # its process has just moved it into the database
                content = path.read_bytes()
                if needle in content:
                    self._insert_lines([line for line in content.splitlines(keepends=True) if needle in line])
        return self._stored(request_id)

    def _stored(self, request_id: str) -> Row | None:
        with self.engine.connect() as connection:
            row = connection.execute(select(predictions).where(predictions.c.request_id == request_id)).mappings()
            found = row.first()
            return dict(found) if found else None

    def flush(self) -> None:
        """Move what was recorded into the database, other processes' leavings too. What fails is tried again next time."""
        with self._flushing:
            try:
                self._open()
                self._migrate()
                if self.dependency.failing:
                    with self.engine.connect() as connection:
                        connection.execute(text("SELECT 1"))
                self._move()
                for path in journals(self._folder):
                    with adopted(path) as dead:
                        if dead:
                            self._insert_file(path)
                sweep_daily(self.engine, self._settings)
            except (OSError, SQLAlchemyError) as error:
                self._migrated = False  # another database may be there next time
                self.dependency.report(_without_statement(error))
            else:
                self.dependency.report(None)

    def _work(self) -> None:
        while True:
            try:
                self.flush()
                if self.kept:
                    self.kept.count()
            except Exception:
                log.exception("the records cannot be kept up")
            if self._stopped.wait(self._settings.records_flush_seconds):
                return

    def _open(self) -> None:
        if self._journal:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._key = self._own_key()
            self._journal = Journal(self._folder, max_bytes=self._settings.max_journal_bytes)
        except OSError as error:
            self.dependency.report(error)
            raise

    def _migrate(self) -> None:
        with self._migrating:
            if not self._migrated:
                migrate(self.engine, self._folder)
                self._migrated = True

    def _own_key(self) -> bytes:
        if self._settings.records_key:
            return hashlib.blake2b(self._settings.records_key.get_secret_value().encode(), digest_size=32).digest()
        path, new = self._folder / "users.key", self._folder / f".{secrets.token_hex(8)}"
        if not path.exists():
            new.touch(mode=0o600)
            with new.open("wb") as file:
                file.write(secrets.token_bytes(32))
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was faster
                os.link(new, path)
            new.unlink()
        return path.read_bytes()

    def _move(self) -> None:
        """Move what an earlier attempt left, then begin a new journal and move the one before it."""
        self._move_full()
        if self._journal and self._journal.size:
            new = Journal(self._folder, max_bytes=self._settings.max_journal_bytes)
            with self._writing:  # nothing is written to the old one from here on
                self._full, self._journal = self._journal, new
            self._move_full()

    def _move_full(self) -> None:
        if self._full:
            self._insert_file(self._full.path)
            self._full.path.unlink(missing_ok=True)
            self._full.close()
            self._full = None

    def _insert_file(self, path: Path) -> None:
        with path.open("rb") as lines:
            while some := list(islice(lines, _AT_ONCE)):
                self._insert_lines(some)

    def _insert_lines(self, lines: list[bytes]) -> None:
        by_table: dict[str, list[Row]] = {name: [] for name in metadata.tables}
        for line in lines:
            try:
                table, row = orjson.loads(line)
                by_table[table].append(_rounded(row))
            except (ValueError, KeyError, TypeError, AttributeError):
                self._on_drop(1)  # the power failed, or another version of ours wrote it
        for table, rows in by_table.items():
            if rows:
                self._insert(table, rows)

    def _insert(self, table: str, rows: list[Row]) -> None:
        """Insert rows, save those that are there already. One that the database refuses must not hold up the others."""
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(connection, metadata.tables[table]).on_conflict_do_nothing(), rows)
        except StatementError as error:
            if isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError):
                raise  # it is not the rows: the database is away, or not what it was
            if len(rows) == 1:
                log.exception("a record was refused by the database")
                self._on_drop(1)
                return
            for row in rows:
                self._insert(table, [row])


def _rounded(row: Row) -> Row:
    """Six digits are enough of a score; on the way to the journal there was no time for that."""
    if "scores" in row:
        row["score"] = round(row["score"], 6)
        row["scores"] = {name: round(score, 6) for name, score in row["scores"].items()}
    return row


def _without_statement(error: Exception) -> Exception:
    """Return the driver's own error: SQLAlchemy's holds the whole statement, with its values."""
    return error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
