"""What the drivers do that ``benchmarks/kills.py`` kills and suspends.

Each program is started again until it has ended by itself. Writing is slowed down after each file,
so that most kills come between a unit's first file and its ledger record; only the product's own
code decides what survives.
"""

import itertools
import multiprocessing
import shutil
import time
from collections.abc import Callable
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
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    Token,
    add_sites,
    export_store,
    open_store,
    verify,
    write_unit,
)
from actlake.storage.clock import SystemClock
from actlake.storage.errors import LeaseLost
from actlake.storage.fence import FolderWriter, Writer
from actlake.storage.lease import GIVE_UP_S
from actlake.storage.location import LocalFolder
from actlake.storage.repair import restore_shards
from actlake.storage.stored_moments import sum_up
from actlake.storage.writer import free_missing

SITES = (Site(1), Site(2, "mlp_out"))
ADDED = (Site(4), Site(3, "attn_out"))
NUM_ROWS = 1000  # with units of 96 rows: ten full units and a partial one
NUM_WRITERS = 2


@dataclass(frozen=True)
class Pace:
    """How fast everything goes."""

    pause_s: float = 0.0
    """After each file of a unit; the driver's own files take an eighth of it."""
    lease_s: float = GIVE_UP_S
    """A silent driver is given up after so long."""


class HurriedClock(SystemClock):
    """The machine's clock, `times` as fast: leases beat and are given up the sooner."""

    def __init__(self, times: float) -> None:
        self._times = times

    def now(self) -> float:
        return super().now() * self._times

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds / self._times)

    def repeat(self, deed: Callable[[], bool], *, every_s: float) -> Callable[[], None]:
        return super().repeat(deed, every_s=every_s / self._times)


class SlowFolder(LocalFolder):
    """Sleeps after each file of the arrays, as a disk under load does."""

    def __init__(self, root: Path, pace: Pace, *, pause_s: float) -> None:
        super().__init__(root)
        self.clock = HurriedClock(GIVE_UP_S / pace.lease_s)
        self.pause_s = pause_s

    def writer(self, token: Token) -> Writer:
        return SlowWriter(self, token)


class SlowWriter(FolderWriter):
    """Sleeps for its folder."""

    def __init__(self, folder: SlowFolder, token: Token) -> None:
        super().__init__(folder.root, token)
        self._pause_s = folder.pause_s

    def ensure(self, key: str, parts: Any) -> None:
        super().ensure(key, parts)
        self._pause(key)

    def replace(self, key: str, parts: Any, *, seen: str | None = None) -> str:
        tag = super().replace(key, parts, seen=seen)
        self._pause(key)
        return tag

    def _pause(self, key: str) -> None:
        if key.startswith("rows.zarr/"):
            time.sleep(self._pause_s)


def write(folder: Path, pace: Pace, pids: Connection | None = None) -> None:
    """Lay a corpus down and fill it, with two writers: processes of their own."""
    _fill(folder, SITES, pace, pids)


def add(folder: Path, pace: Pace, pids: Connection | None = None) -> None:
    """Add two sites to a store that has two."""
    _fill(folder, (*SITES, *ADDED), pace, pids)


def repair(folder: Path, pace: Pace, pids: Connection | None = None) -> None:
    """Write damaged shards of a finished store again."""
    if pids is not None:
        pids.send([])
    location = SlowFolder(folder, pace, pause_s=pace.pause_s)
    store = open_store(location)
    damaged = [damage.record for damage in verify(store).damaged]
    with Lease.acquire(location) as lease:
        lost = restore_shards(
            lease,
            store,
            damaged,
            lambda record: activations(store, store.schema.unit_extent(record.unit))[record.site],
        )
    assert not lost, lost


def export(folder: Path, pace: Pace, pids: Connection | None = None) -> None:
    """Copy a finished store, which lies beside the folder, into a new one."""
    if pids is not None:
        pids.send([])
    parent = open_store(folder.with_name("finished"))
    export_store(parent, SlowFolder(folder, pace, pause_s=pace.pause_s / 2), splits=["train"])


PROGRAMS = {program.__name__: program for program in (write, add, repair, export)}


def prepare(name: str, folder: Path, rng: np.random.Generator) -> None:
    """What a program finds when it is started for the first time."""
    if name in ("add", "repair"):
        shutil.copytree(folder.with_name("finished"), folder)
    if name == "repair":
        files = sorted((folder / "rows.zarr/acts").glob("*/c.*"))
        for path in rng.choice(np.array(files), size=12, replace=False):
            spoil(path, rng)


def spoil(path: Path, rng: np.random.Generator) -> None:
    """Turn one bit of a file over, as a disk does in its old age."""
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def _fill(folder: Path, sites: tuple[Site, ...], pace: Pace, pids: Connection | None) -> None:
    fork = multiprocessing.get_context("fork")
    pipes, writers = [], []
    for _ in range(NUM_WRITERS):
        ours, theirs = fork.Pipe()
        writer = fork.Process(target=_write_units, args=(folder, pace, theirs, [*pipes, ours]))
        writer.start()
        theirs.close()
        pipes.append(ours)
        writers.append(writer)
    if pids is not None:
        pids.send([writer.pid for writer in writers])
    location = SlowFolder(folder, pace, pause_s=pace.pause_s / 8)
    with Lease.acquire(location) as lease:
        if not lease.ledger.state.corpora:
            _lay_out(lease)
        store = open_store(location)
        add_sites(lease, store, dict.fromkeys(sites, SiteSchema(dim=12, dtype="float16")), {})
        free_missing(lease, store, sites)
        _hand_out(lease, store.refresh(), sites, pipes)
        sum_up(lease, sites)
        lease.ledger.merge_all()
    for pipe in pipes:
        pipe.close()
    for writer in writers:
        writer.join()


def _hand_out(
    lease: Lease, store: ActivationStore, sites: tuple[Site, ...], pipes: list[Connection]
) -> None:
    """Give each idle writer the next missing unit; what a dead one had is given again."""
    waiting = list(store.schema.units.without(store.committed(sites)))
    busy: dict[Connection, int] = {}
    idle = list(pipes)
    while waiting or busy:
        while waiting and idle:
            pipe, unit = idle.pop(), waiting.pop(0)
            try:
                pipe.send((unit, _lacking(lease, sites, unit), lease.token))
                busy[pipe] = unit
            except OSError:
                waiting.insert(0, unit)
        if not busy:  # all writers are dead: the driver does the rest itself
            unit = waiting.pop(0)
            lease.ledger.commit(_write(store, unit, _lacking(lease, sites, unit), lease.token))
        for pipe in wait(list(busy)):
            unit = busy.pop(pipe)
            try:
                records = pipe.recv()
            except (EOFError, OSError):
                waiting.insert(0, unit)
                continue
            lease.ledger.commit(records)
            idle.append(pipe)


def _lacking(lease: Lease, sites: tuple[Site, ...], unit: int) -> tuple[Site, ...]:
    return tuple(site for site in sites if unit not in lease.ledger.state.covered[site])


def _write_units(folder: Path, pace: Pace, pipe: Connection, others: list[Connection]) -> None:
    for other in others:  # inherited by the fork; kept open they would hide the driver's death
        other.close()
    store: ActivationStore | None = None
    while True:
        try:
            unit, sites, token = pipe.recv()
            if store is None:
                store = open_store(SlowFolder(folder, pace, pause_s=pace.pause_s))
            pipe.send(_write(store, unit, sites, token))
        except (EOFError, OSError, LeaseLost):  # the driver is dead, or was taken over
            return


def _write(store: ActivationStore, unit: int, sites: tuple[Site, ...], token: Token) -> Any:
    said = activations(store, store.schema.unit_extent(unit))
    return write_unit(store, unit, {site: said[site] for site in sites}, token=token)


def activations(store: ActivationStore, rows: Extent) -> dict[Site, np.ndarray]:
    """What a toy model says of these rows: each depends on all of its context before it."""
    contexts = store.contexts_of(rows)
    starts = store.contexts["start"].read(contexts.start, contexts.stop + 1)
    found = []
    for start, stop in itertools.pairwise(starts):
        ids = store.tokens["id"].read(int(start), int(min(stop, rows.stop)))
        states = np.cumsum(np.sin(np.outer(ids + 1, np.arange(1, 12 + 1))), axis=0)
        found.append(states[max(0, rows.start - int(start)) :])
    joined = np.concatenate(found)
    return {site: (joined * (site.layer + 1)).astype(np.float16) for site in (*SITES, *ADDED)}


def _lay_out(lease: Lease) -> None:
    rng = np.random.default_rng(0)
    request = StoreRequest(
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
        b.finish(lambda rows: Geometry(unit_rows=96, chunk_bytes=32 * 12 * 2))
