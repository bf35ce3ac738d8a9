"""Outside services that the server calls and can lose: Redis, sign-in hosts, TensorFlow Serving, the records database.

Each of them is a `Dependency`, which logs one line when the service goes down and one when it is back, feeds two metrics
(`serving.process.metrics.watch`) and is listed in `/readyz` while the service is down. Calls pass its circuit breaker,
except those of the records, which are made in the background anyway and use `report` only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        self,
        name: str,
        *,
        impact: str,
        failures: type[Exception] | tuple[type[Exception], ...] = Exception,
        may_fail_in_part: bool = False,
    ) -> None:
        """Describe a service; nothing is called.

        Args:
            name: used in the log, in `/readyz` and as the metrics' label.
            impact: a sentence for the log: what the server cannot do while the service is down.
            failures: the exceptions that mean that the service is down. Any other exception counts as an answer.
            may_fail_in_part: the service can answer some calls while it refuses others, as a full Redis does. After a failure, it
                is back when it has answered for `RECOVERY_SECONDS` without another one.
        """
        self.name = name
        self.failing = False
        """True while the service is down: the last call failed, or too recently one did (`may_fail_in_part`)."""
        self.on_failure: Callable[[], object] = lambda: None
        """Called after each failed call."""
        self.on_change: Callable[[bool], object] = lambda _: None
        """Called when `failing` changes, with the new value."""
        self._impact = impact
        self._failures = failures
        self._may_fail_in_part = may_fail_in_part
        self._failures_in_a_row = 0
        self._failed_at = self._answers_since = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Guard one call of the service: the body of the `with` statement.

        Raises:
            CircuitOpen: the service failed several times in a row; the body is not run.
        """
        if self._failures_in_a_row >= MAX_FAILURES and time.monotonic() - self._failed_at < RECOVERY_SECONDS:
            raise CircuitOpen(self.name)
        try:
            yield
        except Exception as error:
            self._count(error if isinstance(error, self._failures) else None)
            raise
        self._count(None)

    def _count(self, error: Exception | None) -> None:
        now = time.monotonic()
        with self._lock:
            if error is not None:
                self._failures_in_a_row += 1
                self._failed_at = now
            else:
                self._failures_in_a_row = 0
                if self._answers_since < self._failed_at:
                    self._answers_since = now
                if self._may_fail_in_part and self.failing and now - self._answers_since < RECOVERY_SECONDS:
                    return
        self.report(error)

    def report(self, error: Exception | None, *, impact: str = "") -> None:
        """Note the result of a call: its error, or None when it succeeded. `guard` does this already.

        Args:
            error: why it failed.
            impact: what the server cannot do because of this error, if it is not what it cannot do without the service.
        """
        failing = error is not None
        with self._lock:
            changed, self.failing = failing != self.failing, failing
        if failing:
            self.on_failure()
        if not changed:
            return
        self.on_change(failing)
        if failing:
            reason = str(error).strip().partition("\n")[0] or "no answer in time"
            log.warning("%s is down (%s: %s). %s", self.name, type(error).__name__, reason, impact or self._impact)
        else:
            log.info("%s is back", self.name)
