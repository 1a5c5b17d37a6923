"""Fill a store with several processes, kill them at random moments, and start them again.

Used by ``benchmarks/kills.py`` and by the test suite. The driver and its writers are separate
processes, and die by SIGKILL. Writing is slowed down after each file, so that most kills come
between a unit's first file and its ledger record; only the product's own code decides what
survives.
"""

import itertools
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from actlake.storage import (
    ActivationStore,
    Context,
    Document,
    Extent,
    Geometry,
    Lease,
    Provenance,
    Site,
    StoreBuilder,
    StoreRequest,
    Token,
    add_sites,
    open_store,
    write_unit,
)
from actlake.storage.layout import MANIFEST
from actlake.storage.location import STAGING, LocalFolder

SITES = (Site(1), Site(2, "mlp_out"))
NUM_ROWS = 1000  # with units of 96 rows: ten full units and a partial one
NUM_WRITERS = 2
OF_THE_RUN = ("ledger", "log", STAGING)  # who did what, when: not what the store holds


@dataclass(frozen=True)
class Killed:
    """What one kill has met."""

    interrupted_units: int
    """Units of which it wrote some file, but not the ledger record of a site."""
    finished: bool
    """The driver was done before the kill came."""


class SlowFolder(LocalFolder):
    """Sleeps after each file of the arrays, as a disk under load does."""

    def __init__(self, root: Path, *, pause_s: float) -> None:
        super().__init__(root, staging=STAGING)
        self._pause_s = pause_s

    def write(self, key: str, parts: Any) -> None:
        super().write(key, parts)
        if key.startswith("rows.zarr/"):
            time.sleep(self._pause_s)


def fill(folder: Path, *, pause_s: float = 0.0, pids: Connection | None = None) -> None:
    """The driver: begin the store or go on with it, and fill it to the end."""
    fork = multiprocessing.get_context("fork")
    pipes, writers = [], []
    for _ in range(NUM_WRITERS):
        ours, theirs = fork.Pipe()
        writer = fork.Process(target=_write_units, args=(folder, pause_s, theirs, [*pipes, ours]))
        writer.start()
        theirs.close()
        pipes.append(ours)
        writers.append(writer)
    if pids is not None:
        pids.send([writer.pid for writer in writers])
    location = SlowFolder(folder, pause_s=pause_s / 8)
    with Lease.acquire(location, give_up_s=5) as lease:
        if location.size(MANIFEST) is None:
            _lay_out(lease)
        store = open_store(location)
        add_sites(lease, store, SITES, {})
        _hand_out(lease, store.refresh(), pipes)
        lease.ledger.merge_all()
    for pipe in pipes:
        pipe.close()
    for writer in writers:
        writer.join()


def _hand_out(lease: Lease, store: ActivationStore, pipes: list[Connection]) -> None:
    """Give each idle writer the next missing unit; what a dead one had is given again."""
    waiting = list(store.committed().missing(store.schema.num_units))
    busy: dict[Connection, int] = {}
    idle = list(pipes)
    while waiting or busy:
        while waiting and idle:
            pipe, unit = idle.pop(), waiting.pop(0)
            try:
                pipe.send((unit, lease.token))
                busy[pipe] = unit
            except OSError:
                waiting.insert(0, unit)
        if not busy:  # all writers are dead: the driver does the rest itself
            unit = waiting.pop(0)
            lease.ledger.commit(_write(store, unit, lease.token))
        for pipe in wait(list(busy)):
            unit = busy.pop(pipe)
            try:
                records = pipe.recv()
            except (EOFError, OSError):
                waiting.insert(0, unit)
                continue
            lease.ledger.commit(records)
            idle.append(pipe)


def _write_units(folder: Path, pause_s: float, pipe: Connection, others: list[Connection]) -> None:
    for other in others:  # inherited by the fork; kept open they would hide the driver's death
        other.close()
    store: ActivationStore | None = None
    while True:
        try:
            unit, token = pipe.recv()
            if store is None:
                store = open_store(SlowFolder(folder, pause_s=pause_s))
            pipe.send(_write(store, unit, token))
        except (EOFError, OSError):  # the driver is dead
            return


def _write(store: ActivationStore, unit: int, token: Token) -> Any:
    rows = activations(store, store.schema.unit_extent(unit))
    return write_unit(store, unit, rows, token=token)


def activations(store: ActivationStore, rows: Extent) -> dict[Site, np.ndarray]:
    """What a toy model says of these rows: each depends on all of its context before it."""
    contexts = store.contexts_of(rows)
    starts = store.contexts["start"].read(contexts.start, contexts.stop + 1)
    found = []
    for start, stop in itertools.pairwise(starts):
        ids = store.tokens["id"].read(int(start), int(min(stop, rows.stop)))
        states = np.cumsum(np.sin(np.outer(ids + 1, np.arange(1, store.schema.dim + 1))), axis=0)
        found.append(states[max(0, rows.start - int(start)) :])
    joined = np.concatenate(found)
    return {site: (joined * (site.layer + 1)).astype(np.float16) for site in SITES}


def _lay_out(lease: Lease) -> None:
    rng = np.random.default_rng(0)
    request = StoreRequest(
        dim=12,
        dtype="float16",
        layout="documents",
        context_length=64,
        splits=("train", "test"),
        special_ids=(0,),
    )
    provenance = Provenance(model={"name": "toy"})
    with StoreBuilder(lease, request, provenance, token_chunk_rows=128, token_shard_rows=256) as b:
        while b.rows < NUM_ROWS:  # contexts of any length straddle units
            n = min(int(rng.integers(1, 64)), NUM_ROWS - b.rows)
            split = ("train", "test")[int(rng.integers(0, 2))]
            document = b.add_document(Document(f"{b.rows}", "made", split, "x" * n))
            ids = rng.integers(0, 99, n).astype(np.int32)
            b.add_context(Context(ids, np.full(n, document), np.arange(n, dtype=np.int32), split))
        b.finish(lambda rows: Geometry(chunk_rows=32, unit_rows=96))


def kill_once(folder: Path, rng: np.random.Generator, *, pause_s: float) -> Killed:
    """Start a driver on the store, kill it or one of its writers, and look at what it left."""
    started = time.time()
    ours, theirs = _SPAWNED.Pipe()
    driver = _SPAWNED.Process(
        target=fill, args=(folder,), kwargs={"pause_s": pause_s, "pids": theirs}
    )
    driver.start()
    theirs.close()
    writers = ours.recv()
    kills_a_writer = rng.random() < 0.25
    if rng.random() < 0.8:  # most kills come while units are being written
        while driver.exitcode is None and not _files_of_units(folder, since=started):
            driver.join(pause_s / 4)
    driver.join(float(rng.exponential(15 * pause_s)))  # a unit takes about ten pauses
    if driver.exitcode is not None:
        assert driver.exitcode == 0, driver.exitcode
        return Killed(0, True)
    if kills_a_writer:
        _kill(int(rng.choice(writers)))
        driver.join(float(rng.exponential(6 * pause_s)))
    _kill(driver.pid)
    driver.join()
    return Killed(interrupted_units(folder, since=started), False)


def finish(folder: Path) -> None:
    """Fill what is left, undisturbed, in a process of its own."""
    driver = _SPAWNED.Process(target=fill, args=(folder,))
    driver.start()
    driver.join()
    assert driver.exitcode == 0, driver.exitcode


def interrupted_units(folder: Path, *, since: float) -> int:
    """How many units have a file that was written since then, and a site without its record."""
    if not (folder / MANIFEST).is_file():
        return 0
    store = open_store(folder)
    names = {str(site): site for site in SITES}
    touched = set()
    for path in _files_of_units(folder, since=since):
        site = path.relative_to(folder / "rows.zarr").parts[1]
        unit = int(path.name.split(".")[1])
        if unit not in store.ledger.covered[names[site]]:
            touched.add(unit)
    return len(touched)


def _files_of_units(folder: Path, *, since: float) -> list[Path]:
    return [
        path
        for kind in ("acts", "moments")
        for path in (folder / "rows.zarr" / kind).glob("*/**/c.*")
        if path.stat().st_mtime > since
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """All files that must be equal byte for byte: arrays, Parquet, schema."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in OF_THE_RUN
    }


def _kill(pid: int | None) -> None:
    assert pid is not None
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# A fork server starts a driver in milliseconds, from a process that has only imported.
_SPAWNED = multiprocessing.get_context("forkserver")
_SPAWNED.set_forkserver_preload(["killing"])
