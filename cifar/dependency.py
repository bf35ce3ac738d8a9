"""Outside services that the server calls and can lose: Redis, sign-in hosts, TensorFlow Serving, the records database.

Each of them is a `Dependency`, which logs one line when the service goes down and one when it is back, feeds two metrics
(`serving.process.metrics.watch`) and is listed in `/readyz` while the service is down. Calls pass its circuit breaker,
except those of the records, which are made in the background anyway and use `report` only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from circuitbreaker import CircuitBreaker

log = logging.getLogger(__name__)

MAX_FAILURES = 5
"""Failures in a row after which the circuit opens: the service is not called any more."""
RECOVERY_SECONDS = 10
"""Seconds for which the circuit stays open. The first call after that decides whether it closes."""


class CircuitOpen(Exception):
    """The service failed several times in a row and is not called for now."""


class Dependency:
    """One outside service, its circuit breaker and whether it is down. Safe to share between threads.

    Make each call in a `with` block, in a thread or in a coroutine:

        with redis.guard():
            content = await client.get(key)
    """

    def __init__(
        self, name: str, *, impact: str, failures: type[Exception] | tuple[type[Exception], ...] = Exception
    ) -> None:
        """Describe a service; nothing is called.

        Args:
            name: used in the log, in `/readyz` and as the metrics' label.
            impact: a sentence for the log: what the server cannot do while the service is down.
            failures: the exceptions that mean that the service is down. Any other exception counts as an answer.
        """
        self.name = name
        self.failing = False
        """True if the last call failed."""
        self.on_failure: Callable[[], object] = lambda: None
        """Called after each failed call."""
        self.on_change: Callable[[bool], object] = lambda _: None
        """Called when `failing` changes, with the new value."""
        self._impact = impact
        self._failures = failures
        self._breaker = CircuitBreaker(MAX_FAILURES, RECOVERY_SECONDS, expected_exception=failures, name=name)
        self._lock = threading.Lock()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Guard one call of the service: the body of the `with` statement.

        Raises:
            CircuitOpen: the service failed several times in a row; the body is not run.
        """
        if self._breaker.opened:
            raise CircuitOpen(self.name)
        try:
            with self._breaker:
                yield
        except Exception as error:
            self.report(error if isinstance(error, self._failures) else None)
            raise
        self.report(None)

    def report(self, error: Exception | None) -> None:
        """Note the result of a call: its error, or None when it succeeded. `guard` does this already."""
        failing = error is not None
        with self._lock:
            changed, self.failing = failing != self.failing, failing
        if failing:
            self.on_failure()
        if not changed:
            return
        self.on_change(failing)
        if failing:
            reason = str(error).strip().partition("\n")[0]
            log.warning("%s is down (%s: %s). %s", self.name, type(error).__name__, reason, self._impact)
        else:
            log.info("%s is back", self.name)
