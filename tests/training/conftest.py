"""A clock for training under a time budget."""

from __future__ import annotations

import pytest

from cifar.training.run import schedule


class Clock:
    """A clock that advances by `step` seconds whenever it is read."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The clock of the learning rate schedule. It stands still unless the test moves it."""
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    return clock
