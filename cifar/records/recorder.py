"""The recorder of one process: it writes records into a journal at once, and a thread has the database take them from there.

Requests never wait for the database. A record is in the journal before the answer is sent, so a process that is killed loses nothing.
While the database is down the journal grows to its limit; further records are dropped and counted.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cifar.dependency import Dependency
from cifar.files import create_once
from cifar.records.database import migrate, open_engine
from cifar.records.images import KeptImages
from cifar.records.journal import Journal, adopted, journals
from cifar.records.retention import sweep_daily
from cifar.records.tables import predictions
from cifar.records.transfer import insert_lines, line_of, rounded
from cifar.settings import Settings

log = logging.getLogger(__name__)

MAX_JOURNAL_BYTES = 64 * 1024**2
_BYTES_PER_TRANSACTION = 1024**2
"""About 2,000 rows, which take some 20 ms: far from the time limit of a statement."""

Row = dict[str, Any]


class Recorder:
    """The records of one process. Call `start` before the first record and `stop` after the last. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        *,
        flush_seconds: float,
        on_drop: Callable[[int], object] = lambda _: None,
        max_journal_bytes: int = MAX_JOURNAL_BYTES,
    ) -> None:
        """Make a recorder. Nothing is written yet.

        Args:
            settings: database, folder, retention and limits.
            flush_seconds: interval at which the journal is moved into the database.
            on_drop: called with the number of records that were dropped.
            max_journal_bytes: largest journal file.

        Raises:
            SettingsError: see `database_url`.
        """
        self.engine = open_engine(settings)
        self.images = KeptImages(settings) if settings.keep_uploads else None
        self.dependency = Dependency(
            "records", impact="Predictions stay in the journal, and feedback is refused, until it is back."
        )
        """Its `failing` is true if folder or database could not be used at the last attempt."""
        self._settings = settings
        self._folder = settings.records_folder
        self._on_drop = on_drop
        self._flush_seconds = flush_seconds
        self._max_journal_bytes = max_journal_bytes
        self._keyed_hash = hashlib.blake2b(digest_size=16)
        self._journal: Journal | None = None
        self._closed_journal: Journal | None = None
        """The journal before the current one, until it is in the database."""
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._migrating = threading.Lock()
        self._migrated = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the journal, and start the thread that moves it into the database."""
        with suppress(OSError):  # reported already; the thread tries again
            self._open()
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Move all records into the database, and close it."""
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

    def user_hash(self, user: str) -> str:
        """Return the keyed hash that stands for a user. Without the key, it cannot be computed from a guessed address."""
        keyed = self._keyed_hash.copy()
        keyed.update(user.encode())
        return keyed.hexdigest()

    def add(self, prediction: Row) -> None:
        """Record a prediction: the columns of `predictions` without `at`. When this returns, it survives the process."""
        if math.isfinite(sum(prediction["scores"].values())):
            self._append("predictions", rounded(prediction))
        else:
            self._on_drop(1)

    def add_comparison(self, comparison: Row) -> None:
        """Record a shadow comparison: the columns of `comparisons` without `id` and `at`."""
        self._append("comparisons", {"id": secrets.token_hex(16), **comparison})

    def _append(self, table: str, row: Row) -> None:
        row["at"] = time.time()
        line = line_of(table, row)
        with self._writing:
            written = self._journal is not None and self._journal.append(line)
        if not written:
            self._on_drop(1)

    def find(self, request_id: str) -> Row | None:
        """Return a prediction by its request id, or None. One that is still in a journal of this host is found too.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        self._migrate()
        if row := self._find_stored(request_id):
            return row
        needle = b'"request_id":' + orjson.dumps(request_id)  # the id alone may be any word, such as "star"
        for path in journals(self._folder):
            with suppress(FileNotFoundError):  # its process has just moved it into the database
                content = path.read_bytes()
                if needle in content:
                    lines = [line for line in content.splitlines(keepends=True) if needle in line]
                    insert_lines(self.engine, lines, on_drop=self._on_drop)
        return self._find_stored(request_id)

    def _find_stored(self, request_id: str) -> Row | None:
        with self.engine.connect() as connection:
            row = connection.execute(select(predictions).where(predictions.c.request_id == request_id)).mappings()
            found = row.first()
            return dict(found) if found else None

    def flush(self) -> None:
        """Move this process's journal, and those of dead processes, into the database. What fails is tried again next time."""
        with self._flushing:
            try:
                self._open()
                self._migrate()
                if self.dependency.failing:
                    with self.engine.connect() as connection:
                        connection.execute(text("SELECT 1"))
                self._move_journal()
                for path in journals(self._folder):
                    with adopted(path) as is_adopted:
                        if is_adopted:
                            self._insert_file(path)
                sweep_daily(self.engine, self._settings)
            except (OSError, SQLAlchemyError) as error:
                self._migrated = False  # next time it may be another database
                self.dependency.report(_without_statement(error))
            else:
                self.dependency.report(None)

    def _run(self) -> None:
        while True:
            try:
                self.flush()
                if self.images:
                    self.images.count()
            except Exception:
                log.exception("records could not be moved into the database")
            if self._stopped.wait(self._flush_seconds):
                return

    def _open(self) -> None:
        if self._journal:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._keyed_hash = hashlib.blake2b(digest_size=16, key=self._read_key())
            self._journal = Journal(self._folder, max_bytes=self._max_journal_bytes)
        except OSError as error:
            self.dependency.report(error)
            raise

    def _migrate(self) -> None:
        with self._migrating:
            if not self._migrated:
                migrate(self.engine, self._folder)
                self._migrated = True

    def _read_key(self) -> bytes:
        if self._settings.records_key:
            return hashlib.blake2b(self._settings.records_key.get_secret_value().encode(), digest_size=32).digest()
        path = self._folder / "users.key"
        with suppress(FileExistsError):
            if not path.exists():
                create_once(path, secrets.token_bytes(32), mode=0o600)
        return path.read_bytes()

    def _move_journal(self) -> None:
        """Move what an earlier attempt left; then begin a new journal and move the current one."""
        self._move_closed_journal()
        if self._journal and self._journal.size:
            new = Journal(self._folder, max_bytes=self._max_journal_bytes)
            with self._writing:  # from here on, nothing is written to the old one
                self._closed_journal, self._journal = self._journal, new
            self._move_closed_journal()

    def _move_closed_journal(self) -> None:
        if self._closed_journal:
            self._insert_file(self._closed_journal.path)
            self._closed_journal.path.unlink(missing_ok=True)
            self._closed_journal.close()
            self._closed_journal = None

    def _insert_file(self, path: Path) -> None:
        with path.open("rb") as lines:
            while some := lines.readlines(_BYTES_PER_TRANSACTION):
                insert_lines(self.engine, some, on_drop=self._on_drop)


def _without_statement(error: Exception) -> Exception:
    """Return the driver's own error: SQLAlchemy's holds the whole statement, with its values."""
    return error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
