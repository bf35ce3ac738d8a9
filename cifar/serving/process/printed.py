"""Turns each line that libraries print into an event of the log.

Gradio prints tracebacks that quote the caller's text, and libraries in C write to the file descriptors. Without this
module, neither would pass the formatter of the log, which escapes control characters and marks where an event begins.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

_LINE_BYTES = 1000
"""The rest of a longer line is dropped."""
_READ_BYTES = 64 * 1024
_LAST_LINES_SECONDS = 1.0

log = logging.getLogger("cifar.serving")
lines_log = logging.getLogger("printed")


class Terminal:
    """The process's own stderr, for the log: also after `capture_prints`."""

    def __init__(self) -> None:
        self.descriptor: int | None = None

    def write(self, text: str) -> None:
        """Write an event in one piece, so that those of several processes do not mix."""
        if self.descriptor is None:
            sys.stderr.write(text)
            return
        rest = text.encode("utf-8", "backslashreplace")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def flush(self) -> None:
        if self.descriptor is None:
            sys.stderr.flush()


TERMINAL = Terminal()


def capture_prints() -> None:
    """From now on, log what this process and those that it forks write to stdout and stderr. Call it when the log is configured.

    One thread of this process reads them, so the last words of a forked process that dies are logged too.
    """
    if TERMINAL.descriptor is not None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    TERMINAL.descriptor = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    logging.raiseExceptions = False  # errors of the log itself would be printed, and so logged again
    traceback.print_exc = _log_exception  # type: ignore[assignment]  # of its `file`, only None matters
    reader = threading.Thread(target=_log_lines, args=[reading], name="printed", daemon=True)
    reader.start()
    atexit.register(_release, TERMINAL.descriptor, reader)


def _release(terminal: int, reader: threading.Thread) -> None:
    """Log the last lines, and print again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    reader.join(_LAST_LINES_SECONDS)  # it ends with the last process that holds the pipe


def _log_lines(reading: int) -> None:
    rest = b""
    while piece := os.read(reading, _READ_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[:_LINE_BYTES]
        for line in lines:
            _log_line(line)
    _log_line(rest)


def _log_line(line: bytes) -> None:
    if text := line[:_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip():
        lines_log.info("%s", text)


_print_exc = traceback.print_exc


def _log_exception(limit: int | None = None, file: TextIO | None = None, chain: bool = True) -> None:
    """Stand in for `traceback.print_exc`: log one line, and the traceback at debug level only.

    Gradio calls it for each call that does not fit an endpoint. A traceback has up to 8 kB, for a request of 100 bytes.
    """
    error = sys.exc_info()[1]
    if file is not None or error is None:
        _print_exc(limit, file, chain)
        return
    frames: Any = traceback.extract_tb(error.__traceback__, limit=-1)
    where = f"{Path(frames[0].filename).name}, line {frames[0].lineno}" if frames else "no frame"
    log.info("a library caught %s in %s: %.300s", type(error).__name__, where, error)
    log.debug("the traceback of it", exc_info=error)
