"""What benchmarks measure with: clocks that do not count a suspended process, and peak memory.

And how they say what they measured, to people and then, in their last line, to programs.
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SUSPENDED_S = 2.0  # no call of ours holds the interpreter for so long


def anonymous_mb() -> float:
    """Anonymous memory of this process in MiB; mapped files do not count.

    Raises
    ------
    RuntimeError
        The kernel does not tell (only Linux does).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("This kernel does not tell RssAnon")


class PeakMemory:
    """The highest `anonymous_mb` seen by a thread that looks every 20 ms.

    Attributes
    ----------
    begin, peak
        MiB, at the start and at most.
    """

    def __enter__(self) -> "PeakMemory":
        self.begin = self.peak = anonymous_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, anonymous_mb())

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """MiB that it grew by, at most."""
        return self.peak - self.begin


class Clock:
    """Wall seconds less those in which the process was suspended, and CPU seconds."""

    _suspended = 0.0

    @classmethod
    def start(cls) -> None:
        """Begin to look for suspensions."""
        threading.Thread(target=cls._watch, daemon=True).start()

    @classmethod
    def _watch(cls) -> None:
        last = time.perf_counter()
        while True:
            time.sleep(0.05)
            now = time.perf_counter()
            if now - last > SUSPENDED_S:
                cls._suspended += now - last
            last = now

    def __init__(self) -> None:
        self._wall, self._cpu = self._now()

    def _now(self) -> tuple[float, float]:
        time.sleep(0.1)  # lets the watcher see a suspension that has just ended
        return time.perf_counter() - self._suspended, time.process_time()

    def stop(self) -> np.ndarray:
        """(2,) wall and CPU seconds since this clock was made."""
        wall, cpu = self._now()
        return np.array([wall - self._wall, cpu - self._cpu])


def shown(seconds: np.ndarray) -> str:
    """What a clock says, for a person."""
    wall, cpu = seconds
    return f"{wall:.1f} s ({cpu:.1f} s of CPU)"


def tell(figures: Mapping[str, Any]) -> None:
    """Print figures as one line of JSON, the last line of a benchmark."""
    print(json.dumps(figures), flush=True)
