"""Which rows a job works on: those for which ``where`` is true, at every site and in every split.

    chosen = choose_rows(store, "segment = 'assistant'", splits={"rows.fit": "train"})
    chosen.mask(Extent(0, 1000))          # (1000,) bool
    str(chosen)                           # segment = 'assistant': train 8,210 of 20,000 rows; …

``where`` is what `ActivationStore.find` takes: SQL on tokens, documents and attached labels. It is
asked once; the answer is a bit a row. `RunRecord.inputs` names the rows by it, so that labels that
are others now make another run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from actlake.platform.runs import Input
from actlake.storage import ActivationStore, Extent, Site
from actlake.storage.errors import EmptySelection
from actlake.storage.moments import Moments
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.predicates import Predicate
from actlake.storage.reading.selection import Bitmap, RowSet, rows_where

Array = np.ndarray[Any, Any]
INPUT = "chosen_rows"
"""Name of the chosen rows among a run's inputs."""

MOST_ROWS_SUMMED = 2**20
"""Rows that `moments_of_rows` reads at most: seconds, where an epoch takes hours."""

_ROWS_AT_ONCE = 2**20
_ROWS_READ_AT_ONCE = 2**14


@dataclass(frozen=True, slots=True)
class Share:
    """How many rows of a split are chosen."""

    chosen: int
    of: int
    """Rows of the split, chosen or not."""


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """The rows of a store for which a predicate is true, excluded ones among them."""

    store: ActivationStore
    predicate: Predicate
    """It knows its answers: what reads batches `where` it is true asks nothing again."""
    rows: Bitmap
    excluded: bool
    """Whether `shares` counts what the default exclusion leaves out."""
    removed: Array | None = None
    """(n,) int64, ascending: the rows that are not chosen, where they were named one by one; then
    statistics of the chosen ones are those of the store less these few."""

    @classmethod
    def all_of(cls, store: ActivationStore, *, excluded: bool = False) -> "ChosenRows":
        """All rows of a store, committed or not."""
        predicate = Predicate(_everything)
        rows = rows_where(ManyStores([store]), predicate)
        return cls(store, predicate, rows, excluded, np.zeros(0, np.int64))

    def without(self, rows: Array, *, named: str) -> "ChosenRows":
        """The same rows less some, (n,) ascending; `named` says which, for people."""
        words = self.rows.words.copy()
        bits = words.view(np.uint8)
        np.bitwise_and.at(bits, rows // 8, ~(np.uint8(1) << (rows % 8).astype(np.uint8)))
        left = Bitmap(words)
        removed = None if self.removed is None else np.union1d(self.removed, rows)
        base = "all rows" if self.removed is not None else self.where
        predicate = Predicate(_InSet(left, f"{base}, without {named}"))
        return ChosenRows(self.store, predicate, left, self.excluded, removed)

    @property
    def where(self) -> str:
        """The predicate as it was written."""
        return str(self.predicate).removeprefix("function ")

    @property
    def fingerprint(self) -> str:
        """Names the rows: how many, and their checksum."""
        return f"{len(self.rows)}-{self.rows.checksum():08x}"

    def mask(self, rows: Extent) -> Array:
        """(n,) bool, of consecutive rows."""
        return mask_of(self.rows, rows)

    def holds(self, rows: Array) -> Array:
        """(n,) bool, of any rows."""
        held: Array = self.rows.rank(rows + 1) > self.rows.rank(rows)
        return held

    @cached_property
    def shares(self) -> Mapping[str, Share]:
        """Of each split of the store, by its name; one pass over the token tables."""
        splits = self.store.schema.splits
        of, chosen = np.zeros((2, 2 * len(splits)), np.int64)  # by `groups_of`
        for block in self.store.schema.blocks(_ROWS_AT_ONCE):
            groups = self.store.groups_of(block)
            of += np.bincount(groups, minlength=len(of))
            chosen += np.bincount(groups[self.mask(block)], minlength=len(of))
        kinds = slice(None) if self.excluded else 0
        return {
            split: Share(
                int(chosen.reshape(-1, 2)[code, kinds].sum()),
                int(of.reshape(-1, 2)[code, kinds].sum()),
            )
            for code, split in enumerate(splits)
        }

    @property
    def counts(self) -> str:
        """How many rows of each split are chosen, for people."""
        return ", ".join(
            f"{split} {share.chosen:,} of {share.of:,} rows" for split, share in self.shares.items()
        )

    def __str__(self) -> str:
        left_out = sum(share.of - share.chosen for share in self.shares.values())
        return f"{self.where}: {self.counts}; {left_out:,} left out"


def choose_rows(
    store: ActivationStore,
    where: str | None,
    *,
    splits: Mapping[str, str | None] | None = None,
    excluded: bool = False,
) -> ChosenRows | None:
    """The rows for which `where` is true; None, which is all rows, without one.

    Parameters
    ----------
    splits
        By the key of the configuration that names it, each split that must have some of them.
        None of a key, and a split that the store has not, are passed over.
    excluded
        Whether rows that are excluded by default are counted.

    Raises
    ------
    InvalidQuery
        The predicate cannot be read.
    EmptySelection
        It is true of no row, or of none of one of the splits; the counts are named.
    MissingExtra
        The extra ``query`` is not installed.
    """
    if where is None:
        return None
    predicate = Predicate(where)
    chosen = ChosenRows(store, predicate, rows_where(ManyStores([store]), predicate), excluded)
    if not any(share.chosen for share in chosen.shares.values()):
        raise EmptySelection(
            f"rows are asked for where {where}, and that is true of none of {store.url}: "
            f"{chosen.counts}\nhint: `store.find(where=…)` shows what a predicate finds"
            + ("" if excluded else "; position 0 of each context and special tokens are left out")
        )
    for key, split in (splits or {}).items():
        share = None if split is None else chosen.shares.get(split)
        if share is not None and not share.chosen:
            raise EmptySelection(
                f"No row of the split {split!r} ({key}) is left where {where}: {chosen.counts}\n"
                "hint: training, validation and test rows are chosen alike; ask for what each of "
                "these splits has, or divide the corpus otherwise"
            )
    return chosen


def _everything(block: Mapping[str, Array]) -> Array:
    return np.ones(len(block["row"]), bool)


class _InSet:
    """A predicate that is true of the rows of a set."""

    def __init__(self, rows: Bitmap, said: str) -> None:
        self._rows = rows
        self.__qualname__ = f"{said} ({rows.checksum():08x})"
        """What the predicate is called in the state of a reader: other rows, another name."""

    def __call__(self, block: Mapping[str, Array]) -> Array:
        rows = block["row"]
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        return mask_of(self._rows, Extent(first, last))


def inputs_of_rows(chosen: ChosenRows | None) -> dict[str, Input]:
    """What a run's record says of the rows: nothing where all take part."""
    return {} if chosen is None else {INPUT: Input(chosen.where, chosen.fingerprint)}


def mask_of(chosen: RowSet, rows: Extent) -> Array:
    """(n,) bool: which of consecutive rows are in a set."""
    mask = np.zeros(len(rows), bool)
    mask[chosen.between(rows.start, rows.stop) - rows.start] = True
    return mask


def moments_of_rows(
    store: ActivationStore, site: Site, rows: RowSet, *, most: int = MOST_ROWS_SUMMED
) -> Moments:
    """Mean, variance and norms of rows of a site, which are read for it.

    Of all rows, or of `most` that lie evenly among them where they are more.
    """
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(np.int64)
    total = Moments.empty(store.schema_of(site).dim)
    for start in range(0, len(places), _ROWS_READ_AT_ONCE):
        part = rows.select(places[start : start + _ROWS_READ_AT_ONCE])
        total = total.merge(Moments.of(store[site].take(part)))
    return total
