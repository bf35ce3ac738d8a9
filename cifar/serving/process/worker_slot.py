"""The workers of this host: the slot of this process among them, and the connections that they share."""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import uvicorn

log = logging.getLogger(__name__)

_BURST = 100
"""Connections that are accepted in one turn of the event loop."""
_LEAVE_SECONDS = 0.05
"""Time for which a worker leaves connections to others that have fewer, before it takes a few itself."""
_TCP_INFO_BYTES = 28
"""Linux' `struct tcp_info` up to `tcpi_unacked`, which for a listening socket is the number of connections in its queue."""
_LEAST_SURPLUS = 3
"""A worker gives connections away if it has more than this above the mean, and a quarter more than it."""
_RETRY_SECONDS = 1.0
"""Time after which a server that had no descriptor or no memory for a connection accepts again."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True)
class WorkerSlot:
    """The place of one worker process among those of its host."""

    number: int
    """From 0 to `workers - 1`. During a reload an old and a new worker have the same number."""
    workers: int
    folder: Path
    """Folder of the workers' Unix sockets."""


current: WorkerSlot | None = None
"""The slot of this process; None without gunicorn. A hook in `gunicorn.conf.py` sets it after the fork, before the app is created."""

_SLOTS = 256
_connections = memoryview(mmap.mmap(-1, 4 * _SLOTS)).cast("i")
"""For each slot, 1 + the number of open connections of its worker; 0 without a worker. The workers share this memory, because the master
imports this module before it forks them."""


def count_connections(connections: int | None, *, slot: int | None = None) -> None:
    """Tell the other workers how many connections the worker of a slot has, by default this one; None when it accepts no more."""
    number = slot if slot is not None else current.number if current else 0
    _connections[number % _SLOTS] = 0 if connections is None else connections + 1


def fair_share(waiting: int) -> int:
    """Return how many of the waiting connections this worker may accept, so that all workers get equally many."""
    own = _connections[(current.number if current else 0) % _SLOTS] - 1
    total, level = waiting, 0
    for count, connections in enumerate(sorted(filter(None, _connections)), 1):
        if count > 1 and connections - 1 >= level:
            break
        total += connections - 1
        level = -(-total // count)  # what each of the workers with the fewest would have, rounded up
    return max(0, level - own)


@cache
def shared_folder() -> Path:
    """Create the folder of the workers' sockets and metric files: one for the life of gunicorn's master."""
    return Path(tempfile.mkdtemp(prefix="cifar-workers-"))


class Connections(set[Any]):
    """The open connections of a server. Their number is published to the other workers of the host."""

    closed = False
    surplus = 0

    def __init__(self) -> None:
        super().__init__()
        self.accepted: set[object] = set()
        """Accepted connections that are not open yet."""

    def add(self, connection: object) -> None:
        super().add(connection)
        self.accepted.discard(connection)
        self.count()

    def discard(self, connection: object) -> None:
        super().discard(connection)
        self.count()

    @property
    def number(self) -> int:
        return len(self) + len(self.accepted)

    def count(self) -> None:
        if not self.closed:
            count_connections(self.number)

    def rebalance(self) -> None:
        """Set how many connections end with their next answer, so that their clients connect again and others may accept them.

        A client may use a connection for hours, and the workers' numbers of such connections can differ by chance.
        """
        counts = [count - 1 for count in _connections if count]
        mean = -(-sum(counts) // max(1, len(counts)))
        surplus = self.number - mean
        self.surplus = surplus if surplus > max(_LEAST_SURPLUS, mean // 4) else 0

    def gives_one_away(self) -> bool:
        """Return whether the connection that asks ends with its answer."""
        if not self.surplus:
            return False
        self.surplus -= 1
        return True


class _Listener:
    """Accepts the connections of a socket that this worker shares with others.

    uvloop accepts one connection in each turn of its loop. Under load, a turn takes tens of milliseconds: the last of 64 new
    connections would wait for most of a second, and the first worker to wake up would get most of them for good.
    """

    def __init__(self, listening: socket.socket, connect: Callable[[], asyncio.Protocol], open_: Connections) -> None:
        """Begin to accept. `connect` makes the protocol of a connection, and `open_` are the connections of this process."""
        self._socket = listening
        self._connect = connect
        self._open = open_
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        open_.count()
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accept no more."""
        self._open.closed = True
        count_connections(None)
        self._loop.remove_reader(self._socket)
        if self._timer:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """For uvicorn; nothing is left to wait for."""

    def _accept(self, *, at_least: int = 0) -> None:
        self._open.count()  # during a reload, the old worker of this slot has set it to none
        share = max(at_least, fair_share(self._waiting()))
        if not share:
            self._pause(_LEAVE_SECONDS)
            return
        for _ in range(min(share, _BURST)):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                log.error("no connection can be accepted: %s", error.strerror)  # noqa: TRY400
                self._pause(_RETRY_SECONDS)
                return
            protocol = self._connect()
            self._open.accepted.add(protocol)
            self._open.count()
            task = self._loop.create_task(self._open_connection(protocol, connection))
            self._tasks.add(task)  # the event loop itself holds only a weak reference
            task.add_done_callback(partial(self._connected, protocol))

    def _waiting(self) -> int:
        """Return the length of the socket's queue, at least 1. Systems that do not report it count as having a long one."""
        if sys.platform != "linux" or self._socket.family not in {socket.AF_INET, socket.AF_INET6}:
            return _BURST
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return max(1, int.from_bytes(info[-4:], sys.byteorder))

    async def _open_connection(self, protocol: asyncio.Protocol, connection: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: protocol, connection)

    def _connected(self, protocol: asyncio.Protocol, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._open.accepted.discard(protocol)
        self._open.count()
        if not task.cancelled() and (error := task.exception()):
            log.debug("a connection was lost before it was open: %s", error)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._socket, self._accept)
        self._accept(at_least=1 + self._open.number // 8)  # the others may be slow, or hang


class Server(uvicorn.Server):
    """uvicorn's server, with `_Listener` for each socket."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, then accept connections."""
        self.server_state.connections = open_ = Connections()
        await super().startup([])
        protocol: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        connect = partial(protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        self._open = open_
        self.servers = [_Listener(listening, connect, open_) for listening in sockets or []]  # type: ignore[misc]

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to end, and once at the other workers."""
        if counter % 10 == 0:
            self._open.rebalance()
        return await super().on_tick(counter)
