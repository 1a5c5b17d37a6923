"""The processes of an embedded cluster, none of which may outlive it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

_DIES_WITHIN_S = 5.0


class ClusterProcesses:
    """What runs of the cluster that this process has started with a temporary folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._seen: set[psutil.Process] = set()

    def look(self) -> None:
        """Remember what runs now. Once a parent is dead its children are found no more."""
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it has ended meanwhile
                if self._is_ray(child.cmdline()):
                    self._seen.update([child, *child.children(recursive=True)])

    def kill(self) -> None:
        """Kill what is left of it, and wait until it is dead."""
        self.look()
        left = [process for process in self._seen if process.is_running()]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(left, timeout=_DIES_WITHIN_S)
        for process in alive:
            logger.warning("Process %d of Ray does not end, although it was killed", process.pid)

    def _is_ray(self, words: list[str]) -> bool:
        # Ray's Python programs replace their command line by a title.
        return any(self._folder in word or word.startswith("ray::") for word in words)


@contextmanager
def ends_with(folder: Path) -> Iterator[ClusterProcesses]:
    """Kill at the end of the block whatever still runs of the cluster that it has started.

    Ray ends its processes at ``ray.shutdown`` and when Python exits. Of a start or an end that
    Ctrl-C interrupts two agents are left, for good, and what Python's exit would end makes files
    in `folder` again after its owner has removed it.
    """
    processes = ClusterProcesses(folder)
    try:
        yield processes
    finally:
        processes.kill()
