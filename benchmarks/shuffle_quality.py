"""How well each way to shuffle mixes documents; the table in docs/reading.md.

    python benchmarks/shuffle_quality.py

Makes a store of 2²² rows in packed contexts of 256, of documents of 600 tokens on average
(log-normal, as web text), with chunks of 2,048 rows (about 2 MiB at 576 dimensions of float16;
the activations are narrow here, which changes nothing), and measures 24 batches of 4,096 rows
from all over an epoch.
"""

import tempfile
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from measuring import tell

from actlake.storage import (
    Context,
    Document,
    Geometry,
    Site,
    open_store,
    write_store,
)
from actlake.storage.reading.shuffle_quality import ShuffleQuality, shuffle_quality

SITE = Site(0)
ROWS, CONTEXT, CHUNK, BATCH, DIM = 2**22, 256, 2048, 4096, 4
POOLS = (8_192, 16_384, 65_536, 262_144, 1_000_000)
MEASURED = 24


def main() -> None:
    ways: list[tuple[str, dict[str, Any]]] = [("in order", {"shuffle": "none"})]
    ways += [(f"pool of {rows:,}", {"shuffle": "pool", "pool_rows": rows}) for rows in POOLS]
    ways += [("exact", {"shuffle": "exact"})]
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        make_store(Path(folder))
        measured = {name: quality_of(Path(folder), how) for name, how in ways}
    print("| shuffle | documents in a batch | of a uniform draw | entropy, normalised |")
    print("|---|---:|---:|---:|")
    for name, quality in measured.items():
        print(
            f"| {name} | {quality.documents:,.0f} | {quality.ideal_documents:,.0f} "
            f"| {quality.entropy:.4f} |"
        )
    tell({name: asdict(quality) for name, quality in measured.items()})


def quality_of(folder: Path, how: dict[str, Any]) -> ShuffleQuality:
    store = open_store(folder)
    steps = store.batches(SITE, BATCH, **how).steps_per_epoch
    every = steps // MEASURED
    batches = store.batches(SITE, BATCH, stride=(0, every), **how)
    return shuffle_quality(batches, num_batches=MEASURED)


def make_store(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = np.maximum(8, rng.lognormal(5.9, 1.0, ROWS // 200)).astype(np.int64)
    document = np.repeat(np.arange(len(lengths)), lengths)[:ROWS]
    assert len(document) == ROWS
    documents = [Document(str(n), "made", "train") for n in range(int(document[-1]) + 1)]
    contexts = (
        Context(
            rng.integers(1, 50_000, CONTEXT),
            document[start : start + CONTEXT],
            np.arange(CONTEXT),
            "train",
        )
        for start in range(0, ROWS, CONTEXT)
    )
    write_store(
        folder,
        chain(documents, contexts),
        {SITE: np.zeros((ROWS, DIM), np.float16)},
        provenance="none",
        layout="packed",
        context_length=CONTEXT,
        geometry=Geometry(unit_rows=CHUNK * 64, chunk_bytes=CHUNK * DIM * 2),
    )


if __name__ == "__main__":
    main()
