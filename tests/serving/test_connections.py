"""Workers share the connections that wait for all of them."""

from __future__ import annotations

import http.client
import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.servers import running, wait_for_workers

from cifar.serving.process import worker_slot
from cifar.serving.process.worker_slot import Connections, WorkerSlot, count_connections, fair_share


@pytest.fixture
def shares(monkeypatch):
    """The connections that each worker takes, by the connections that each has and the number that wait."""

    def shares(held: list[int], waiting: int) -> list[int]:
        for slot in range(6):
            count_connections(held[slot] if slot < len(held) else None, slot=slot)
        taken = []
        for slot in range(len(held)):
            monkeypatch.setattr(worker_slot, "current", WorkerSlot(slot, len(held), Path()))
            taken.append(fair_share(waiting))
        return taken

    yield shares
    for slot in range(6):
        count_connections(None, slot=slot)


def test_the_shares_of_all_workers_leave_none_waiting_and_none_with_more_than_another(shares):
    """A rule by which each waits for another would leave clients without an answer."""
    assert shares([0, 0], 64) == [32, 32]
    assert shares([10, 0, 1], 5) == [0, 3, 2]
    generator = random.Random(1)
    for _ in range(1000):
        held = [generator.randrange(20) for _ in range(generator.randint(1, 6))]
        waiting = generator.randrange(60)
        taken = shares(held, waiting)
        after = {has + takes for has, takes in zip(held, taken, strict=True) if takes}
        assert waiting <= sum(taken) < waiting + len(held)
        assert len(after) <= 1, "all that take some have as many afterwards"


def test_a_worker_with_many_more_connections_than_others_gives_the_surplus_away_with_its_next_answers(
    shares, monkeypatch
):
    """Otherwise a pool of connections that one worker accepted while another was busy would keep a core idle for hours."""
    shares([0, 8], 0)
    monkeypatch.setattr(worker_slot, "current", WorkerSlot(0, 2, Path()))
    connections = Connections()
    for number in range(64):
        connections.add(number)
    connections.rebalance()
    given = [number for number in range(64) if connections.gives_one_away()]
    assert len(given) == 64 - (64 + 8) / 2
    for number in given:
        connections.discard(number)
    shares([36, 36], 0)
    connections.rebalance()
    assert not connections.gives_one_away()


def connections_of(worker: int) -> int:
    """Return the number of open connections of clients of a process, from the kernel."""
    links = [str(link.readlink()) for link in Path(f"/proc/{worker}/fd").iterdir() if link.is_symlink()]
    established = {
        line.split()[9]
        for line in Path(f"/proc/{worker}/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "01"
    }
    return len(established & {link[len("socket:[") : -1] for link in links if link.startswith("socket:")})


@pytest.mark.slow
def test_connections_that_one_worker_accepted_while_another_was_stopped_are_shared_when_it_is_back(tmp_path):
    """No request is lost on the way: the end of a connection is announced in the answer before it."""
    with running(tmp_path, workers=2) as server:
        wait_for_workers(server, 2)
        stopped, other = server.workers()
        deadline = time.monotonic() + 30
        os.kill(stopped, signal.SIGSTOP)
        clients = [http.client.HTTPConnection(server.address.removeprefix("http://")) for _ in range(16)]
        try:
            for client in clients:
                client.connect()
            while connections_of(other) < 16:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            os.kill(stopped, signal.SIGCONT)
        while connections_of(other) > 11:
            assert time.monotonic() < deadline
            for client in clients:
                client.request("GET", "/healthz")  # connects again where the answer before announced the end
                answer = client.getresponse()
                assert answer.status == http.client.OK
                answer.read()
            time.sleep(0.1)
        for client in clients:
            client.close()
