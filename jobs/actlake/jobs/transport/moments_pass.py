"""One pass over the rows: the moments of all pairs, resumable, on any number of workers.

Share after share: first the rows to fit on, then those to validate on, then the test groups
one by one. A share is summed in spans of parts, with a look at the clock between them. The
order of all additions is fixed, so that neither workers nor crashes change a bit.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from actlake.jobs.chosen_rows import ChosenRows
from actlake.jobs.massive_rows import norm_limits
from actlake.jobs.transport.block_sums import (
    CHUNK_ROWS,
    BlockSums,
    Precision,
    add_sums,
    origins,
    sum_part,
)
from actlake.jobs.transport.blocks import Design
from actlake.jobs.transport.errors import MomentsMismatch
from actlake.jobs.transport.massive_table import massive_tables
from actlake.jobs.transport.moments_file import (
    COMPLETE,
    REQUEST,
    RUNNING,
    MomentsRequest,
    StoredMoments,
    StoredShares,
    find_moments,
    is_group,
    read_shares,
    read_sums,
    share_file,
    write_json,
    write_massive,
    write_shares,
    write_sums,
)
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.parts import PART_ROWS, TEST, Part, Shares, divide
from actlake.jobs.widths import one_width
from actlake.platform.cluster import ARITY, Resources, Session, map_reduce
from actlake.platform.safetensors_files import plain_mode
from actlake.storage import ActivationStore, open_store
from actlake.storage.summary import human_bytes

logger = logging.getLogger(__name__)

SPAN_PARTS = ARITY
"""Parts of a worker between two looks at the clock for a checkpoint; a multiple of `ARITY`, and
then the bits do not depend on it."""
CHECKPOINT_EVERY_S = 60.0

# What a thread of a recent x86 core does in float32 matrix products; only plans depend on it.
_THREAD_FLOPS = 30e9


@dataclass(frozen=True, kw_only=True)
class MomentsPlan:
    """What the pass will do, in numbers; printed before it begins."""

    rows: int
    """Rows to read, of all shares."""
    columns: int
    blocks: int
    flops: float
    read_bytes: int
    memory_bytes: int
    """Of each worker, at most: three sums and a chunk of rows."""
    disk_bytes: int
    seconds: float
    """A guess, if cores do what is usual."""

    def __str__(self) -> str:
        return (
            f"moments   {self.blocks:,} blocks of {self.columns:,} columns over {self.rows:,} "
            f"rows: {human_bytes(self.read_bytes)} to read, {self.flops / 1e12:,.1f} TFLOP\n"
            f"          {human_bytes(self.memory_bytes)} of memory a worker, "
            f"{human_bytes(self.disk_bytes)} on disk, about {self.seconds:,.0f} s"
        )


def plan_moments(
    stores: Sequence[ActivationStore], request: MomentsRequest, shares: Shares, *, threads: int
) -> MomentsPlan:
    """Memory, disk and time of the pass, from sizes alone."""
    rows = sum(part.num_rows for part in shares.parts)
    columns = sum(len(alignment.columns) for alignment in request.design.alignments)
    item = np.dtype(request.precision).itemsize
    read = sum(
        stores[column.store].schema_of(column.site).row_bytes
        for alignment in request.design.alignments
        for column in alignment.columns
    )
    sums = request.sums_bytes()
    flops = 2.0 * rows * request.design.num_blocks * request.width**2
    most = max(len(alignment.columns) for alignment in request.design.alignments)
    chunk = (CHUNK_ROWS + request.width) * most * request.width * item
    return MomentsPlan(
        rows=rows,
        columns=columns,
        blocks=request.design.num_blocks,
        flops=flops,
        read_bytes=rows * read,
        memory_bytes=3 * sums + chunk,
        disk_bytes=3 * sums + len(shares.test_groups) * sums // 2,
        seconds=flops / (_THREAD_FLOPS * threads) * (item / 4),
    )


def request_moments(
    stores: Sequence[ActivationStore],
    pairs: Sequence[Pair],
    *,
    fit: str = "train",
    validate: str | None = None,
    test: str = "test",
    groups: int = 20,
    excluded: bool = False,
    chosen: ChosenRows | None = None,
    max_norm: float | None = None,
    precision: Precision = "float32",
    part_rows: int = PART_ROWS,
) -> MomentsRequest:
    """What the moments of some pairs are to be of; see `TransportConfig`."""
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    read = [sources, targets] if len(stores) == 2 else [sources + targets]
    return MomentsRequest(
        fingerprints=tuple(store.fingerprint for store in stores),
        dims=tuple(one_width(store, sites) for store, sites in zip(stores, read, strict=True)),
        dtypes=tuple(
            (number, str(site), stores[number].schema_of(site).dtype)
            for number, sites in enumerate(read)
            for site in sorted(set(sites))
        ),
        design=Design.of(pairs, two_stores=len(stores) == 2),
        fit=fit,
        validate=validate,
        test=test,
        groups=groups,
        excluded=excluded,
        chosen=None if chosen is None else chosen.fingerprint,
        max_norm=max_norm,
        precision=precision,
        part_rows=part_rows,
    )


def shares_of(
    stores: Sequence[ActivationStore], request: MomentsRequest, chosen: ChosenRows | None = None
) -> Shares:
    """Which rows of the first store are for what; `chosen` are those of the request."""
    assert request.chosen == (None if chosen is None else chosen.fingerprint), request
    return divide(
        stores[0],
        fit=request.fit,
        validate=request.validate,
        test=request.test,
        groups=request.groups,
        chosen=None if chosen is None else chosen.rows,
        part_rows=request.part_rows,
    )


def compute_moments(
    stores: Sequence[ActivationStore],
    request: MomentsRequest,
    root: Path,
    *,
    session: Session | None = None,
    workers: int = 1,
    threads: int = 1,
    resources: Resources | None = None,
    shares: Shares | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> StoredMoments:
    """The moments of a request: found below `root`, gone on with, or computed.

    Parameters
    ----------
    stores
        One; or the source's and the target's.
    shares
        From `shares_of`; must be given where rows are chosen.
    root
        Folder of all moments; see `moments_file`.
    session, workers, threads, resources
        As in `map_reduce`.
    on_rows
        Told how many rows have been summed since it was told last.

    Raises
    ------
    NotEnoughRows
        A split is unknown or empty.
    NonFiniteRows
        A site holds infinities or NaNs.
    RowsNotCommitted
        A site is not whole.
    WorkStopped
        The session was stopped; the same call goes on.
    """
    if found := find_moments(root, request):
        logger.info("Using the moments in %s", found.folder)
        return found
    folder = root / request.key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{request.key}.lock", mode=plain_mode(root)):
        if not (folder / COMPLETE).is_file():
            shares = shares or shares_of(stores, request)
            write_json(folder / REQUEST, request.as_json())
            _begin(folder, stores, request, shares)
            run = _Pass(
                folder, stores, request, shares, session, workers, threads, resources, on_rows
            )
            run.run()
    return StoredMoments(folder)


def _begin(
    folder: Path, stores: Sequence[ActivationStore], request: MomentsRequest, shares: Shares
) -> None:
    """Write down what is decided before the pass: shares, origins, limits and massive rows."""
    found = {
        column: origin
        for number, store in enumerate(stores)
        for column, origin in origins(store, request.design, number, request.fit).items()
    }
    limits = _limits(stores, request)
    write_shares(folder, StoredShares(shares.of_document, found, limits, shares.chosen))
    tables = massive_tables(
        stores, request.design, shares, limits, excluded=request.excluded, width=request.width
    )
    write_massive(folder, tables)


def _limits(stores: Sequence[ActivationStore], request: MomentsRequest) -> dict[str, float]:
    """Of each column the norm above which a row is massive; empty where none is to be left out."""
    if request.max_norm is None:
        return {}
    columns = {column for alignment in request.design.alignments for column in alignment.columns}
    sites = sorted({(column.store, column.site) for column in columns})
    limit_of = {
        (number, site): norm_limits(
            stores[number], [site],
            split=request.fit, max_norm=request.max_norm, excluded=request.excluded,
            tokens=stores[0],
        )[site]
        for number, site in sites
    }  # fmt: skip
    return {str(column): limit_of[column.store, column.site] for column in columns}


@dataclass
class _Pass:
    folder: Path
    stores: Sequence[ActivationStore]
    request: MomentsRequest
    shares: Shares
    session: Session | None
    workers: int
    threads: int
    resources: Resources | None
    on_rows: Callable[[int], None]
    groups_tested: list[str] = field(default_factory=list)
    tested_written: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        compute = partial(sum_part_of, str(self.folder), tuple(store.url for store in self.stores))
        tested: BlockSums | None = None
        for share in self.shares.names:
            done = share_file(self.folder, share)
            if is_group(share):
                tested = tested if tested is not None else self._tested_so_far()
                if done.is_file() and share in self.groups_tested:
                    self._tell(self.shares.parts_of(share))
                    continue
                sums = self._share(share, compute)
                write_sums(done, sums, dtype=np.float32)
                tested = sums if tested is None else add_sums(tested, sums)
                self.groups_tested.append(share)
                self._checkpoint_tested(tested, share)
            elif done.is_file():
                self._tell(self.shares.parts_of(share))
            else:
                write_sums(done, self._share(share, compute))
            (self.folder / RUNNING).unlink(missing_ok=True)
        write_json(
            self.folder / COMPLETE,
            {
                "format": 1,
                "held_out": self.shares.held_out,
                "groups": list(self.shares.test_groups),
                "rows": {share: self.shares.rows_of(share) for share in self.shares.names},
            },
        )

    def _tested_so_far(self) -> BlockSums | None:
        """The sum of the test groups that are done, as of the last run."""
        self.groups_tested = []
        path = share_file(self.folder, TEST)
        if not path.is_file():
            return None
        sums, about = read_sums(path, self.request.design)
        self.groups_tested = about["groups"].split(",")
        return sums

    def _checkpoint_tested(self, tested: BlockSums, share: str) -> None:
        late = time.monotonic() - self.tested_written > CHECKPOINT_EVERY_S
        if late or share == self.shares.test_groups[-1]:
            about = {"groups": ",".join(self.groups_tested)}
            write_sums(share_file(self.folder, TEST), tested, about=about)
            self.tested_written = time.monotonic()

    def _share(self, share: str, compute: Callable[[Part], BlockSums]) -> BlockSums:
        parts = self.shares.parts_of(share)
        running, begin = self._running(share)
        self._tell(parts[:begin])
        written = time.monotonic()
        span_parts = SPAN_PARTS * self.workers
        for start in range(begin, len(parts), span_parts):
            if self.session is not None:
                self.session.raise_if_stopped()
            span = parts[start : start + span_parts]
            running = map_reduce(
                span,
                compute,
                add_sums,
                initial=running,
                session=self.session,
                workers=self.workers,
                threads=self.threads,
                resources=self.resources,
                on_done=lambda part: self._tell([part]),
            )
            if time.monotonic() - written > CHECKPOINT_EVERY_S:
                about = {"share": share, "parts": str(start + len(span))}
                write_sums(self.folder / RUNNING, running, about=about)
                written = time.monotonic()
        return running if running is not None else self._no_rows()

    def _running(self, share: str) -> tuple[BlockSums | None, int]:
        path = self.folder / RUNNING
        if not path.is_file():
            return None, 0
        sums, about = read_sums(path, self.request.design)
        if about["share"] != share:
            return None, 0
        logger.info("Going on with %s after %s parts", share, about["parts"])
        return sums, int(about["parts"])

    def _no_rows(self) -> BlockSums:
        return BlockSums.zeros(self.request.design, self.request.width)

    def _tell(self, parts: Sequence[Part]) -> None:
        if parts:
            self.on_rows(sum(part.num_rows for part in parts))


def sum_part_of(folder: str, urls: tuple[str, ...], part: Part) -> BlockSums:
    """`sum_part`, in any process that sees the stores and the folder of the moments."""
    task = _opened(folder, urls)
    return sum_part(
        task.stores,
        task.request.design,
        task.shares.origins,
        task.shares.of_document,
        part,
        excluded=task.request.excluded,
        chosen=task.shares.chosen,
        limits=task.shares.limits,
        precision=task.request.precision,
    )


@dataclass(frozen=True)
class _Task:
    stores: tuple[ActivationStore, ...]
    request: MomentsRequest
    shares: StoredShares


@lru_cache(maxsize=2)
def _opened(folder: str, urls: tuple[str, ...]) -> _Task:
    import json

    request = MomentsRequest.from_json(
        json.loads((Path(folder) / REQUEST).read_text(encoding="utf-8"))
    )
    stores = [
        _as_of(open_store(url), fingerprint)
        for url, fingerprint in zip(urls, request.fingerprints, strict=True)
    ]
    return _Task(tuple(stores), request, read_shares(Path(folder)))


def _as_of(store: ActivationStore, fingerprint: str) -> ActivationStore:
    """The store as the driver opened it, though it was appended to meanwhile."""
    before = store.as_of(fingerprint)
    if before is None:
        raise MomentsMismatch(
            f"{store.url} has another fingerprint than when the fit began\n"
            "hint: another store has taken its place; fit again"
        )
    return before
