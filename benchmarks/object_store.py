"""How fast a store in a bucket is read, against plain parallel GETs from the same server.

    python benchmarks/object_store.py         # needs moto: pip install "actlake[bench]"

Starts moto's S3 server as a process of its own on this machine, writes a store of 2¹⁸ rows x 576
float16 (302 MB) into a bucket of it, and reads it in turns

    pool        an epoch of shuffled batches of 4,096 rows, every CRC checked
    ranges      the same chunks, in the same order, by plain GETs of obstore in 16 threads,
                and nothing done with them
    objects     the shard objects, each by one GET, in 16 threads

The last line is JSON. ``s3_read_ratio`` is the bytes per second of ``pool`` over those of
``ranges``, ``s3_read_ratio_objects`` over those of ``objects``: medians of interleaved rounds.
Moto reads an object whole for each range of it, which Amazon does not, so the objects are kept
small (four chunks) and the second ratio says less. Exit status 1 when the bar is missed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import obstore
from measuring import tell

from actlake.storage import (
    Context,
    Document,
    Lease,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    add_sites,
    open_store,
    plan_geometry,
    write_unit,
)
from actlake.storage.ahead import REQUESTS_AT_ONCE
from actlake.storage.location import locate
from actlake.storage.reading.mixing import ChunkMap, MixingPlan

SITE = Site(9)
DIM = 576
ROWS = 2**18
CONTEXT = 1024
UNIT_ROWS = 2**13
BATCH = 4096
POOL_ROWS = 2**15
URL = "s3://benchmark/store"
BAR = 0.8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with moto_server():
        write_MBps = make_store(URL)
        runs = measure(options.rounds)
    rates = {name: statistics.median(seen) for name, seen in runs.items()}
    result = {
        "s3_read_ratio": round(ratio(runs, "pool", "ranges"), 3),
        "s3_read_ratio_objects": round(ratio(runs, "pool", "objects"), 3),
        "s3_read_MBps": round(rates["pool"]),
        "s3_plain_ranges_MBps": round(rates["ranges"]),
        "s3_plain_objects_MBps": round(rates["objects"]),
        "s3_write_MBps": round(write_MBps),
    }
    tell(result)
    return 0 if result["s3_read_ratio"] >= BAR else 1


def ratio(runs: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Median of the rounds' own ratios: each round has the same weather."""
    return statistics.median(a / b for a, b in zip(runs[ours], runs[theirs], strict=True))


def measure(rounds: int) -> dict[str, list[float]]:
    """Megabytes a second of each way, round by round; the first round is not counted."""
    store = open_store(URL)
    ways: dict[str, Callable[[], int]] = {
        "pool": lambda: read_batches(),
        "ranges": lambda: get_ranges(chunk_ranges()),
        "objects": lambda: get_objects(store.schema.num_units),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, read in ways.items():
            began = time.perf_counter()
            num_bytes = read()
            rate = num_bytes / (time.perf_counter() - began) / 1e6
            if number:
                seen[name].append(rate)
        print({name: round(rates[-1]) for name, rates in seen.items() if rates}, file=sys.stderr)
    return seen


def read_batches() -> int:
    rows = 0
    batches = open_store(URL).batches(
        SITE, BATCH, shuffle="pool", pool_rows=POOL_ROWS, exclude=None, epochs=1
    )
    with batches:
        for batch in batches:
            rows += len(batch)
    assert rows == ROWS, rows
    return rows * DIM * 2


def chunk_ranges() -> list[tuple[str, int, int]]:
    """The chunks as the pool reads them: key, first byte, end."""
    store = open_store(URL)
    batches = store.batches(SITE, BATCH, shuffle="pool", pool_rows=POOL_ROWS, exclude=None)
    counts = ChunkMap(batches.stores, batches.selected, [SITE]).counts
    plan = MixingPlan(counts, pool_rows=POOL_ROWS, seed=0, epoch=0)
    spec = store.spec(SITE)
    places = [divmod(int(chunk), spec.chunks_per_shard) for chunk in plan.chunks]
    return [
        (spec.shard_key(shard), inner * spec.chunk_stride, (inner + 1) * spec.chunk_stride)
        for shard, inner in places
    ]


def get_ranges(ranges: list[tuple[str, int, int]]) -> int:
    client = locate(URL)._reads  # type: ignore[attr-defined]

    def get(place: tuple[str, int, int]) -> int:
        key, start, stop = place
        return len(obstore.get_range(client, key, start=start, end=stop))

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as executor:
        return sum(executor.map(get, ranges))


def get_objects(num_units: int) -> int:
    client = locate(URL)._reads  # type: ignore[attr-defined]
    spec = open_store(URL).spec(SITE)

    def get(unit: int) -> int:
        return len(obstore.get(client, spec.shard_key(unit)).bytes())

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as executor:
        return sum(executor.map(get, range(num_units)))


def make_store(url: str) -> float:
    """Random activations; megabytes of them written a second, statistics and commits included."""
    request = StoreRequest(layout="packed", context_length=CONTEXT, splits=("train",))
    rng = np.random.default_rng(0)
    with Lease.acquire(locate(url)) as lease:
        with StoreBuilder(lease, request, Provenance(model={"name": "random"})) as builder:
            for number in range(ROWS // CONTEXT):
                builder.add_document(Document(str(number), "made", "train"))
                ids = rng.integers(0, 50_000, CONTEXT)
                places = np.arange(CONTEXT)
                builder.add_context(Context(ids, np.full(CONTEXT, number), places, "train"))
            builder.finish(
                partial(
                    plan_geometry,
                    row_bytes=2 * DIM,
                    context_length=CONTEXT,
                    unit_rows_at_most=UNIT_ROWS,
                )
            )
        store = open_store(url)
        add_sites(lease, store, {SITE: SiteSchema(dim=DIM, dtype="float16")}, {})
        store.refresh()
        spent = 0.0
        for unit in range(store.schema.num_units):
            shape = (len(store.schema.unit_extent(unit)), DIM)
            values = rng.standard_normal(shape, dtype=np.float32).astype(np.float16)
            began = time.perf_counter()
            lease.ledger.commit(write_unit(store, unit, {SITE: values}, token=lease.token))
            spent += time.perf_counter() - began
    return ROWS * DIM * 2 / spent / 1e6


@contextmanager
def moto_server() -> Iterator[None]:
    """A bucket on this machine, and the environment to reach it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while "Running on " not in (text := log.read_text()):
                assert process.poll() is None, text
                time.sleep(0.05)
            server = text.partition("Running on ")[2].split()[0]
            os.environ |= {
                "AWS_ENDPOINT_URL": server,
                "AWS_ACCESS_KEY_ID": "benchmark",
                "AWS_SECRET_ACCESS_KEY": "benchmark",
                "AWS_REGION": "us-east-1",
            }
            urlopen(Request(f"{server}/benchmark", method="PUT"), timeout=30).close()
            yield
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
