"""Keeps the messages of TensorFlow and Keras off the terminal: they are meant for developers and can be kilobytes long."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_LIBRARIES = ("tensorflow", "absl", "tf2onnx")


@contextmanager
def quiet_libraries(level: int = logging.ERROR) -> Iterator[None]:
    """Drop Python warnings, and log messages of TensorFlow, Keras and tf2onnx below `level`."""
    levels = {name: logging.getLogger(name).level for name in _LIBRARIES}
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)


@contextmanager
def quiet_native_code() -> Iterator[None]:
    """Send to the debug log what native code, such as the LiteRT converter, writes to the standard error of the process.

    What Python code writes there is caught too. No other code may run at the same time.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            if text := written.read().decode(errors="replace").strip():
                log.debug("Written by native code: %s", text)


def import_tensorflow() -> None:
    """Import TensorFlow without the lines about the processor that its native code prints, whatever its log level."""
    with quiet_native_code():
        import tensorflow as tf  # noqa: F401
