"""What pipelines keep in memory, and the budget that several of them share."""

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from selftaught.errors import InputError

CACHE_BYTES = 2**31

Content = TypeVar("Content")


class CacheBudget:
    """Memory for what pipelines keep; one budget may serve several pipelines and many threads.

    Args:
        limit: bytes, over all that share the budget.

    Raises:
        InputError: a limit below 0.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise InputError(f"cache_bytes {limit}: allowed from 0")
        self._left = limit
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take `size` bytes if there is room for them."""
        with self._lock:
            fits = size <= self._left
            self._left -= size * fits
        return fits

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        with self._lock:
            self._left += size


class Cache(Generic[Content]):
    """Keeps what fits into a budget until it is cleared; safe to use from many threads.

    First come, first kept: over shuffled epochs, evicting would only lower the hits.

    Args:
        budget: bytes, or a budget that others share.
    """

    def __init__(self, budget: int | CacheBudget) -> None:
        self._budget = budget if isinstance(budget, CacheBudget) else CacheBudget(budget)
        self._kept: dict[Hashable, Content] = {}
        self._taken = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Content | None:
        """What is kept under a key."""
        return self._kept.get(key)

    def keep(self, key: Hashable, content: Content, size: int) -> None:
        """Keep something of `size` bytes, if there is room for it and nothing under its key."""
        with self._lock:
            if key not in self._kept and self._budget.take(size):
                self._kept[key] = content
                self._taken += size

    def clear(self) -> None:
        """Forget everything and return its memory to the budget."""
        with self._lock:
            self._kept.clear()
            self._budget.give_back(self._taken)
            self._taken = 0
