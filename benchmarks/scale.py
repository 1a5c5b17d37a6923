"""What large models and 10^12 rows would take: arithmetic on constants, and the driver simulated.

Paper: tokens/s, bytes/s, cost per billion tokens and the break-even of storing against
recomputing, for models of 8, 70 and 405 billion parameters on the hardware assumed below.
docs/design/006-scale.md says where each constant comes from.

Simulation: the real `Schedule` deals units to fake workers (a thousand replicas of two stages
that answer in random order, one in a thousand units losing its replica), and the real `Commits`
does with their receipts what a harvest's driver does: ledger, tally, `status.json`, progress and
`metrics.jsonl`, at the end of a ledger of 10^3 and 10^6 units, and of as many as 10^12 rows of
these models are. Not in it: Ray (`driver_ms_per_unit` of pipeline.py has it) and W&B. The older
part of the ledger is laid down as the merged segments that committing would have left, without
the tables that nothing here reads. Merging is measured on tables of real size, and summing up
moments on files of real size: the simulated units have none.

    python benchmarks/scale.py            some minutes; status 1 if at any size a unit takes the
                                          driver 2 ms, or memory grows by 16 MiB
"""

import gc
import io
import logging
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import anonymous_mb, tell
from rich.console import Console

from actlake.jobs.harvest import commits as commits_module
from actlake.jobs.harvest.commits import Commits
from actlake.jobs.harvest.metering import StageUse
from actlake.jobs.harvest.progress import HarvestProgress, Tally
from actlake.jobs.harvest.worker import UnitReceipt
from actlake.platform.cluster import UnitTiming
from actlake.platform.cluster.schedule import Attempt, Schedule
from actlake.platform.tracking import TrackingConfig, open_tracker
from actlake.storage import Lease, Moments, Site, SiteSchema
from actlake.storage import ledger as ledgers
from actlake.storage.extents import UnitSet
from actlake.storage.fence import Token
from actlake.storage.ledger import FAN_OUT, LedgerWriter, read_state
from actlake.storage.ledger_entries import entry_key, table_key
from actlake.storage.ledger_records import TABLE, ShardRecord, table_bytes
from actlake.storage.location import LocalFolder
from actlake.storage.moments_file import Block, encode_moments
from actlake.storage.sealed import crc32c, seal
from actlake.storage.stored_moments import StoredMoments

BAR_MS = 2.0
BAR_MB = 16.0
SITES = 3
REPLICAS = 1000
IN_FLIGHT = 3
SIMULATED = 2000
WARM_UP = 3000
LOSS = 0.001
SHARD_BYTES = 128 * 2**20
NUMERICS = {
    "torch": "2.13.0+cu130", "transformers": "5.3.0", "device": "cuda", "hardware": "NVIDIA H100",
    "dtype": "bfloat16", "attention": "sdpa", "threads": 0, "batch_tokens": 16_384,
}  # fmt: skip

# Assumptions, each named in docs/design/006-scale.md.
GPU_FLOPS = 989e12  # H100 SXM, bfloat16, dense: NVIDIA's data sheet
UTILISATION = 0.4  # of a forward pass in batches of 16,384 tokens
GPU_BYTES = 80e9
GPU_HOUR_USD = 2.5
GB_MONTH_USD = 0.023  # S3 Standard
GET_USD = 0.4e-6  # a request; of 16 MiB here
NODE_WRITE_BYTES = 5e9  # a node of eight GPUs to shared storage
HARVEST_RATIO = 0.9  # of the bare forward pass, the bar of benchmarks/harvest.py


@dataclass(frozen=True)
class Model:
    name: str
    params: float
    layers: int
    dim: int


MODELS = (
    Model("8B", 8.0e9, 32, 4096),
    Model("70B", 70.6e9, 80, 8192),
    Model("405B", 405.9e9, 126, 16384),
)


@dataclass(frozen=True)
class OnPaper:
    """A model, harvested at `SITES` sites up to its middle layer."""

    stages: int
    tokens_per_gpu_s: float
    bytes_per_gpu_s: float
    wire_bytes_per_token: int
    usd_per_billion: float
    stored_tb_per_billion: float
    usd_month_per_billion: float
    break_even_passes_a_month: float
    rows_per_unit: int
    units_at_1e12: float


def on_paper(model: Model) -> OnPaper:
    depth = 0.5  # half of the layers are run
    flops = 2 * model.params * depth
    tokens_per_gpu_s = GPU_FLOPS * UTILISATION * HARVEST_RATIO / flops
    row_bytes = 2 * model.dim
    usd_per_billion = 1e9 / tokens_per_gpu_s / 3600 * GPU_HOUR_USD
    stored = 1e9 * row_bytes * SITES
    usd_month = stored / 1e9 * GB_MONTH_USD
    usd_read = stored / (16 * 2**20) * GET_USD
    stages = -(-model.params * 2 * depth // (0.6 * GPU_BYTES))
    rows_per_unit = SHARD_BYTES // row_bytes
    return OnPaper(
        stages=int(stages),
        tokens_per_gpu_s=tokens_per_gpu_s,
        bytes_per_gpu_s=tokens_per_gpu_s * row_bytes * SITES,
        wire_bytes_per_token=int(stages - 1) * row_bytes,
        usd_per_billion=usd_per_billion,
        stored_tb_per_billion=stored / 1e12,
        usd_month_per_billion=usd_month,
        break_even_passes_a_month=usd_month / (usd_per_billion - usd_read),
        rows_per_unit=rows_per_unit,
        units_at_1e12=1e12 / rows_per_unit,
    )


def _ledger_of(location: LocalFolder) -> LedgerWriter:
    writer = location.writer(Token(1, "0"))
    writer.begin()
    return LedgerWriter(location, writer, read_state(location))


def lay_down(location: LocalFolder, units: int) -> None:
    """The ledger that committing `units` units one by one leaves, as merged segments."""
    names = [str(Site(layer)) for layer in range(SITES)]
    writer = _ledger_of(location)
    rows = SiteSchema(dim=4096, dtype="bfloat16").as_json()
    sites = [{"name": name, "schema": rows} for name in names]
    writer.append({"kind": "sites", "sites": sites, "request": {}})
    writer.merge_all()
    largest = max(
        FAN_OUT**k for k in range(6) if FAN_OUT**k * SITES <= ledgers._MOST_RECORDS_IN_ONE_TABLE
    )
    size = largest
    while size > 1:
        while size <= units - writer.state.last:
            # Full segments are never merged again, so nothing here reads their tables.
            _lay_down_segment(writer, size, names, table=size < largest)
        size //= FAN_OUT
    while writer.state.last < units:
        writer.commit(records_of(writer.state.last))


def _lay_down_segment(writer: LedgerWriter, size: int, names: list[str], *, table: bool) -> None:
    location, first = writer._location, writer.state.last
    content = table_bytes(_table(names, first, size)) if table else b""
    entry = {
        "kind": "merged",
        "number": first + size,
        "first": first + 1,
        "others": [],
        "covered": {name: [(first, first + size)] for name in names},
        "released": {},
        "table": {"bytes": len(content), "crc32c": crc32c(content)},
    }
    location.write(table_key(entry), [content])
    location.write(entry_key(first + size), [seal(entry)])
    writer.state.apply(entry)
    writer.state.last = first + size


def records_of(unit: int) -> list[ShardRecord]:
    return [
        ShardRecord(Site(layer), unit, SHARD_BYTES, unit * 7919 % 2**32, 20_000, unit % 2**32)
        for layer in range(SITES)
    ]


def receipt(records: list[ShardRecord]) -> UnitReceipt:
    """What a stage that has written these hands in."""
    return UnitReceipt(
        records=records,
        num_bytes=len(records) * SHARD_BYTES,
        num_tokens=16_384,
        compute_s=25.0,
        write_s=2.0,
        norms={f"norm/{record.site}": 100.0 + record.unit for record in records},
        numerics=NUMERICS,
        use=StageUse({"compute": 25.0, "send": 1.0, "write": 1.0, "wait": 3.0}, 25.0, 2**34, 2**36),
    )


@contextmanager
def committing(folder: Path, *, units_before: int) -> Iterator[Commits]:
    """What `harvest` commits units with, over the ledger in this folder; W&B aside."""
    location = LocalFolder(folder)
    rows = SHARD_BYTES // (2 * MODELS[0].dim)
    tally = Tally(
        total_rows=10 * units_before * rows,
        total_units=10 * units_before,
        rows_before=units_before * rows,
        units_before=units_before,
    )
    progress = HarvestProgress(tally, location, console=Console(file=io.StringIO()))
    tracking = TrackingConfig(wandb="disabled")
    with (
        Lease.acquire(location) as lease,
        open_tracker(
            tracking, run_id="scale", folder=folder / "log" / "scale", job_type="harvest",
            config_dict={},
        ) as tracker,
        progress.showing(),
    ):  # fmt: skip
        yield Commits(
            lease=lease,
            rows_of=lambda unit: rows,
            allow_other_numerics=False,
            progress=progress,
            tracker=tracker,
        )


def drive(folder: Path, units: int) -> dict[str, float]:
    """Open the ledger and do `SIMULATED` more units with fake workers; in a process of its own."""
    logging.disable()  # the replacements are stragglers, who answer at random
    began = time.perf_counter()
    read_state(LocalFolder(folder))
    opened_ms = 1000 * (time.perf_counter() - began)
    commits_module.sum_up_around = lambda lease, records: None  # `summing_up` measures it
    with committing(folder, units_before=units) as commits:
        _do(commits, range(units, units + WARM_UP))
        gc.collect()
        before, cpu = anonymous_mb(), time.process_time()
        worst = _do(commits, range(units + WARM_UP, units + WARM_UP + SIMULATED))
        cpu = time.process_time() - cpu
        gc.collect()
        after = anonymous_mb()
        look = time.process_time()
        commits.progress.tally.actors.look()
        look = time.process_time() - look
    return {
        "units": units,
        "open_ms": opened_ms,
        "ledger_files": sum(1 for _ in LocalFolder(folder).list("ledger")),
        "ms_per_unit": 1000 * cpu / SIMULATED,
        "worst_commit_ms": 1000 * worst,
        "look_ms": 1000 * look,
        "memory_mb": after,
        "growth_mb": after - before,
    }


def _do(commits: Commits, units: Iterable[int]) -> float:
    """Deal units to a thousand replicas and commit them; CPU seconds of the worst commit."""
    schedule = Schedule(iter(units), in_flight=IN_FLIGHT, max_attempts=3)
    actors = commits.progress.tally.actors
    rng = random.Random(0)
    replicas = deque(range(REPLICAS))
    newest = REPLICAS
    flying: list[tuple[int, Attempt]] = []
    for replica in replicas:
        schedule.join(replica)
        actors.up(replica)
    worst = 0.0
    while not schedule.finished:
        while replicas:
            replica = replicas.popleft()
            while attempt := schedule.take(replica):
                flying.append((replica, attempt))
        place = rng.randrange(len(flying))
        flying[place], flying[-1] = flying[-1], flying[place]
        replica, attempt = flying.pop()
        if rng.random() < LOSS:
            schedule.leave(replica, "lost")
            actors.gone(replica)
            flying = [pair for pair in flying if pair[0] != replica]
            replica, newest = newest, newest + 1
            schedule.join(replica)
            actors.up(replica)
        else:
            one = time.process_time()
            timing = UnitTiming(replica, attempt.number, 30.0)
            records = records_of(attempt.unit)  # of two stages
            commits.commit(attempt.unit, [receipt(records[:1]), receipt(records[1:])], timing)
            worst = max(worst, time.process_time() - one)
            schedule.done(replica, attempt.unit)
        replicas.append(replica)
        if not flying:
            replicas.extend(schedule._held)
    return worst


def in_a_process(folder: Path, units: int) -> dict[str, float]:
    """`drive` where nothing else has used memory before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(drive, folder, units).result()


def merging(folder: Path) -> dict[str, float]:
    """The largest merge that is ever made: its CPU, spread over the units it merges, and memory."""
    entries = FAN_OUT**4
    location = LocalFolder(folder)
    names = [str(Site(layer)) for layer in range(SITES)]
    writer = _ledger_of(location)
    writer.state.covered = {Site(layer): UnitSet() for layer in range(SITES)}
    for _ in range(FAN_OUT):
        _lay_down_segment(writer, entries // FAN_OUT, names, table=True)
    cpu = time.process_time()
    writer._merge(writer._replayed())
    cpu = time.process_time() - cpu
    ((_, size),) = ((key, size) for key, size in location.sizes("ledger") if "parquet" in key)
    records = entries * SITES
    return {"records": records, "seconds": cpu, "ms_per_unit": 1000 * cpu / entries,
            "table_bytes_per_record": size / records}  # fmt: skip


def summing_up(folder: Path) -> dict[str, float]:
    """CPU of writing the totals of 32 units, spread over them, at the width of an 8B model."""
    location, splits = LocalFolder(folder), ("train", "test")
    writer = location.writer(Token(1, "0"))
    writer.begin()
    rows = SiteSchema(dim=MODELS[0].dim, dtype="bfloat16")
    rng = np.random.default_rng(0)
    group = Moments(8000, rng.normal(size=rows.dim), rng.random(rows.dim), 1e6)
    total = Block(FAN_OUT, 0)
    sites = [StoredMoments(location, Site(layer), rows, splits) for layer in range(SITES)]
    for stored in sites:
        for unit in range(FAN_OUT):
            content = encode_moments(stored.site, Block(1, unit), splits, [group] * 4)
            writer.ensure(Block(1, unit).key(stored.site), [content])
    cpu = time.process_time()
    for stored in sites:
        writer.ensure(total.key(stored.site), [stored.encoded_sum(total)])
    return {"ms_per_unit": 1000 * (time.process_time() - cpu) / FAN_OUT}


def _table(names: list[str], first: int, units: int) -> pa.Table:
    rng = np.random.default_rng(first)
    records = units * len(names)
    return pa.table(
        {
            "site": np.repeat(names, units),
            "unit": np.tile(np.arange(first, first + units), len(names)),
            "rows_bytes": np.full(records, SHARD_BYTES),
            "rows_crc32c": rng.integers(0, 2**32, records, dtype=np.uint32),
            "moments_bytes": np.full(records, 20_000),
            "moments_crc32c": rng.integers(0, 2**32, records, dtype=np.uint32),
            "infinite": np.zeros(records, np.int64),
            "nan": np.zeros(records, np.int64),
            "numerics": np.zeros(records, np.int16),
        },
        schema=TABLE,
    )


def main() -> int:
    papers = {model.name: on_paper(model) for model in MODELS}
    print_paper(papers)
    sizes = (10**3, 10**6, *(int(papers[name].units_at_1e12) for name in ("8B", "405B")))
    runs = []
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as scratch:
        for size in sizes:
            folder = Path(scratch) / str(size)
            lay_down(LocalFolder(folder), size)
            runs.append(in_a_process(folder, size))
            r = runs[-1]
            print(
                f"{r['units']:>12,.0f} units before: opened in {r['open_ms']:.0f} ms, "
                f"{r['ledger_files']:.0f} files, {r['ms_per_unit']:.2f} ms of driver CPU a unit "
                f"(worst commit {r['worst_commit_ms']:.0f} ms; a look at all actors "
                f"{r['look_ms']:.0f} ms), memory {r['memory_mb']:.0f} MiB, "
                f"+{r['growth_mb']:.1f} MiB in {SIMULATED:,} units"
            )
        merged = merging(Path(scratch) / "merging")
        summed = summing_up(Path(scratch) / "summing_up")
    print(
        f"The largest merge, {merged['records']:,.0f} records: {merged['seconds']:.1f} s of CPU, "
        f"{merged['ms_per_unit']:.4f} ms for each of its units; "
        f"{merged['table_bytes_per_record']:.0f} bytes a record on disk"
    )
    print(f"Summing moments up: {summed['ms_per_unit']:.2f} ms of CPU a unit")
    ms = [run["ms_per_unit"] + merged["ms_per_unit"] + summed["ms_per_unit"] for run in runs]
    growth_mb = max(run["growth_mb"] for run in runs)
    more_mb = max(run["memory_mb"] for run in runs) - runs[0]["memory_mb"]
    tell(
        {
            "driver_ms_per_unit_1e12": round(ms[-1], 3),
            "driver_ms_per_unit_worst": round(max(ms), 3),
            "sum_up_ms_per_unit": round(summed["ms_per_unit"], 3),
            "driver_growth_mb": round(growth_mb, 1),
            "driver_more_mb_1e12": round(more_mb, 1),
            "look_ms": round(max(run["look_ms"] for run in runs), 1),
            "open_ms_1e12": round(runs[-1]["open_ms"], 1),
            "ledger_files_1e12": runs[-1]["ledger_files"],
            **{
                f"usd_per_billion_tokens_{name}": round(paper.usd_per_billion, 2)
                for name, paper in papers.items()
            },
        }
    )
    missed = [f"{x:.2f} ms a unit" for x in ms if x >= BAR_MS]
    missed += [f"memory +{x:.1f} MiB" for x in (growth_mb, more_mb) if x >= BAR_MB]
    for what in missed:
        print(f"missed: {what}", file=sys.stderr)
    return 1 if missed else 0


def print_paper(papers: dict[str, OnPaper]) -> None:
    print(f"Half of the layers, {SITES} sites in bfloat16, H100 at {UTILISATION:.0%} of its peak\n")
    for name, p in papers.items():
        share = 8 * p.bytes_per_gpu_s / NODE_WRITE_BYTES
        print(
            f"{name:>5}: {p.stages} stage(s) a replica, {p.tokens_per_gpu_s:,.0f} tokens/s and "
            f"{p.bytes_per_gpu_s / 1e6:,.0f} MB/s a GPU (eight of them: {share:.2f} of what a node "
            f"can write), {p.wire_bytes_per_token:,} wire bytes a token\n       "
            f"{p.usd_per_billion:,.2f} USD and {p.stored_tb_per_billion:.1f} TB a "
            f"billion tokens; storing costs {p.usd_month_per_billion:,.0f} USD a month, as much as "
            f"{p.break_even_passes_a_month:.1f} passes over the model\n       10^12 rows: "
            f"{p.units_at_1e12:,.0f} units of {p.rows_per_unit:,} rows, "
            f"{p.units_at_1e12 * SITES:,.0f} shards"
        )
    print()


if __name__ == "__main__":
    sys.exit(main())
