"""Rows with a norm far above the others' at their site, which decide every second moment there.

    massive = find_massive(store, [Site(14)], split="train", max_norm=10)
    massive.rows[Site(14)]                # (12,) int64
    str(massive)                          # 12 of 77,347 rows …

A row is massive at a site where its norm is more than `max_norm` times the median norm of the
training rows there. They are few, mostly the first tokens of a text and line breaks ("Massive
Activations in Large Language Models", arXiv:2402.17762), and can hold most of the variance: at
layer 14 of SmolLM2, 12 of 77,347 rows hold 87 %. A map, an SAE or a probe fitted with them is
fitted to them, so jobs leave them out unless `max_norm` is null, and say how many they were.

Norms are stored beside the moments, so no row is read to find massive ones.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.jobs.chosen_rows import ChosenRows
from actlake.storage import ActivationStore, Extent, Site
from actlake.storage.errors import EmptySelection
from actlake.storage.moments import Moments

Array = np.ndarray[Any, Any]

MAX_NORM = 10.0
"""The usual multiple of the median norm."""
TOP_SHARE = 0.001
"""Of the rows, those with the largest norms whose share of the variance is told."""

_ROWS_AT_ONCE = 2**20
_MOST_NORMS = 2**22
"""Norms that a median is taken of: of more, as many that lie evenly among them. Its error is then
some 0.1 % of the spread of the norms."""
_MOST_READ = 4096
"""Rows that are read to tell their share of the variance."""


@dataclass(frozen=True, eq=False)
class MassiveRows:
    """The massive rows of some sites of a store, of all splits."""

    max_norm: float
    limits: Mapping[Site, float]
    """Of each site, the norm above which a row is massive."""
    rows: Mapping[Site, Array]
    """Of each site, (n,) int64, ascending."""
    num_rows: int
    """Rows that were looked at."""

    @property
    def anywhere(self) -> Array:
        """(n,) int64, ascending: rows that are massive at one of the sites or more."""
        every = [np.zeros(0, np.int64), *self.rows.values()]
        return np.unique(np.concatenate(every))

    def __str__(self) -> str:
        found = self.anywhere
        where = [
            f"{len(rows):,} at {site} (norm above {self.limits[site]:,.0f})"
            for site, rows in self.rows.items()
            if len(rows)
        ]
        shown = "; ".join(where[:3]) + ("; …" if len(where) > 3 else "")
        return (
            f"{len(found):,} of {self.num_rows:,} rows left out, with norms above "
            f"{self.max_norm:g} times the median of training rows" + (f": {shown}" if shown else "")
        )


def check_max_norm(max_norm: float | None, name: str = "max_norm") -> str | None:
    """Why there cannot be such a multiple; None where it can."""
    if max_norm is None or (max_norm > 1 and np.isfinite(max_norm)):
        return None
    return (
        f"{name} is a multiple of the median norm above 1, not {max_norm}\n"
        f"hint: {MAX_NORM:g} is usual; null leaves no row out"
    )


def find_massive(
    store: ActivationStore,
    sites: Iterable[Site],
    *,
    split: str | None,
    max_norm: float | None,
    excluded: bool = False,
) -> MassiveRows | None:
    """The massive rows of sites; None where `max_norm` is None.

    Parameters
    ----------
    split
        Of the training rows; None: all rows are.
    excluded
        Whether training rows include what the default exclusion leaves out. Rows that it leaves
        out anyway are not counted as massive.
    """
    if max_norm is None:
        return None
    limits = norm_limits(store, sites, split=split, max_norm=max_norm, excluded=excluded)
    rows = {}
    looked_at = 0
    for site, limit in limits.items():
        parts, looked_at = [np.zeros(0, np.int64)], 0
        for block in _readable(store, site):
            counts = np.ones(len(block), bool) if excluded else ~store.excluded(block)
            found = is_massive(store.norms(site)[block.slice()], limit) & counts
            parts.append(block.start + np.flatnonzero(found))
            looked_at += int(counts.sum())
        rows[site] = np.concatenate(parts)
    return MassiveRows(max_norm, limits, rows, looked_at)


def norm_limits(
    store: ActivationStore,
    sites: Iterable[Site],
    *,
    split: str | None,
    max_norm: float,
    excluded: bool = False,
    tokens: ActivationStore | None = None,
) -> dict[Site, float]:
    """Of each site the norm above which a row is massive; infinite where no row is of the split.

    Parameters
    ----------
    tokens
        The store whose splits say which rows are for training; `store` itself if left out.
    """
    limits = {}
    for site in sites:
        norms = np.concatenate(
            [
                np.zeros(0, np.float32),
                *(norms for _, norms in _training_norms(store, site, split, excluded, tokens)),
            ]
        )
        finite = norms[np.isfinite(norms)]
        limits[site] = max_norm * float(np.median(finite)) if len(finite) else float("inf")
    return limits


def is_massive(norms: Array, limit: float) -> Array:
    """(n,) bool. A row whose norm is no number is not: it is found, and named, where it is read."""
    massive: Array = norms > limit
    return massive & np.isfinite(norms)


def variance_of_top(
    store: ActivationStore, site: Site, *, split: str | None = None, excluded: bool = False
) -> float:
    """Share of a site's variance that the `TOP_SHARE` of its rows with the largest norms hold.

    That is, of the squared distances from the mean, summed; few rows are read for it. Of a large
    store, of rows that lie evenly. NaN where there are too few rows.
    """
    moments = store.moments(site, split=split, excluded=None if excluded else False)
    parts = list(_training_norms(store, site, split, excluded, None))
    if not parts or not float(moments.m2.sum()) > 0:
        return float("nan")
    rows, norms = (np.concatenate(column) for column in zip(*parts, strict=True))
    number = min(round(TOP_SHARE * len(rows)), _MOST_READ)
    if number < 1:
        return float("nan")
    top = np.sort(rows[np.argpartition(-norms, number - 1)[:number]])
    away = store[site].take(top).astype(np.float64) - moments.mean
    of_all = float(moments.m2.sum()) * len(rows) / moments.count
    return float(np.square(away).sum()) / of_all


def without_massive(
    store: ActivationStore,
    chosen: ChosenRows | None,
    massive: MassiveRows | None,
    *,
    excluded: bool = False,
) -> ChosenRows | None:
    """The chosen rows less those that are massive anywhere; what was given where none is.

    Raises
    ------
    EmptySelection
        No row is left.
    """
    if massive is None or not len(massive.anywhere):
        return chosen
    whole = chosen or ChosenRows.all_of(store, excluded=excluded)
    left = whole.without(massive.anywhere, named=f"{len(massive.anywhere):,} massive ones")
    if not len(left.rows):
        raise EmptySelection(
            f"No row is left: {massive}\nhint: a larger max_norm, or null, leaves fewer out"
        )
    return left


def less(moments: Moments, part: Moments) -> Moments:
    """Of the rows of `moments` that are not among those of `part`: `Moments.merge` undone."""
    count = moments.count - part.count
    if count < 1:
        return Moments.empty(len(moments.mean))
    mean = (moments.mean * moments.count - part.mean * part.count) / count
    delta = part.mean - mean
    m2 = moments.m2 - part.m2 - delta**2 * (count * part.count / moments.count)
    return Moments(count, mean, np.maximum(m2, 0.0), moments.norm_sum - part.norm_sum)


def _training_norms(
    store: ActivationStore,
    site: Site,
    split: str | None,
    excluded: bool,
    tokens: ActivationStore | None,
) -> Iterator[tuple[Array, Array]]:
    """Rows of a split, some that lie evenly where they are many, and their norms."""
    tokens = tokens or store
    every = max(1, store.schema.num_rows // _MOST_NORMS)
    for block in _readable(store, site):
        split_code, is_excluded = np.divmod(tokens.groups_of(block), 2)
        counts = np.ones(len(block), bool) if split is None else (
            split_code == tokens.split_code(split)
        )  # fmt: skip
        if not excluded:
            counts &= is_excluded == 0
        chosen = np.flatnonzero(counts)[::every]
        yield block.start + chosen, store.norms(site)[block.slice()][chosen]


def _readable(store: ActivationStore, site: Site) -> Iterator[Extent]:
    for rows in store.schema.rows_of(store.readable([site])):
        yield from rows.pieces(_ROWS_AT_ONCE)


def massive_facts(
    store: ActivationStore,
    massive: MassiveRows | None,
    sites: Sequence[Site],
    *,
    split: str | None,
    excluded: bool = False,
) -> str:
    """What a report says: how many rows were left out, and how unevenly the variance is held."""
    shares = {site: variance_of_top(store, site, split=split, excluded=excluded) for site in sites}
    finite = {site: share for site, share in shares.items() if np.isfinite(share)}
    left_out = "none left out (max_norm is null)" if massive is None else str(massive)
    if not finite:
        return left_out
    most = max(finite, key=lambda site: finite[site])
    return (
        f"{left_out}. The {TOP_SHARE:.1%} of the training rows with the largest norms hold "
        f"{finite[most]:.0%} of the variance at {most}"
        + (", the most of all sites" if len(finite) > 1 else "")
    )
