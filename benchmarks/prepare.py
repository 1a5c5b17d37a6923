"""Make the stores that benchmarks read, once, outside the tree.

They lie in ``$ACTLAKE_BENCH``, or ``~/.cache/actlake/bench``. Removing the folder is safe.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from actlake.storage import (
    Context,
    Document,
    Lease,
    Moments,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    UnitSet,
    add_sites,
    open_store,
    plan_geometry,
    write_unit,
)
from actlake.storage.fence import Token
from actlake.storage.ledger import LedgerWriter, read_state
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.location import LocalFolder, locate
from actlake.storage.moments_file import encode_moments
from actlake.storage.stored_moments import largest_blocks

SITE = Site(9)
ROWS = 2**20
DIM = 576
ROWS_ARE = SiteSchema(dim=DIM, dtype="float16")
CONTEXT = 128
LEDGER_UNITS = 10**6


def bench_folder() -> Path:
    """Where benchmarks keep what they read."""
    chosen = os.environ.get("ACTLAKE_BENCH")
    return Path(chosen) if chosen else Path.home() / ".cache" / "actlake" / "bench"


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name, made by `make` where it is not there yet."""
    folder = bench_folder() / name
    if not folder.is_dir():
        print(f"Making {folder} …", flush=True)
        unfinished = folder.with_name(f"{name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def synthetic_rows(start: int, stop: int) -> np.ndarray:
    """Rows like a residual stream's, (stop - start, DIM) float16; the same in every run."""
    values = np.random.default_rng(start).standard_normal((stop - start, DIM), dtype=np.float32)
    return (values * np.linspace(0.5, 20, DIM, dtype=np.float32)).astype(np.float16)


def lay_out_corpus(folder: Path) -> None:
    """The tokens of ROWS rows in contexts of CONTEXT, without activations."""
    request = StoreRequest(
        layout="packed",
        context_length=CONTEXT,
        splits=("train", "test"),
        special_ids=(0,),
    )
    rng = np.random.default_rng(0)
    with (
        Lease.acquire(locate(folder)) as lease,
        StoreBuilder(lease, request, Provenance(model={"name": "synthetic"})) as builder,
    ):
        for number in range(ROWS // CONTEXT):
            split = "test" if number % 10 == 9 else "train"
            document = builder.add_document(Document(f"{number}", "synthetic", split))
            builder.add_context(
                Context(
                    rng.integers(0, 50_000, CONTEXT).astype(np.int32),
                    np.full(CONTEXT, document),
                    np.arange(CONTEXT, dtype=np.int32),
                    split,
                )
            )
        builder.finish(partial(plan_geometry, row_bytes=2 * DIM, context_length=CONTEXT))


def synthetic_store() -> Path:
    """A store of ROWS x DIM float16 (1.2 GB), with the same rows in ``../synthetic.raw``."""
    folder = once("synthetic-5", _synthetic_store)
    raw = raw_rows()
    if not raw.is_file() or raw.stat().st_size != ROWS * DIM * 2:
        rows = open_store(folder)[SITE]
        with raw.open("wb") as file:
            for number in range(rows.num_chunks):
                file.write(rows.chunk(number).tobytes())
    return folder


def raw_rows() -> Path:
    """The rows of the synthetic store, one after the other."""
    return bench_folder() / "synthetic-1.raw"


def _synthetic_store(folder: Path) -> None:
    lay_out_corpus(folder)
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        add_sites(lease, store, {SITE: ROWS_ARE}, {})
        for unit in range(store.schema.num_units):
            extent = store.schema.unit_extent(unit)
            rows = {SITE: synthetic_rows(extent.start, extent.stop)}
            lease.ledger.commit(write_unit(store, unit, rows, token=lease.token))


def large_ledger() -> Path:
    """A ledger of LEDGER_UNITS units in a thousand commits, merged as it goes."""
    return once("ledger-3", _large_ledger)


def _large_ledger(folder: Path) -> None:
    location = LocalFolder(folder)
    writer = location.writer(Token(1, "0"))
    writer.begin()
    ledger = LedgerWriter(location, writer, read_state(location))
    ledger.append({"kind": "open", "epoch": 1, "owner": {}})
    entry = {"name": str(SITE), "schema": ROWS_ARE.as_json()}
    ledger.append({"kind": "sites", "sites": [entry], "request": {}})
    for first in range(0, LEDGER_UNITS, 1000):
        ledger.commit(
            ShardRecord(SITE, unit, 75_000_000, unit * 7919 % 2**32, 20_000, unit * 31 % 2**32)
            for unit in range(first, first + 1000)
        )
    writer.end()


def moments_of_a_million_units() -> Path:
    """Those files of moments of LEDGER_UNITS units that are read to sum them up."""
    return once("moments-1", _moments_of_a_million_units)


def _moments_of_a_million_units(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for block in largest_blocks(UnitSet([(0, LEDGER_UNITS)])):
        groups = [
            Moments(block.units, rng.normal(size=DIM), rng.random(DIM), 1e3) for _ in range(4)
        ]
        path = folder / block.key(SITE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_moments(SITE, block, ("train", "test"), groups))


def main() -> None:
    """Make everything."""
    synthetic_store()
    large_ledger()
    moments_of_a_million_units()


if __name__ == "__main__":
    main()
