"""Workers share the connections that wait for all of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cifar.serving.process import worker_slot
from cifar.serving.process.worker_slot import WorkerSlot, count_connections, fair_share


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
