"""A control group that limits the memory of a server, as a container does, and measures it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ROOTS = {
    Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "rss"),  # version 1
    Path("/sys/fs/cgroup"): ("memory.max", "anon"),  # version 2
}


@dataclass
class Memory:
    """The memory of a group of processes, without files that the system has read."""

    peak_bytes: int = 0
    limited: bool = False
    """True if the system holds the group to the limit. False where this process may not create control groups."""

    def enter(self) -> None:
        """Move this process into the group. Its children will be in it too."""

    def leave(self) -> None:
        """Move this process back."""


class _Group(Memory):
    def __init__(self, folder: Path) -> None:
        super().__init__(limited=True)
        self._folder = folder

    def enter(self) -> None:
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        (self._folder.parent / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def limited_memory(limit_bytes: int) -> Iterator[Memory]:
    """Create a group with this limit. Without the right to do so, the children of this process are measured only."""
    group = next((made for root in _ROOTS if (made := _create(root, limit_bytes))), None)
    memory: Memory = _Group(group) if group else Memory()
    stop = threading.Event()

    def measure() -> None:
        while not stop.wait(0.01):
            with suppress(OSError, StopIteration, ValueError):  # a process may end meanwhile
                memory.peak_bytes = max(memory.peak_bytes, _used(group) if group else _used_by_children())

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()
        if group:
            group.rmdir()


def _create(root: Path, limit_bytes: int) -> Path | None:
    limit_file, _ = _ROOTS[root]
    if not (root / "cgroup.procs").exists():
        return None
    group = _own_group(root) / f"cifar-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / limit_file).write_text(str(limit_bytes))
    except OSError:
        group.rmdir()
        return None
    return group


def _own_group(root: Path) -> Path:
    """Return the group that this process is in, below which it may create others."""
    wanted = "memory" if root.name == "memory" else ""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    path = next((path for _, controllers, path in lines if controllers == wanted), "/")
    folder = root / path.strip("/")
    return folder if folder.is_dir() else root


def _used(group: Path) -> int:
    name = "rss" if (group / "memory.limit_in_bytes").exists() else "anon"
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return next(int(value) for key, value in lines if key == name)


def _used_by_children() -> int:
    """Return the proportional memory of all descendants of this process."""
    total, queue = 0, [os.getpid()]
    while queue:
        tasks = Path(f"/proc/{queue.pop()}/task")
        children = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
        queue += children
        for pid in children:
            with suppress(OSError):
                lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
                total += 1024 * sum(int(line[1]) for line in lines if line[0] == "Pss_Anon:")
    return total
