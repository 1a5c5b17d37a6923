"""Results that many threads ask for: worked out once, kept for a while."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


class Kept(Generic[Key, Result]):
    """A function that remembers its last results.

    One thread at a time works something out; what is there already, others get meanwhile.

    Parameters
    ----------
    function
        Never gives None.
    most
        Results that are kept; the oldest is forgotten first.
    """

    def __init__(self, function: Callable[[Key], Result], most: int) -> None:
        self._function = function
        self._most = most
        self._results: dict[Key, Result] = {}
        self._lock = threading.Lock()

    def __call__(self, key: Key) -> Result:
        """The result for `key`."""
        found = self._results.get(key)
        if found is None:
            with self._lock:
                found = self._results.get(key)  # another thread may have been at it
                if found is None:
                    found = self._results[key] = self._function(key)
                    while len(self._results) > self._most:
                        del self._results[next(iter(self._results))]
        return found
