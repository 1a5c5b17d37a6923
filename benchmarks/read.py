"""How fast shuffled batches are read, against three other ways to read the same rows.

    python benchmarks/read.py                 # needs sae-lens: pip install "actlake[bench]"

Makes a store of 2²⁰ rows x 576 float16 (1.2 GB) in a temporary folder, reads an epoch of it as
float32 torch tensors in batches of 4,096, and the same rows

    memmap      from one raw file through numpy.memmap: in ``exact`` mode the same random
                gathers, in ``pool`` mode copies of the same chunks, without any mixing
    saelens     by SAELens' reader of cached activations (a Hugging Face data set, float32),
                through its mixing buffer
    token_loop  a token at a time through zarr-python, on the store's own array

and, as the limit of what any mixing could reach, the rows of the ``pool`` epoch gathered and
converted by two threads that do nothing else: their order is known to them in advance.

The last line is JSON: ``vs_*`` are our rows per second over theirs, medians of interleaved
rounds on a
warm page cache; ``vs_memmap`` is the lesser of the two modes. ``anon_growth_16x`` is the peak
anonymous memory of a reader of 16 times the rows over that of one; each is a process of its own.
Exit status 1 when a bar is missed or a key is missing.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import numpy as np
import torch
import zarr
from measuring import anonymous_mb, tell

from actlake.platform.torch_batches import TorchBatches, _ToDevice
from actlake.storage import (
    Site,
    open_store,
    write_store,
)
from actlake.storage.reading.batches import Batch
from actlake.storage.reading.mixing import ChunkMap, MixingPlan
from actlake.storage.reading.order import Permutation

SITE = Site(9)
DIM, CONTEXT, BATCH = 576, 256, 4096
ROWS = 2**20
SMALL = ROWS // 16
SAELENS_ROWS = 2**18
ROUNDS = 3
THREADS = 2
POOL_ROWS = 2**18
MEMORY_POOL_ROWS = 2**15
BARS = {"vs_memmap": 0.7, "vs_saelens": 5.0, "vs_token_loop": 100.0}
MOST_GROWTH = 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", nargs=2, metavar=("STORE", "SHUFFLE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_anonymous_mb(*options.memory))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="actlake-bench-"))
    try:
        result = measure(folder)
    finally:
        shutil.rmtree(folder)
    print(in_words(result))
    tell(result)
    missed = [key for key, bar in BARS.items() if not result.get(key, 0.0) >= bar]
    missed += [] if result["anon_growth_16x"] <= MOST_GROWTH else ["anon_growth_16x"]
    for key in missed:
        print(f"missed: {key} is {result.get(key, 'not measured')}", file=sys.stderr)
    return 1 if missed else 0


def in_words(result: dict[str, Any]) -> str:
    """The same numbers for a person."""
    lines = ["Rows of 576 float16 a second, as float32 torch tensors in batches of 4,096:"]
    lines += [
        f"  {words:<58}{result[f'{name}_rows_per_s']:>12,}"
        for name, words in NAMES.items()
        if f"{name}_rows_per_s" in result
    ]
    lines += [
        f"Ours over numpy.memmap: exact {result['vs_memmap_exact']}, "
        f"pool {result['vs_memmap_pool']} of at most {result['limit_of_pool']} (bar 0.7)",
        f"Ours over SAELens' reader: {result.get('vs_saelens', 'not measured')} (bar 5), "
        f"over a loop of tokens: {result['vs_token_loop']} (bar 100)",
        f"Peak anonymous memory at 16 times the rows, over 1 time: {result['anon_growth_16x']}",
        "",
    ]
    return "\n".join(lines)


NAMES = {
    "exact": "ours, exact shuffle",
    "exact_one_thread": "ours, exact shuffle, in one thread",
    "memmap_gather": "numpy.memmap, the same gathers",
    "pool": "ours, pool shuffle",
    "memmap_chunks": "numpy.memmap, the same chunks, not mixed",
    "gather_only": "gathering the pool's rows and nothing else, two threads",
    "pool_through_zarr": "ours, pool shuffle, through Zarr (a quarter of the rows)",
    "saelens": "SAELens' cached activations (half its rows)",
    "token_loop": "a loop of tokens through zarr-python (400 tokens)",
}


def measure(folder: Path) -> dict[str, Any]:
    for rows in (SMALL, 4 * SMALL, ROWS):
        make_store(folder / str(rows), rows)
    store = folder / str(ROWS)
    raw = folder / "rows.bin"
    open_store(store)[SITE][:].tofile(raw)

    exact, pool, mixed = epoch_rows(store), pool_chunks(store), pool_rows(store)
    runs: dict[str, Callable[[], int]] = {
        "exact": lambda: read_ours(store, "exact"),
        "memmap_gather": lambda: read_memmap(raw, exact),
        "pool": lambda: read_ours(store, "pool"),
        "memmap_chunks": lambda: read_memmap_chunks(raw, pool),
        "gather_only": lambda: gather_only(store, mixed),
        "token_loop": lambda: read_token_loop(store, exact[0][:400]),
        "exact_one_thread": lambda: read_ours(store, "exact", prefetch=0),
        "pool_through_zarr": lambda: read_ours(store, "pool", path="zarr", most=ROWS // 4),
    }
    if importlib.util.find_spec("sae_lens") is None:
        print("sae_lens is not installed: pip install 'actlake[bench]'", file=sys.stderr)
    else:
        import sae_lens  # noqa: F401  seconds, which are not the reader's

        cached = make_saelens_cache(folder / "saelens", open_store(store))
        runs["saelens"] = lambda: read_saelens(cached)

    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            rows = run()
            speeds[name].append(rows / (time.perf_counter() - began))

    def ratio(ours: str, theirs: str) -> float:
        pairs = zip(speeds[ours], speeds[theirs], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    growth = memory(folder)
    result: dict[str, Any] = {
        "vs_memmap": min(ratio("exact", "memmap_gather"), ratio("pool", "memmap_chunks")),
        "vs_memmap_exact": ratio("exact", "memmap_gather"),
        "vs_memmap_pool": ratio("pool", "memmap_chunks"),
        "limit_of_pool": ratio("gather_only", "memmap_chunks"),
        "vs_token_loop": ratio("exact", "token_loop"),
        "anon_growth_16x": max(
            growth["exact"][-1] / growth["exact"][0], growth["pool"][-1] / growth["pool"][0]
        ),
        **{
            f"anon_mb_{mode}_{times}x": mb
            for mode, peaks in growth.items()
            for times, mb in zip((1, 4, 16), peaks, strict=True)
        },
        **{f"{name}_rows_per_s": round(statistics.median(s)) for name, s in speeds.items()},
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    result["anon_growth_16x"] = round(result["anon_growth_16x"], 3)
    if "saelens" in runs:
        result["vs_saelens"] = ratio("exact", "saelens")
    return result


# The store, and the same rows for others.


def make_store(folder: Path, rows: int) -> None:
    """A store of random activations, in packed contexts of one document each."""
    rng = np.random.default_rng(0)
    contexts = (rng.integers(0, 50_000, CONTEXT) for _ in range(rows // CONTEXT))
    blocks = (
        rng.standard_normal((CONTEXT, DIM), dtype=np.float32).astype(np.float16)
        for _ in range(rows // CONTEXT)
    )
    write_store(
        folder, contexts, {SITE: blocks}, provenance="random", layout="packed",
        context_length=CONTEXT,
    )  # fmt: skip


def make_saelens_cache(folder: Path, store: Any) -> Path:
    """The same rows as `CacheActivationsRunner` lays them down."""
    from datasets import Array2D, Dataset, Features, Sequence, Value, disable_progress_bars

    features = Features(
        {
            "blocks.9.hook_resid_post": Array2D((CONTEXT, DIM), "float32"),
            "token_ids": Sequence(Value("int32"), length=CONTEXT),
        }
    )

    def contexts() -> Iterator[dict[str, Any]]:
        for start in range(0, SAELENS_ROWS, CONTEXT):
            yield {
                "blocks.9.hook_resid_post": store[SITE][start : start + CONTEXT].astype("f4"),
                "token_ids": store.tokens["id"][start : start + CONTEXT],
            }

    cache = str(folder / "hf")
    disable_progress_bars()
    data = Dataset.from_generator(contexts, features=features, cache_dir=cache)
    data.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def epoch_rows(store: Path) -> list[Any]:
    batches = open_store(store).batches(SITE, BATCH, epochs=1)
    places = np.arange(batches.steps_per_epoch * BATCH)
    order = Permutation(batches.num_rows, seed=0, purpose="epoch 0")
    rows = batches.selected.select(order(places))
    assert np.array_equal(rows[:BATCH], next(batches).rows)
    return np.split(rows, batches.steps_per_epoch)


def pool_chunks(store: Path) -> list[tuple[int, int]]:
    """The chunks in the order in which the pool reads them, as ranges of rows."""
    opened = open_store(store)
    batches = opened.batches(SITE, BATCH, shuffle="pool")
    counts = ChunkMap(batches.stores, batches.selected, [SITE]).counts
    length = opened.chunk_rows([SITE])
    plan = MixingPlan(counts, pool_rows=POOL_ROWS, seed=0, epoch=0)
    return [(int(c) * length, min((int(c) + 1) * length, len(opened))) for c in plan.chunks]


def pool_rows(store: Path) -> list[Any]:
    """The rows of each batch of the pool's epoch."""
    batches = open_store(store).batches(SITE, BATCH, shuffle="pool", pool_rows=POOL_ROWS, epochs=1)
    return [batch.rows for batch in batches]


# The readers: each gives float32 torch tensors, and says how many rows it gave.


def read_ours(
    store: Path, shuffle: Any, *, prefetch: int = 2, path: Any = "auto", most: int | None = None
) -> int:
    given = 0
    batches = open_store(store, path=path).batches(
        SITE,
        BATCH,
        shuffle=shuffle,
        pool_rows=POOL_ROWS,
        epochs=1,
        threads=THREADS if prefetch else 0,
    )
    with TorchBatches(batches, prefetch=prefetch) as tensors:
        for batch in tensors:
            assert batch.acts.dtype == torch.float32
            given += len(batch)
            if most is not None and given >= most:
                break
    return given


def read_memmap(raw: Path, order: list[Any]) -> int:
    values = np.memmap(raw, np.float16, "r").reshape(-1, DIM)
    return sum(len(torch.from_numpy(values[rows]).float()) for rows in order)


def read_memmap_chunks(raw: Path, chunks: list[tuple[int, int]]) -> int:
    values = np.memmap(raw, np.float16, "r").reshape(-1, DIM)
    return sum(len(torch.from_numpy(np.array(values[a:b])).float()) for a, b in chunks)


def gather_only(store: Path, order: list[Any]) -> int:
    array, convert = (
        open_store(store)[SITE],
        _ToDevice(torch.device("cpu"), torch.float32, pin=False),
    )

    def read(rows: Any) -> int:
        return len(convert(Batch(rows, array.take(rows), 0, 0)))

    with ThreadPoolExecutor(THREADS) as executor:
        return sum(executor.map(read, order))


def read_token_loop(store: Path, rows: Any) -> int:
    array = zarr.open_group(store / "rows.zarr", mode="r")[f"acts/{SITE}"]
    tokens = [torch.from_numpy(np.asarray(array[int(row)])).float() for row in rows]
    return len(torch.stack(tokens))


def read_saelens(cached: Path) -> int:
    from sae_lens.training.activations_store import ActivationsStore

    store = ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name="blocks.9.hook_resid_post",
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=DIM,
        n_batches_in_buffer=64,
        total_training_tokens=SAELENS_ROWS,
        store_batch_size_prompts=16,
        train_batch_size_tokens=BATCH,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(cached),
    )
    given = 0
    while given < SAELENS_ROWS // 2:
        given += len(next(store))
    return given


# Memory.


def memory(folder: Path) -> dict[str, list[float]]:
    """Peak anonymous megabytes of a reader of 1, 4 and 16 times the rows."""
    peaks: dict[str, list[float]] = {"exact": [], "pool": []}
    for shuffle, seen in peaks.items():
        for rows in (SMALL, 4 * SMALL, ROWS):
            command = [sys.executable, __file__, "--memory", str(folder / str(rows)), shuffle]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seen.append(float(done.stdout))
    return peaks


def peak_anonymous_mb(store: str, shuffle: Any) -> float:
    """Read 48 batches (three epochs of the smallest store) and watch the process's RssAnon."""
    peak = 0.0
    batches = open_store(store).batches(
        SITE, BATCH, shuffle=shuffle, pool_rows=MEMORY_POOL_ROWS, threads=1
    )
    steps = max(48, batches.steps_per_epoch)
    with TorchBatches(batches) as tensors:
        for _ in range(steps):
            next(tensors)
            peak = max(peak, anonymous_mb())
    return round(peak, 1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())
