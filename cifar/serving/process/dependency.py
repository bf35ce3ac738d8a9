"""What runs on another host: asked while it answers, and left alone for a while when it does not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from circuitbreaker import CircuitBreaker

from cifar.serving.process.metrics import BREAKER_OPEN, REMOTE_FAILURES

log = logging.getLogger(__name__)

T = TypeVar("T")


class Remote:
    """A dependency behind a circuit breaker. Use it from one event loop."""

    def __init__(self, name: str, *, failures: int, recovery_seconds: float) -> None:
        """Guard a dependency.

        Args:
            name: for logs, metrics and `/readyz`.
            failures: in a row, after which it is left alone.
            recovery_seconds: for how long; then one call tries it.
        """
        self.name = name
        self._breaker = CircuitBreaker(failures, recovery_seconds, expected_exception=Exception, name=name)
        self._told = False
        BREAKER_OPEN.labels(name).set(0)

    @property
    def failing(self) -> bool:
        """Whether it did not answer, and has not answered since."""
        return self._told

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """The dependency's answer, or None where there is none: the caller goes on without it."""
        if self._breaker.opened:
            return None
        try:
            with self._breaker:
                answer = await call()
        except Exception as error:
            REMOTE_FAILURES.labels(self.name).inc()
            self._tell(failing=True, why=error)
            return None
        self._tell(failing=False)
        return answer

    def _tell(self, *, failing: bool, why: Exception | None = None) -> None:
        """Say once that it went, and once that it came back."""
        if failing == self._told:
            return
        self._told = failing
        BREAKER_OPEN.labels(self.name).set(int(failing))
        if failing:
            log.warning("%s does not answer (%s: %s); going on without it", self.name, type(why).__name__, why)
        else:
            log.info("%s answers again", self.name)
