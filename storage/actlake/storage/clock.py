"""Time, as drivers of a store see it: leases beat, and are given up, by their location's clock.

A seam for tests, which bring a clock that only they move.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Tells the time, waits, and does things in the background."""

    def now(self) -> float:
        """Seconds since some moment; it never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def repeat(self, deed: Callable[[], bool], *, every_s: float) -> Callable[[], None]:
        """Do `deed` in the background after every `every_s` seconds, as long as it returns True.

        What is returned ends that, and waits for a deed that is under way.
        """
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        time.sleep(seconds)

    def repeat(self, deed: Callable[[], bool], *, every_s: float) -> Callable[[], None]:
        """See `Clock.repeat`; in a daemon thread."""
        ended = threading.Event()

        def keep_doing() -> None:
            while not ended.wait(every_s) and deed():
                pass

        thread = threading.Thread(target=keep_doing, daemon=True)
        thread.start()

        def end() -> None:
            ended.set()
            thread.join()

        return end


SYSTEM_CLOCK = SystemClock()
