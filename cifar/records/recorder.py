"""The recorder of one process: it writes records into a journal at once, and a thread moves them into the database.

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
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import orjson
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cifar.dependency import Dependency
from cifar.records.database import migrate, open_engine
from cifar.records.images import KeptImages
from cifar.records.journal import MAX_JOURNAL_BYTES, Journal, adopted, journals, read_lines, set_aside_odd_ones
from cifar.records.key import records_key
from cifar.records.retention import sweep_daily
from cifar.records.tables import predictions
from cifar.records.transfer import insert_lines, line_of, rounded
from cifar.records.values import Row
from cifar.settings import Settings

log = logging.getLogger(__name__)

_WITHOUT_JOURNAL = (
    "Predictions are not recorded, and feedback is refused, until CIFAR_RECORDS_FOLDER is a folder that this user can write. "
    "CIFAR_RECORDS=false turns both off."
)
_BYTES_PER_TRANSACTION = 1024**2
"""About 2,000 rows, which take some 20 ms: far from the time limit of a statement."""


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
        """Make a recorder. Nothing is written yet. `on_drop` is called with the number of records that were dropped.

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
        self._key: bytes | None = None
        self._keyed_hash = hashlib.blake2b(digest_size=16)
        """Replaced by one with the key before anything is recorded."""
        self._journal: Journal | None = None
        self._closed_journal: Journal | None = None
        """The journal before the current one, until it is in the database."""
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._migrating = threading.Lock()
        self._migrated: tuple[int, int] | None = None
        """Identity of the database whose tables are up to date: see `_database_identity`."""
        self._unreadable: set[Path] = set()
        """Journals of dead processes that could not be read, and were reported."""
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
            with suppress(OSError):  # its process has just moved it into the database, or it is another user's
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
                self._take_over_journals()
                sweep_daily(self.engine, self._settings)
            except (OSError, SQLAlchemyError) as error:
                self._migrated = None  # next time it may be another database
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
        """Create folder, key and journal, also if they were deleted under way. The key stays, so that hashes stay too."""
        if self._journal and not self._journal.is_deleted:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._key = records_key(self._settings, new=self._key)
            self._keyed_hash = hashlib.blake2b(digest_size=16, key=self._key)
            if self._journal is None:
                self._journal = Journal(self._folder, max_bytes=self._max_journal_bytes)
        except OSError as error:
            self.dependency.report(error, impact="" if self._journal or not error.filename else _WITHOUT_JOURNAL)
            raise

    def _migrate(self) -> None:
        with self._migrating:
            if self._migrated is None or self._migrated != self._database_identity():
                self.engine.dispose()  # its connections may have a deleted file open
                migrate(self.engine, self._folder)
                self._migrated = self._database_identity()

    def _database_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the SQLite file; None if it does not exist, and the same pair for every other database."""
        if self.engine.dialect.name != "sqlite":
            return (0, 0)
        try:
            found = Path(self.engine.url.database or "").stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _move_journal(self) -> None:
        """Move what an earlier attempt left; then begin a new journal and move the current one."""
        self._move_closed_journal()
        if self._journal and (self._journal.size or self._journal.is_deleted):
            new = Journal(self._folder, max_bytes=self._max_journal_bytes)
            with self._writing:  # from here on, nothing is written to the old one
                self._closed_journal, self._journal = self._journal, new
            self._move_closed_journal()

    def _move_closed_journal(self) -> None:
        if self._closed_journal:
            self._insert(self._closed_journal.lines(_BYTES_PER_TRANSACTION))
            self._closed_journal.path.unlink(missing_ok=True)
            self._closed_journal.close()
            self._closed_journal = None

    def _take_over_journals(self) -> None:
        """Move the journals of dead processes. One that cannot be read is reported once, and does not stop the others."""
        for path in set_aside_odd_ones(self._folder):
            log.error("%s is no journal of this project and was set aside.", path)
            self._on_drop(1)
        for path in journals(self._folder):
            try:
                with adopted(path) as is_adopted:
                    if is_adopted:
                        self._insert(read_lines(path, _BYTES_PER_TRANSACTION))
            except OSError as error:
                if path not in self._unreadable:
                    log.error("the journal %s cannot be read, and stays: %s.", path, error.strerror)  # noqa: TRY400
                self._unreadable.add(path)

    def _insert(self, groups: Iterable[list[bytes]]) -> None:
        for lines in groups:
            insert_lines(self.engine, lines, on_drop=self._on_drop)


def _without_statement(error: Exception) -> Exception:
    """Return the driver's own error: SQLAlchemy's holds the whole statement, with its values."""
    return error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
