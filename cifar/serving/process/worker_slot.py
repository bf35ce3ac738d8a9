"""Which of gunicorn's workers this process is. The hooks in `gunicorn.conf.py` set it before the app is created."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class WorkerSlot:
    """The place of one worker process among those of its host."""

    number: int
    """From 0 to `workers - 1`. During a reload an old and a new worker have the same number."""
    workers: int
    folder: Path
    """Folder of the workers' Unix sockets."""


current: WorkerSlot | None = None
"""The slot of this process; None without gunicorn. It is set in memory after the fork, so it needs no variable."""


@cache
def shared_folder() -> Path:
    """Create the folder of the workers' sockets and metric files: one for the life of gunicorn's master."""
    return Path(tempfile.mkdtemp(prefix="cifar-workers-"))
