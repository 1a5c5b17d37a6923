"""Start a driver, kill or suspend it at a random moment, and look at what it left.

Used by ``benchmarks/kills.py``. Drivers and their writers are separate processes; what they do is
in ``benchmarks/kill_programs.py``.
"""

import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from kill_programs import PROGRAMS, Pace

from actlake.storage import Site, open_store
from actlake.storage.errors import LeaseLost, StoreLocked, StoreNotFound
from actlake.storage.fence import LEFTOVERS, STAGING

OF_THE_RUN = ("ledger", "log", STAGING, LEFTOVERS)  # who did what, when: not what the store holds
_REFUSED = 3
"""Exit status of a driver that found itself taken over."""


@dataclass
class Trial:
    """One store, from its program's first start to its end."""

    program: str
    folder: Path
    pace: Pace
    kills: int = 0
    stops: int = 0
    refused: int = 0
    """Suspended drivers that woke up, were refused, and ended with an error that says so."""
    interrupted_units: int = 0
    """Units of which a killed or suspended driver had written some file, but not the record."""
    lost_units: int = 0
    """Units of a site that were committed once, and are not any more."""
    _committed: set[tuple[Site, int]] = field(default_factory=set)

    def kill_once(self, rng: np.random.Generator) -> bool:
        """Start the program and kill it, or first one of its writers; whether it had ended."""
        started = time.time()
        driver, writers = self._start()
        if not self._await_a_moment(driver, rng, started):
            return True
        if writers and rng.random() < 0.25:
            _signal(int(rng.choice(writers)), signal.SIGKILL)
            driver.join(float(rng.exponential(6 * self.pace.pause_s)))
        _signal(driver.pid, signal.SIGKILL)
        driver.join()
        self.kills += 1
        self._look(started)
        return False

    def stop_once(self, rng: np.random.Generator) -> bool:
        """Suspend the program and its writers, let another end it, and let the first go on."""
        started = time.time()
        driver, writers = self._start()
        if not self._await_a_moment(driver, rng, started):
            return True
        whose = [driver.pid, *writers]
        for pid in whose:
            _signal(pid, signal.SIGSTOP)
        self.stops += 1
        self._look(started)
        self.finish()
        taken_over = contents(self.folder)
        for pid in reversed(whose):
            _signal(pid, signal.SIGCONT)
        driver.join()
        assert driver.exitcode in (0, _REFUSED), driver.exitcode
        self.refused += driver.exitcode == _REFUSED
        assert contents(self.folder) == taken_over, "the suspended driver has changed the store"
        self._look(started)
        return True

    def finish(self) -> None:
        """Let the program end, undisturbed."""
        driver, _ = self._start(Pace(lease_s=self.pace.lease_s))
        driver.join()
        assert driver.exitcode == 0, (self.program, driver.exitcode)
        self._look(time.time())

    def _start(self, pace: Pace | None = None) -> tuple[multiprocessing.Process, list[int]]:
        ours, theirs = _SPAWNED.Pipe()
        driver = _SPAWNED.Process(
            target=_drive, args=(self.program, self.folder, pace or self.pace, theirs)
        )
        driver.start()
        theirs.close()
        return driver, ours.recv()

    def _await_a_moment(
        self, driver: multiprocessing.Process, rng: np.random.Generator, started: float
    ) -> bool:
        """Wait for a random moment; False where the driver has ended before."""
        pause = self.pace.pause_s
        patterns = {True: "tokens/**/c.*", False: "acts/**/c.*"}
        if rng.random() < 0.8:  # most come while units are written, or a corpus is laid down
            lays_out = not (self.folder / "store.json").is_file() and rng.random() < 0.4
            while driver.exitcode is None and not self._written(patterns[lays_out], started):
                driver.join(pause / 4)
        driver.join(float(rng.exponential(15 * pause)))  # a unit takes about ten pauses
        assert driver.exitcode in (None, 0), (self.program, driver.exitcode)
        return driver.exitcode is None

    def _written(self, pattern: str, since: float) -> list[Path]:
        found = []
        for path in (self.folder / "rows.zarr").glob(pattern):
            with suppress(FileNotFoundError):  # a driver has taken it away meanwhile
                if path.stat().st_mtime > since:
                    found.append(path)
        return found

    def _look(self, since: float) -> None:
        """Count what is interrupted now, and what was committed and is not any more."""
        try:
            store = open_store(self.folder)
        except StoreNotFound:
            self.lost_units += len(self._committed)
            return
        now = {(site, unit) for site in store.sites for unit in store.ledger.covered[site]}
        self.lost_units += len(self._committed - now)
        self._committed |= now
        names = {str(site): site for site in store.sites}
        written = self._written("acts/**/c.*", since) + self._written("norms/**/c.*", since)
        shards = [(path.parts[-2], int(path.name.split(".")[1])) for path in written]
        shards += [
            (path.parts[-4], int(path.stem))
            for path in self._written("../moments/*/1/*/*.safetensors", since)
        ]
        self.interrupted_units += len(
            {unit for name, unit in shards if unit not in store.ledger.covered[names[name]]}
        )


def contents(folder: Path) -> dict[str, bytes]:
    """All files that must be equal byte for byte: arrays, Parquet, schema."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in OF_THE_RUN
    }


def _drive(program: str, folder: Path, pace: Pace, pids: Connection) -> None:
    try:
        PROGRAMS[program](folder, pace, pids)
    except (LeaseLost, StoreLocked):  # the latter where it slept before it had the lease
        os._exit(_REFUSED)  # its writers may wait for it, and Python would wait for them
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _signal(pid: int | None, number: signal.Signals) -> None:
    assert pid is not None
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


# A fork server starts a driver in milliseconds, from a process that has only imported.
_SPAWNED = multiprocessing.get_context("forkserver")
_SPAWNED.set_forkserver_preload(["killing"])
