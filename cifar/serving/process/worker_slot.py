"""The slot of this process among gunicorn's workers, set by a hook in `gunicorn.conf.py` before the app is created."""

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
"""The slot of this process; None without gunicorn. The hook runs after the fork, so no environment variable is needed."""


@cache
def shared_folder() -> Path:
    """Create the folder of the workers' sockets and metric files: one for the life of gunicorn's master."""
    return Path(tempfile.mkdtemp(prefix="cifar-workers-"))
