"""Logging of the server and its libraries: readable text, or one JSON object for each line."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from cifar.serving.asgi import trace_id
from cifar.serving.process.printed import TERMINAL
from cifar.settings import Settings

logging._srcfile = None  # noqa: SLF001 - as Python's logging HOWTO says; no line shows its caller or thread, a sixth of its cost
logging.logThreads = logging.logMultiprocessing = False

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered. Log lines carry it."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
"""Control and invisible characters, which could forge text on a terminal. Line feeds are handled by indentation."""
_MAX_CHARACTERS = 8000
"""Longest text of one event. The middle of a longer one is left out, so that a caller cannot fill the log with a few requests."""


def log_config(settings: Settings) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig` and for gunicorn's `logconfig_dict`.

    The setting `log_level` applies to our own loggers only: at debug level, libraries log parts of uploaded files.
    """
    to_root = {"level": "INFO", "handlers": [], "propagate": True}
    nowhere = {"handlers": [], "propagate": False}  # `front/observe.py` logs requests
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request": {"()": _WithRequestId}, "upgrades": {"()": _Upgrades}},
        "formatters": {"text": {"()": TextFormatter}, "json": {"()": _json_formatter}},
        "handlers": {"stderr": {"()": _terminal_handler, "formatter": settings.log_format, "filters": ["request"]}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "loggers": {
            "cifar": {"level": settings.log_level.upper()},
            "gunicorn.error": to_root,
            "gunicorn.access": nowhere,
            "uvicorn.error": to_root,
            "uvicorn.access": nowhere,
            "httpx2": {"level": "WARNING"},  # it logs a line for each request between workers
            "alembic.runtime.migration": {"filters": ["upgrades"]},
            "alembic.runtime.plugins": {"level": "WARNING"},  # seven lines at each start about its own plugins
        },
    }


def _terminal_handler() -> logging.Handler:
    return logging.StreamHandler(TERMINAL)


def _shortened(text: str) -> str:
    """Return a text without its middle if it is longer than `_MAX_CHARACTERS`. The end of a traceback says what happened."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters left out] {text[-half:]}"


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if current := request_id.get():
            record.request_id = current
        if trace := trace_id.get():
            record.trace_id = trace
        return True


class _Upgrades(logging.Filter):
    """Drops the four lines that alembic logs at each start, and keeps those about a migration."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or record.getMessage().startswith("Running")


class TextFormatter(logging.Formatter):
    """Formats one event as text. Further lines of a message are indented, and control characters are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library calls it so
        ids = [getattr(record, "request_id", ""), getattr(record, "trace_id", "")]
        return super().formatMessage(record) + "".join(f" [{each}]" for each in ids if each)

    def format(self, record: logging.LogRecord) -> str:
        text = _shortened(super().format(record)).replace("\n", "\n    ")
        return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _JsonFormatter(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: _shortened(value) if isinstance(value, str) else value for name, value in log_data.items()}


def _json_formatter() -> JsonFormatter:
    return _JsonFormatter(
        ["levelname", "name", "message", "process"],
        rename_fields={"levelname": "level", "name": "logger", "process": "pid"},
        timestamp="time",
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's message a second time, with colours
    )
