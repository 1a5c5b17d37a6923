"""``actlake sae encode``: the latents of a whole store, as a sparse table.

    encode_store("runs/sae/resid_post.9-topk-4608", "runs/smollm2", "runs/latents")

Rows are read unit by unit and encoded in blocks, so memory does not grow with the store. Parts
that are whole are kept: killed, the same command goes on with those that are missing. Several
workers encode parts side by side on Ray and write them themselves. See `encoded` for the files.
"""

import argparse
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from actlake.jobs.begun import kept_beside, open_as_begun
from actlake.jobs.progress_bar import progress
from actlake.jobs.sae.encoded import (
    LATENTS,
    Encoding,
    Part,
    PartCounts,
    begin,
    counts_of,
    sweep,
    write_part,
)
from actlake.jobs.sae.errors import AlreadyTraining
from actlake.jobs.sae.sites_read import sites_read
from actlake.jobs.sae.trained import CONFIG, WEIGHTS, TrainedSAE, folder_of, read_sae
from actlake.jobs.saying import say
from actlake.jobs.stored_as import dtypes_of
from actlake.platform.cluster import (
    ClusterConfig,
    Resources,
    ResourcesConfig,
    WorkerPlan,
    WorkStopped,
    check_device_of_workers,
    joins_cluster,
    map_reduce,
    plan_workers,
    session,
    threads_here,
)
from actlake.platform.computed_on import computed_on
from actlake.platform.models.numerics import resolve_device
from actlake.platform.runs import Input, RunRecord
from actlake.platform.safetensors_files import plain_mode
from actlake.platform.writable import check_writable
from actlake.storage import ActivationStore, Extent, Site, open_store

logger = logging.getLogger(__name__)

JOB = "sae-encode"
PART_ROWS = 2**18
"""Rows of a part, if units are smaller: at L0 = 32 some 60 MB of Parquet."""

# 64 MiB of float32 latents.
_LATENTS_AT_ONCE = 2**24


@dataclass(frozen=True)
class EncodeResult:
    """How an encoding ended."""

    folder: Path
    rows: int
    """Rows that were encoded."""
    values: int
    """Lines of the table: activations that are not 0."""
    was_there: bool
    """It was complete already, and nothing was computed."""

    @property
    def l0(self) -> float:
        """Mean number of active latents of a row."""
        return self.values / max(1, self.rows)

    @property
    def parquet(self) -> str:
        """All parts, as a pattern that DuckDB and polars read."""
        return str(self.folder / LATENTS / "*.parquet")


def encode_store(
    sae: str,
    store: str,
    out: str | Path,
    *,
    split: str | None = None,
    excluded: bool = False,
    sites: Sequence[str | Site] | None = None,
    any_hook: bool = False,
    workers: int = 1,
    threads: int | None = None,
    device: str = "auto",
    part_rows: int = PART_ROWS,
    cluster: ClusterConfig | None = None,
    console: Console | None = None,
) -> EncodeResult:
    """Encode the rows of a store into a sparse table on disk.

    Parameters
    ----------
    sae
        Folder of an SAE, transcoder or crosscoder, or ``REPOSITORY:FOLDER`` of the hub.
    store
        Path or URL; its sites must be whole.
    out
        Folder of the table; on a path that all workers see.
    split
        Rows of this split only; by default of all.
    excluded
        Encode position 0 of each context and special ids too, which training leaves out.
    sites
        What to read; by default what the SAE says it was trained on.
    any_hook
        Read `sites` although the SAE names others.
    workers
        Parts that are encoded side by side, on Ray; 1: in this process, without Ray, unless a
        running cluster is joined.
    threads
        Compute threads of each worker; by default the machine's cores, and of workers on Ray as
        many as `plan_workers` finds.
    device
        ``cpu``, ``cuda``, ``cuda:1``, …, or ``auto``: CUDA where torch sees it. Workers on Ray
        reserve a GPU each.
    part_rows
        Rows of a part, about; when an encoding goes on, its parts stay as they were begun.

    Raises
    ------
    DictionaryMismatch
        The SAE cannot be read, or reads rows of another width or site.
    SiteNotStored, RowsNotCommitted, UnknownSplit
        The store does not hold what is needed.
    ConfigChanged
        `out` holds another encoding.
    AlreadyTraining
        Another process encodes into `out`.
    WorkStopped
        It was stopped on request; the same call goes on.
    """
    on_ray = workers > 1 or joins_cluster(cluster or ClusterConfig())
    if on_ray:
        check_device_of_workers(device)
    else:
        device = resolve_device(device).value
    check_writable(out)
    console = console or Console(stderr=True)
    folder = Path(out).expanduser()
    opened, trained = open_as_begun(store, folder), read_sae(sae)
    chosen = sites_read(trained, opened, sites, any_hook=any_hook)
    if split is not None:
        opened.lookup.split_code(split)
    encoding = begin(
        folder,
        Encoding(
            sae=fingerprint(sae),
            store=opened.fingerprint,
            dtypes=dtypes_of(opened, chosen),
            sites=tuple(map(str, chosen)),
            split=split,
            excluded=excluded,
            d_sae=trained.d_sae,
            units=tuple(opened.schema.units.runs()),
            units_per_part=max(1, part_rows // opened.schema.geometry.unit_rows),
        ),
    )
    if (folder / "run.json").is_file():
        metrics = RunRecord.load(folder).metrics
        return EncodeResult(folder, int(metrics["rows"]), int(metrics["values"]), was_there=True)
    record = RunRecord.start(
        JOB,
        {**encoding.as_json(), "sae_metadata": dict(trained.metadata)},
        inputs={"sae": Input(sae, encoding.sae), "store": Input(store, encoding.store)},
        computed_on=computed_on(None if on_ray else device, threads=threads),
    )
    with _alone(folder), kept_beside(record, folder):
        counts = _encode_parts(
            sae, store, folder, encoding, workers=workers, threads=threads, device=device,
            cluster=cluster, on_ray=on_ray, console=console,
        )  # fmt: skip
    found = {"rows": float(counts.rows), "values": float(counts.values)}
    record.finish(found | {"l0": counts.values / max(1, counts.rows)}).save(folder)
    return EncodeResult(folder, counts.rows, counts.values, was_there=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=0, mode=plain_mode(folder))
    try:
        lock.acquire()
    except Timeout as error:
        raise AlreadyTraining(
            f"Another process is encoding into {folder}\nhint: wait for it, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _encode_parts(
    sae: str, store: str, folder: Path, encoding: Encoding, *, workers: int, threads: int | None,
    device: str, cluster: ClusterConfig | None, on_ray: bool, console: Console,
) -> PartCounts:  # fmt: skip
    sweep(folder)
    found = {part: counts_of(folder, part) for part in encoding.parts()}
    done = [counts for counts in found.values() if counts is not None]
    missing = [part for part, counts in found.items() if counts is None]
    total = sum(done, PartCounts(0, 0))
    if done:
        logger.info("Going on with %d of %d parts", len(missing), len(found))
    if not missing:
        return total
    unit_rows = open_store(store).schema.geometry.unit_rows
    with ExitStack() as stack:
        ray, plan = None, WorkerPlan(device, threads_here(threads, 1), Resources())
        if on_ray:
            ray = stack.enter_context(session(cluster))
            plan = plan_workers(
                ray, ResourcesConfig(), workers=workers, threads=threads, device=device
            )
        compute = partial(encode_part, sae, store, str(folder), encoding, plan.device)
        num_rows = sum(part.stop - part.first for part in missing) * unit_rows
        advance = stack.enter_context(progress(console, "rows", num_rows))

        return map_reduce(
            missing, compute, PartCounts.__add__, initial=total, session=ray, workers=workers,
            threads=plan.threads, resources=plan.resources,
            on_done=lambda part: advance((part.stop - part.first) * unit_rows),
        )  # fmt: skip


def encode_part(
    sae: str, store: str, folder: str, encoding: Encoding, device: str, part: Part
) -> PartCounts:
    """Encode and write one part, in any process that sees the store and the folder."""
    trained, opened = _opened(sae, store, encoding.store, device)
    return write_part(Path(folder), part, _blocks(trained, opened, encoding, part, device))


@lru_cache(maxsize=1)
def _opened(
    sae: str, store: str, fingerprint: str, device: str
) -> tuple[TrainedSAE, ActivationStore]:
    opened = open_store(store).as_of(fingerprint)
    assert opened is not None, (store, fingerprint)
    return read_sae(sae).to(device), opened


def _blocks(
    sae: TrainedSAE, store: ActivationStore, encoding: Encoding, part: Part, device: str
) -> Iterator[tuple[int, Any, Any, Any]]:
    at_once = max(1, _LATENTS_AT_ONCE // sae.d_sae)
    code = None if encoding.split is None else store.lookup.split_code(encoding.split)
    for unit in range(part.first, part.stop):
        extent = store.schema.unit_extent(unit)
        wanted = np.ones(len(extent), bool)
        if code is not None:
            wanted &= store.splits_of(extent) == code
        if not encoding.excluded:
            wanted &= ~store.excluded(extent)
        rows = extent.start + np.flatnonzero(wanted)
        for start in range(0, len(rows), at_once):
            chosen = rows[start : start + at_once]
            acts = [_acts(store, site, chosen, device) for site in encoding.sites]
            x = acts[0] if len(acts) == 1 else torch.stack(acts, dim=1)
            with torch.inference_mode():
                row, latent, value = (one.cpu().numpy() for one in sae.encode_sparse(x))
            order = np.argsort(row * sae.d_sae + latent)  # within a row, as they were chosen
            yield len(chosen), chosen[row[order]], latent[order], value[order]


def _acts(store: ActivationStore, site: str, rows: Any, device: str) -> torch.Tensor:
    array = store[site]
    whole = Extent(int(rows[0]), int(rows[-1]) + 1)
    # Without a split, nearly all rows of a unit are wanted: one copy, then the few are left out.
    dense = len(whole) <= 2 * len(rows)
    acts = array.read(whole.start, whole.stop)[rows - whole.start] if dense else array.take(rows)
    return torch.from_numpy(acts.astype(np.float32)).to(device)


def fingerprint(sae: str) -> str:
    """Short hash of the files of an SAE."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder_of(sae) / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


_EXAMPLES = (
    "actlake sae encode runs/sae/resid_post.9-topk-4608 runs/smollm2 --out runs/latents",
    "actlake sae encode runs/sae/crosscoder runs/smollm2 --out runs/latents --split test",
    "actlake sae encode REPOSITORY:FOLDER runs/smollm2 --out runs/latents --sites resid_post.9 "
    "--any-hook --workers 4 --threads 2",
)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line of ``actlake sae encode``: the arguments of `encode_store`."""
    parser = argparse.ArgumentParser(
        prog="actlake sae encode",
        description="Encode the rows of a store with an SAE into a sparse table (row, latent, "
        "value): Parquet files that DuckDB, pandas and polars read. Killed at any moment, the "
        "same command goes on with the parts that are missing.",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in _EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sae", help="folder of an SAE, or REPOSITORY:FOLDER of the hub")
    parser.add_argument("store", help="path or URL of the store")
    parser.add_argument("--out", required=True, help="folder of the table")
    parser.add_argument("--split", help="rows of this split only (all)")
    parser.add_argument(
        "--excluded", action="store_true", help="encode position 0 and special tokens too"
    )
    parser.add_argument(
        "--sites", type=_names, help="sites to read, separated by commas (as the SAE says)"
    )
    parser.add_argument(
        "--any-hook", action="store_true", help="read --sites although the SAE names others"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, on Ray (1: without)")
    parser.add_argument("--threads", type=int, help="compute threads of each worker")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--part-rows", type=int, default=PART_ROWS, help=f"({PART_ROWS:,})")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run ``actlake sae encode``; its exit status."""
    options = read_options(arguments)
    try:
        result = encode_store(**vars(options))
    except WorkStopped as stopped:
        say(stopped)
        return 143
    say(closing_line(result))
    return 0


def closing_line(result: EncodeResult) -> str:
    """How an encoding ended, for a person."""
    if result.was_there:
        return f"{result.folder} is complete already; nothing was done"
    return (
        f"{result.values:,} activations of {result.rows:,} rows (L0 {result.l0:.1f}) in "
        f"{result.parquet}"
    )


def _names(written: str) -> list[str]:
    return [name.strip() for name in written.split(",") if name.strip()]
