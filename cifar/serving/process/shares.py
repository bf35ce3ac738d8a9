"""Limits on places or bytes that the callers of a process share. One caller gets at most half."""

from __future__ import annotations


class Shares:
    """Counts what is taken. Use it from one event loop."""

    def __init__(self, limit: int) -> None:
        """Set how much there is for all callers. One caller may take half of it, but at least 1."""
        self.limit = limit
        self.taken = 0
        self._share = max(1, limit // 2)
        self._by_caller: dict[str, int] = {}

    def take(self, caller: str, amount: int = 1) -> bool:
        """Take some, and return whether there was enough. What was taken must be given back with `give`.

        `caller` is a `rate_limit_key`, or empty for calls without a request, which have no limit of their own.
        """
        own = self._by_caller.get(caller, 0) + amount
        if self.taken + amount > self.limit or (caller and own > self._share):
            return False
        if amount:
            self.taken += amount
            self._by_caller[caller] = own
        return True

    def in_use(self, caller: str, amount: int = 1) -> int:
        """Return why `amount` was refused: what all callers have taken if too little is left, otherwise what this caller has."""
        return self.taken if self.taken + amount > self.limit else self._by_caller.get(caller, 0)

    def give(self, caller: str, amount: int = 1) -> None:
        if not amount:
            return
        self.taken -= amount
        left = self._by_caller[caller] - amount
        if left:
            self._by_caller[caller] = left
        else:
            del self._by_caller[caller]
