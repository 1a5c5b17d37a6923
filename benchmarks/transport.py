"""Maps between layers: one pass and closed forms, against scikit-learn pair by pair.

The store holds SmolLM2's residual stream at 8 layers of its lower half, 28 pairs, on 252
thousand tokens of the Brown corpus. Three things are timed:

    ours     moments of all pairs in one pass over the rows, then for every pair ridge with the
             best of 8 α, least squares, Procrustes, identity, mean, and the maps of all ranks
             of three families with their curves and ceilings, tested, with intervals
    theirs   what the published code does for a pair: rows in memory, scikit-learn's Ridge in
             GridSearchCV with 5 folds over the same 8 α, then R² on the test rows; on a few
             pairs, extrapolated to all
    gemm     the matrix products of the pass alone, on rows that lie in memory as float32: what
             no way of computing the moments can do without

Peak memory is that of a pass over a quarter of the rows and over all of them, each in a process of
its own. Time during
which this process was suspended (Ctrl-Z, or a scheduler that shares the machine) does not count;
beside the ratios of wall time stand those of CPU time, which other work disturbs less.

    python benchmarks/transport.py                   about 25 minutes on 2 cores
    python benchmarks/transport.py --store FOLDER    a store that has the sites already
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import prepare
from measuring import Clock, PeakMemory, shown, tell
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from texts import brown_folder

from actlake.jobs.harvest import HarvestConfig, harvest
from actlake.jobs.transport.block_sums import CHUNK_ROWS
from actlake.jobs.transport.fitting import fit_pairs
from actlake.jobs.transport.moments_pass import compute_moments, request_moments, shares_of
from actlake.jobs.transport.pairs import Pair, resolve_pairs
from actlake.jobs.transport.parts import rows_of_part
from actlake.platform.corpus import CorpusConfig, Files, Packed, SplitByHash
from actlake.platform.models import ModelConfig, smollm2_folder
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, Site, open_store

SITES = tuple(Site(layer) for layer in range(0, 16, 2))
ALPHAS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7)
FOLDS = 5
THEIR_PAIRS = (Pair(Site(4), Site(6)), Pair(Site(2), Site(10)))
GEMM_CHUNKS = 24


def make_store(folder: Path) -> None:
    """Harvest the benchmark's store: 15 layers of SmolLM2, about 8 minutes on 2 cores."""
    result = harvest(
        HarvestConfig(
            store=str(folder),
            model=ModelConfig(name=str(smollm2_folder())),
            sites=SITES,
            corpus=CorpusConfig(
                source=Files(path=f"{brown_folder()}/c[a-r][0-9][05].txt"),
                layout=Packed(separator="<|endoftext|>"),
                context_length=256,
                splits=SplitByHash(fractions={"train": 0.8, "test": 0.2}),
            ),
            tracking=TrackingConfig(wandb="disabled"),
        )
    )
    assert result.complete


def peak_of_a_pass(folder: Path, share: float) -> float:
    """Peak anonymous megabytes of a pass over a share of the rows, evenly drawn parts."""
    store = open_store(folder)
    request = request_moments([store], resolve_pairs("all", SITES, SITES))
    shares = shares_of([store], request)
    parts = shares.parts[:: round(1 / share)]
    with tempfile.TemporaryDirectory(dir=folder.parent) as root, PeakMemory() as memory:
        some = replace(shares, parts=parts)
        compute_moments([store], request, Path(root), threads=2, shares=some)
    return memory.peak


def peak_in_a_process(folder: Path, share: float) -> float:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--store", str(folder), "--memory", str(share)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def gemm_seconds(store: ActivationStore, design, rows: int) -> np.ndarray:
    """The products of the pass, nothing else: timed on some chunks, scaled to all rows."""
    (alignment,) = design.alignments
    width = store.schema_of(store.sites[0]).dim
    chunk = np.random.default_rng(0).standard_normal(
        (CHUNK_ROWS, len(alignment.columns) * width), dtype=np.float32
    )
    out = np.empty((width, chunk.shape[1]), np.float32)

    def products() -> None:
        for place in range(len(alignment.columns)):
            left = chunk[:, place * width : (place + 1) * width]
            for first, last in alignment.runs(place):
                right = chunk[:, first * width : last * width]
                np.matmul(left.T, right, out=out[:, : right.shape[1]])

    products()
    clock = Clock()
    for _ in range(GEMM_CHUNKS):
        products()
    return clock.stop() / GEMM_CHUNKS * rows / CHUNK_ROWS


def theirs(store: ActivationStore, shares, pair: Pair) -> tuple[np.ndarray, float, float]:
    """Seconds, test R² and α of scikit-learn for one pair, reading the rows included."""
    clock = Clock()
    rows = {
        split: np.concatenate(
            [
                rows_of_part(store, shares.of_document, part, 0, excluded=False)
                for part in shares.parts
                if shares.names[part.share].startswith("test") == (split == "test")
            ]
        )
        for split in ("train", "test")
    }
    x, y, new_x, new_y = (
        store[site].take(rows[split]).astype(np.float32)
        for split in ("train", "test")
        for site in (pair.source, pair.target)
    )
    search = GridSearchCV(Ridge(), {"alpha": list(ALPHAS)}, cv=FOLDS, scoring="r2").fit(x, y)
    found = r2_score(new_y, search.predict(new_x))
    return clock.stop(), found, search.best_params_["alpha"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default=None)
    parser.add_argument("--memory", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_of_a_pass(Path(options.store), options.memory))
        return
    Clock.start()
    folder = Path(options.store or prepare.once("transport-smollm2-2", make_store))
    store = open_store(folder)
    pairs = resolve_pairs("all", SITES, SITES)
    request = request_moments([store], pairs)
    shares = shares_of([store], request)
    rows = sum(part.num_rows for part in shares.parts)
    root = Path(tempfile.mkdtemp(prefix="actlake-transport-", dir=folder.parent))
    try:
        print(f"{rows:,} rows, {len(pairs)} pairs, {request.design.num_blocks} blocks", flush=True)
        store[SITES[0]].read(0, 1)

        gemm_before = gemm_seconds(store, request.design, rows)
        clock = Clock()
        moments = compute_moments([store], request, root / "all", threads=2, shares=shares)
        pass_s = clock.stop()
        gemm_s = (gemm_before + gemm_seconds(store, request.design, rows)) / 2
        print(f"pass {shown(pass_s)}, its products alone {shown(gemm_s)}", flush=True)

        clock = Clock()
        fits = {fit.pair: fit.ridge for fit in fit_pairs(moments, pairs, alphas=ALPHAS)}
        fits_s = clock.stop()
        print(f"fits {shown(fits_s)}", flush=True)

        quarter_mb, all_mb = (peak_in_a_process(folder, share) for share in (0.25, 1.0))
        print(f"anonymous memory {quarter_mb:.0f} MB, of 4x the rows {all_mb:.0f} MB", flush=True)

        seconds, differences = [], []
        for pair in THEIR_PAIRS:
            took, r2, alpha = theirs(store, shares, pair)
            ours = fits[pair]
            seconds.append(took)
            differences.append(abs(ours.test.uniform - r2))
            print(
                f"{pair}: scikit-learn {shown(took)}, R² {r2:.6f} (α {alpha:g}); ours "
                f"{ours.test.uniform:.6f} (α {ours.fitted.alpha:g})",
                flush=True,
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    their_s = np.mean(seconds, axis=0) * len(pairs)
    speedup, speedup_cpu = their_s / (pass_s + fits_s)
    share, share_cpu = gemm_s / pass_s
    tell(
        {
            "speedup": speedup,
            "r2_max_diff": max(differences),
            "gemm_share": share,
            "anon_growth_4x": all_mb / quarter_mb,
            "speedup_cpu": speedup_cpu,
            "gemm_share_cpu": share_cpu,
            "gemm_share_with_fits": (gemm_s / (pass_s + fits_s))[0],
            "rows": rows,
            "pairs": len(pairs),
            "pass_s": pass_s[0],
            "fits_s": fits_s[0],
            "gemm_s": gemm_s[0],
            "their_s_a_pair": their_s[0] / len(pairs),
            "anon_mb": quarter_mb,
            "anon_mb_4x": all_mb,
        }
    )


if __name__ == "__main__":
    main()
