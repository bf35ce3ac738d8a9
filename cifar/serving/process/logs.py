"""How log lines look, for the Space and for the libraries under it: readable text, or one JSON object a line."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from cifar.settings import Settings

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered; every line logged meanwhile carries it."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
"""What a terminal obeys or nobody sees. Line feeds are left to the indentation, JSON escapes by itself."""


def log_config(settings: Settings) -> dict[str, Any]:
    """The one configuration, for `logging.config.dictConfig` and for gunicorn's `logconfig_dict`.

    `log_level` is that of our own loggers: at debug level libraries write what callers sent (Pillow, the tags of a TIFF).
    """
    to_root = {"level": "INFO", "handlers": [], "propagate": True}
    nowhere = {"handlers": [], "propagate": False}  # `observe.py` writes a line for each request
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request": {"()": _WithRequestId}, "upgrades": {"()": _Upgrades}},
        "formatters": {"text": {"()": TextFormatter}, "json": {"()": _json_formatter}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": settings.log_format, "filters": ["request"]}
        },
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "loggers": {
            "cifar": {"level": settings.log_level.upper()},
            "gunicorn.error": to_root,
            "gunicorn.access": nowhere,
            "uvicorn.error": to_root,
            "uvicorn.access": nowhere,
            "httpx2": {"level": "WARNING"},  # a line for each request between workers
            "alembic.runtime.migration": {"filters": ["upgrades"]},
            "alembic.runtime.plugins": {"level": "WARNING"},  # seven lines at each start, of plugins that nobody added
        },
    }


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if known := request_id.get():
            record.request_id = known
        return True


class _Upgrades(logging.Filter):
    """Of the migrations' lines those that tell of a change; four more come at each start."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or record.getMessage().startswith("Running")


class TextFormatter(logging.Formatter):
    """A line for people. Only we begin lines: what a message brings along is indented, and nothing in it is obeyed."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library calls it so
        """The record's own line, with its request."""
        known = getattr(record, "request_id", "")
        return super().formatMessage(record) + (f" [{known}]" if known else "")

    def format(self, record: logging.LogRecord) -> str:
        """The record, and the trace of its exception."""
        text = super().format(record).replace("\n", "\n    ")
        return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _json_formatter() -> JsonFormatter:
    return JsonFormatter(
        ["levelname", "name", "message", "process"],
        rename_fields={"levelname": "level", "name": "logger", "process": "pid"},
        timestamp="time",
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's message again, for a terminal
    )
