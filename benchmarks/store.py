"""How fast a store is written, read and opened, against plain files and other Zarr readers.

A store of 2²⁰ rows x 576 float16 (1.2 GB) on a local disk, page cache warm. Ours and the peer
take turns, and medians are given, so that whatever else the machine does meets both. About
three minutes on 2 cores; the stores are made once by ``prepare.py``.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import prepare
import tensorstore
import zarr
from measuring import tell

from actlake.storage import (
    ActivationStore,
    Lease,
    Site,
    UnitSet,
    add_sites,
    open_store,
    write_store,
    write_unit,
    writer,
)
from actlake.storage.ledger import read_shards, read_state
from actlake.storage.location import LocalFolder, locate
from actlake.storage.stored_moments import StoredMoments, largest_blocks

Read = Callable[[int, int], Any]
MEGABYTE = 1e6
GATHERED_ROWS = 4096
PEER_CHUNKS = 64  # chunk reads of the slow peers: a ninth of the store


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(rounds: int, **works: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each work, done in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def writing() -> dict[str, float]:
    """Write one site of 1.2 GB, and the same bytes to plain files that are synced."""
    with tempfile.TemporaryDirectory(prefix="actlake-write-", dir=prepare.bench_folder()) as name:
        folder = Path(name)
        prepare.lay_out_corpus(folder / "store")
        rows = prepare.synthetic_rows(0, 2**16)
        spent = {"moments": 0.0}
        measured = writer.moments_by_group

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = measured(*args, **kwargs)
            spent["moments"] += time.perf_counter() - started
            return result

        sites = iter(range(99))

        def ours() -> None:
            site = Site(next(sites))
            with Lease.acquire(locate(folder / "store")) as lease:
                store = open_store(folder / "store")
                add_sites(lease, store, {site: prepare.ROWS_ARE}, {})
                for unit in range(store.schema.num_units):
                    part = {site: rows[: len(store.schema.unit_extent(unit))]}
                    lease.ledger.commit(write_unit(store, unit, part, token=lease.token))

        store = open_store(folder / "store")

        def plain() -> None:
            place = LocalFolder(folder / "plain")
            for unit in range(store.schema.num_units):
                part = rows[: len(store.schema.unit_extent(unit))]
                place.write(f"{unit}", [part.reshape(-1).view(np.uint8)])

        def clear() -> None:  # both start from as much free memory
            shutil.rmtree(folder / "plain", ignore_errors=True)
            shutil.rmtree(folder / "store" / "rows.zarr" / "acts", ignore_errors=True)

        writer.moments_by_group = timed  # type: ignore[attr-defined]
        try:
            rounds = 5
            took = in_turn(rounds, ours=ours, clear=clear, plain=plain, clear_too=clear)
        finally:
            writer.moments_by_group = measured  # type: ignore[attr-defined]
    size = prepare.ROWS * prepare.DIM * 2 / MEGABYTE
    return {
        "write_mb_s": size / took["ours"],
        "plain_write_mb_s": size / took["plain"],
        "write_ratio": took["plain"] / took["ours"],
        "moments_share": spent["moments"] / rounds / took["ours"],
    }


def shuffled_reads(store: ActivationStore, raw: np.memmap) -> dict[str, float]:
    """Copy every chunk, in random order, into one buffer."""
    array = store[prepare.SITE]
    length = array.spec.chunk_length
    order = np.random.default_rng(1).permutation(array.num_chunks).tolist()
    buffer = np.empty((length, prepare.DIM), np.float16)

    def ours(check: bool) -> None:
        fresh = open_store(store.url)[prepare.SITE] if check else array  # checks each chunk once
        for number in order:
            rows = fresh.chunk(number, check=check)
            buffer[: len(rows)] = rows

    def memmap() -> None:
        for number in order:
            rows = raw[number * length : (number + 1) * length]
            buffer[: len(rows)] = rows

    ours(False)  # maps the files
    memmap()
    took = in_turn(9, ours=lambda: ours(False), memmap=memmap, checked=lambda: ours(True))
    size = array.shape[0] * array.spec.row_bytes / MEGABYTE
    return {
        "read_mb_s": size / took["ours"],
        "memmap_read_mb_s": size / took["memmap"],
        "checked_read_mb_s": size / took["checked"],
        "read_ratio": took["memmap"] / took["ours"],
        "checked_read_ratio": took["memmap"] / took["checked"],
    }


def gathers(store: ActivationStore, raw: np.memmap) -> dict[str, float]:
    """Gather 4,096 rows from anywhere, other rows each time."""
    array = store[prepare.SITE]
    rng = np.random.default_rng(2)
    rows = [np.zeros(0, np.int64)]

    def others() -> None:
        rows[0] = rng.integers(0, len(array), GATHERED_ROWS)

    first = seconds(lambda: array.take(rng.integers(0, len(array), GATHERED_ROWS), check=True))
    took = in_turn(
        41,
        choose=others,
        ours=lambda: array.take(rows[0]),
        memmap=lambda: raw[rows[0]],
        checked=lambda: array.take(rows[0], check=True),
    )
    return {
        "gather_ms": 1e3 * took["ours"],
        "memmap_gather_ms": 1e3 * took["memmap"],
        "checked_gather_ms": 1e3 * took["checked"],
        "first_checked_gather_ms": 1e3 * first,
        "gather_ratio": took["ours"] / took["memmap"],
    }


def peers(store: ActivationStore) -> dict[str, float]:
    """The same store through other readers; chunk reads on a ninth of it."""
    array = store[prepare.SITE]
    length, total = array.spec.chunk_length, len(array)
    order = np.random.default_rng(3).permutation(total // length)[:PEER_CHUNKS].tolist()
    rows = np.random.default_rng(4).integers(0, total, GATHERED_ROWS)
    folder = Path(store.url) / "rows.zarr" / "acts" / str(prepare.SITE)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    through_tensorstore = tensorstore.open(spec, read=True).result()
    by_zarr = zarr.open_array(folder, mode="r")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        by_zarrs = zarr.open_array(folder, mode="r")
    readers: dict[str, tuple[Read, Callable[[], Any]]] = {
        "zarr_python": (
            lambda a, b: by_zarr[a:b],
            lambda: by_zarr.get_orthogonal_selection((rows,)),
        ),
        "zarrs": (
            lambda a, b: by_zarrs[a:b],
            lambda: by_zarrs.get_orthogonal_selection((rows,)),
        ),
        "tensorstore": (
            lambda a, b: through_tensorstore[a:b].read().result(),
            lambda: through_tensorstore[rows].read().result(),
        ),
    }
    expected = array.take(rows)
    size = len(order) * length * array.spec.row_bytes / MEGABYTE
    figures = {}
    for name, (read, gather) in readers.items():
        np.testing.assert_array_equal(np.asarray(gather()), expected)
        took = in_turn(
            3,
            read=lambda read=read: [read(n * length, (n + 1) * length) for n in order],
            gather=gather,
        )
        figures[f"{name}_read_mb_s"] = size / took["read"]
        figures[f"{name}_gather_ms"] = 1e3 * took["gather"]
    return figures


def int8_rows() -> dict[str, float]:
    """The same rows as int8 and as float16: what is lost, what is saved, how fast they are read.

    Rows like a residual stream's: in the first of each context three dimensions are a thousand
    times the others.
    """
    rows = prepare.synthetic_rows(0, 2**16).astype(np.float32)
    rows[:: prepare.CONTEXT, [100, 300, 500]] *= 1000
    contexts = np.zeros((len(rows) // prepare.CONTEXT, prepare.CONTEXT), np.int32)
    how: dict[str, Any] = {"provenance": "synthetic", "nonfinite": "count"}  # float16 overflows
    with tempfile.TemporaryDirectory(prefix="actlake-int8-", dir=prepare.bench_folder()) as name:
        folder = Path(name)
        ours = write_store(folder / "8", contexts, {prepare.SITE: rows}, dtype="int8", **how)
        peer = write_store(folder / "16", contexts, {prepare.SITE: rows}, dtype="float16", **how)
        records = [read_shards(store.location, store.sites) for store in (ours, peer)]
        num_bytes = [sum(record.rows_bytes for record in of_store) for of_store in records]
        off = ours[prepare.SITE][:] - rows
        rng = np.random.default_rng(5)
        chosen = [np.zeros(0, np.int64)]

        def others() -> None:
            chosen[0] = rng.integers(0, len(rows), GATHERED_ROWS)

        took = in_turn(
            41,
            choose=others,
            int8=lambda: ours[prepare.SITE].take(chosen[0]),
            float16=lambda: peer[prepare.SITE].take(chosen[0]).astype(np.float32),
        )
    centred = rows - rows.mean(axis=0)
    lost, there = np.square(off).sum(axis=0), np.square(centred).sum(axis=0)
    return {
        "int8_fvu": float(lost.sum() / there.sum()),
        "int8_fvu_of_dimensions": float((lost / there).mean()),
        "int8_bytes_ratio": num_bytes[0] / num_bytes[1],
        "int8_gather_ratio": took["int8"] / took["float16"],
    }


def opening() -> dict[str, float]:
    """Replay a ledger of a million units."""
    location = LocalFolder(prepare.large_ledger())
    state = read_state(location)
    assert len(state.covered[prepare.SITE]) == prepare.LEDGER_UNITS
    return {
        "open_million_units_s": in_turn(9, open=lambda: read_state(location))["open"],
        "ledger_files": float(sum(1 for _ in location.list("ledger"))),
    }


def summing() -> dict[str, float]:
    """Mean and variance of a million units of `DIM` dimensions.

    Of the 10⁶ files of units and the totals of 32 and of 1024, those are laid down that are read.
    """
    folder = prepare.moments_of_a_million_units()
    units = UnitSet([(0, prepare.LEDGER_UNITS)])
    stored = StoredMoments(LocalFolder(folder), prepare.SITE, prepare.ROWS_ARE, ("train", "test"))
    assert sum(group.count for group in stored.of(units)) == 4 * prepare.LEDGER_UNITS
    return {
        "moments_million_units_s": in_turn(9, sum=lambda: stored.of(units))["sum"],
        "moments_files": float(sum(1 for _ in largest_blocks(units))),
    }


def main() -> None:
    store = open_store(prepare.synthetic_store())
    raw = np.memmap(prepare.raw_rows(), np.float16, "r", shape=(prepare.ROWS, prepare.DIM))
    f = (
        opening()
        | summing()
        | shuffled_reads(store, raw)
        | gathers(store, raw)
        | peers(store)
        | int8_rows()
        | writing()
    )
    print(
        f"""
Reading chunks of {store.chunk_rows([prepare.SITE])} rows in random order: \
{f["read_mb_s"]:,.0f} MB/s, \
numpy.memmap of one raw file {f["memmap_read_mb_s"]:,.0f}; \
{f["checked_read_mb_s"]:,.0f} with every CRC32C checked.
  Through Zarr, on a ninth of the chunks: zarr-python {f["zarr_python_read_mb_s"]:,.0f} MB/s, \
zarrs {f["zarrs_read_mb_s"]:,.0f}, tensorstore {f["tensorstore_read_mb_s"]:,.0f}; all check CRCs.
Gathering {GATHERED_ROWS:,} random rows: {f["gather_ms"]:.2f} ms, numpy.memmap \
{f["memmap_gather_ms"]:.2f} ms; {f["checked_gather_ms"]:.2f} ms with checks, once each chunk has \
been checked (the first gather, which checks nearly all of the store: \
{f["first_checked_gather_ms"]:.0f} ms).
  Through Zarr: zarr-python {f["zarr_python_gather_ms"]:,.0f} ms, zarrs \
{f["zarrs_gather_ms"]:,.0f}, tensorstore {f["tensorstore_gather_ms"]:,.0f}.
Rows as int8 in place of float16: {f["int8_bytes_ratio"]:.1%} of the bytes, FVU \
{f["int8_fvu"]:.1e} ({f["int8_fvu_of_dimensions"]:.1e} as the mean of dimensions); a gather as \
float32 takes {f["int8_gather_ratio"]:.2f} of the time.
Writing whole units, checked, summed up, synced and committed: {f["write_mb_s"]:,.0f} MB/s; \
plain files of the same bytes, synced: {f["plain_write_mb_s"]:,.0f} MB/s. \
{f["moments_share"]:.0%} of the writer's time goes into the moments.
Opening the ledger of a million units ({f["ledger_files"]:.0f} files): \
{f["open_million_units_s"] * 1e3:.0f} ms; \
summing up their moments, of {f["moments_files"]:.0f} files: \
{f["moments_million_units_s"] * 1e3:.0f} ms.
"""
    )
    tell({name: float(f"{value:.4g}") for name, value in f.items()})


if __name__ == "__main__":
    main()
