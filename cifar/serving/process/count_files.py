"""The files in which workers count for Prometheus, on blocks that exist.

`prometheus_client` maps sparse files into memory. Where the disk is full, writing to a page without a block is SIGBUS, which ends the
process. Here blocks are allocated first. If there are none, this process goes on counting in memory, where `/metrics` does not see it.
"""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

log = logging.getLogger(__name__)

_INITIAL_BYTES = 64 * 1024
_ENTRY_BYTES = 64
"""Size of an entry without its key: two lengths, two numbers and padding."""


class CountFile(MmapedDict):
    """A count file that cannot end its process. Only its creation and growth differ."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            try:
                with Path(filename).open("ab") as file:
                    _allocate(file.fileno(), _INITIAL_BYTES)
            except OSError as error:
                filename = _file_in_memory(error)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + _ENTRY_BYTES
        if needed > self._capacity:
            size = self._capacity
            while size < needed:
                size *= 2
            try:
                _allocate(self._f.fileno(), size)
            except OSError as error:
                self._move_to_memory(error)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _move_to_memory(self, error: OSError) -> None:
        content = self._m[:]
        self._m.close()
        self._f.close()
        self._f = Path(_file_in_memory(error)).open("a+b")  # noqa: SIM115 - `close` closes it
        self._f.write(content)
        self._f.flush()
        self._m = mmap.mmap(self._f.fileno(), self._capacity)


def use_count_files() -> None:
    """Let `prometheus_client` use `CountFile` for values that it creates from now on.

    It has no interface for this: it looks the class up in its module `values`. Version 0.26; held by
    tests/deploy/test_full_disk.py::test_a_full_disk_costs_only_metrics.
    """
    values.MmapedDict = CountFile  # type: ignore[attr-defined]


def _allocate(file: int, size: int) -> None:
    """Allocate the blocks of the first `size` bytes, and of all that the file has. On a full disk this raises OSError."""
    os.posix_fallocate(file, 0, max(size, os.fstat(file).st_size))


def _file_in_memory(error: OSError) -> str:
    log.error("Metrics of this worker are counted in memory, and /metrics does not show them: %s", error.strerror)
    return f"/proc/self/fd/{os.memfd_create('metrics')}"
