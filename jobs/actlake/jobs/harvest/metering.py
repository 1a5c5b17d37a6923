"""Where a stage's time goes and what its process uses, measured where the work is done.

A stage has several threads, so "how long did it write" says little: writing beside computing
costs nothing. Here every moment has one name, the first of these that is true in any thread:

    compute   a batch goes through the layers
    send      the next stage does not take more yet (back-pressure)
    write     rows go to disk and nothing is computed meanwhile
    wait      none of these: there is no input

So the four add up to the time, and the largest but ``compute`` is the reason of a stall.
"""

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

Doing: TypeAlias = Literal["compute", "send", "write", "wait"]

ORDER: tuple[Doing, ...] = ("compute", "send", "write", "wait")

_RSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class StageUse:
    """What a stage did since it was asked last, and what its process takes."""

    seconds: Mapping[Doing, float]
    """By what it was doing."""
    cpu_s: float = 0.0
    """Processor time of all threads, seconds."""
    memory_bytes: int = 0
    """Largest resident memory so far."""
    gpu_bytes: int = 0
    """Largest memory allocated on the GPU so far; 0 without one."""


class Meter:
    """A stage's clock; safe to use from all its threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active = dict.fromkeys(ORDER, 0)
        self._seconds = dict.fromkeys(ORDER, 0.0)
        self._since: float | None = None  # loading, and other stages' loading, do not count
        self._cpu_s = 0.0

    @contextmanager
    def doing(self, what: Doing) -> Iterator[None]:
        """The body is this, in this thread."""
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def take(self, *, gpu_bytes: int = 0) -> StageUse:
        """What was done since the last call; the clock goes on from zero."""
        with self._lock:
            self._account()
            seconds, self._seconds = self._seconds, dict.fromkeys(ORDER, 0.0)
            used = resource.getrusage(resource.RUSAGE_SELF)
            cpu_s = used.ru_utime + used.ru_stime
            self._cpu_s, since = cpu_s, self._cpu_s
        return StageUse(seconds, cpu_s - since, used.ru_maxrss * _RSS_BYTES, gpu_bytes)

    def _change(self, what: Doing, by: int) -> None:
        with self._lock:
            self._account()
            self._active[what] += by

    def _account(self) -> None:
        now = self._clock()
        if self._since is not None:
            state: Doing = next((what for what in ORDER if self._active[what]), "wait")
            self._seconds[state] += now - self._since
        self._since = now
