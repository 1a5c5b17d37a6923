"""Which rows are for fitting, for choosing α, for testing, and in which jackknife group.

Rows belong to a *share* by their document: ``fit``, ``validate``, or one of the groups
``test-00``, ``test-01``, … of test documents. Test documents that follow each other are a
group, about as many rows in each. Where the store has no split for validation, every tenth
document of the training split is held out for choosing α, and the final map is fitted on
both.

A *part* is a share's rows in a few units of work: what one task sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.jobs.chosen_rows import mask_of
from actlake.jobs.transport.errors import NotEnoughRows
from actlake.storage import ActivationStore, Extent
from actlake.storage.errors import nearest
from actlake.storage.reading.selection import Bitmap, RowSet

Array = np.ndarray[Any, Any]

FIT, VALIDATE, TEST = "fit", "validate", "test"
PART_ROWS = 16_384
"""Rows of the units of a part, at least: a few seconds of work, and much more than the time an
addition of its sums takes."""
HELD_OUT_EVERY = 10
_ROWS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """One share's rows in some units."""

    share: int
    """Number of the share in `Shares.names`."""
    rows: Extent
    """Whole units."""
    num_rows: int
    """How many of those rows are chosen and the share's, excluded ones included."""


@dataclass(frozen=True)
class Shares:
    """Of every document, the share it belongs to."""

    names: tuple[str, ...]
    of_document: Array
    """(documents,) int16, number of the share; -1: of none."""
    held_out: bool
    """Whether ``validate`` was taken from the training split."""
    parts: tuple[Part, ...]
    """Sorted by share, then by row."""
    chosen: Bitmap | None = None
    """The rows that count, at both ends of a pair; None: all."""

    def parts_of(self, share: str) -> list[Part]:
        """The parts of one share, in order."""
        number = self.names.index(share)
        return [part for part in self.parts if part.share == number]

    def rows_of(self, share: str) -> int:
        """Rows of a share, those included that are excluded by default."""
        return sum(part.num_rows for part in self.parts_of(share))

    @property
    def test_groups(self) -> tuple[str, ...]:
        """Names of the groups of test documents."""
        return tuple(name for name in self.names if name.startswith(TEST))


def divide(
    store: ActivationStore,
    *,
    fit: str,
    validate: str | None,
    test: str,
    groups: int,
    chosen: Bitmap | None = None,
    part_rows: int = PART_ROWS,
) -> Shares:
    """Give every document its share; reads a few bytes a row, and no activation.

    Parameters
    ----------
    fit, validate, test
        Names of splits; without one for validation some training documents are held out.
    groups
        Jackknife groups of test documents; fewer where there are fewer documents.
    chosen
        Rows that count; None: all. A document without one has no share.

    Raises
    ------
    NotEnoughRows
        A split is unknown or has no rows.
    """
    rows_of_document = _rows_of_documents(store, chosen)
    split_of_document = np.array(store.documents(["split"])["split"].to_pylist())
    occupied = rows_of_document > 0
    of_document = np.full(len(occupied), -1, np.int16)
    for split in filter(None, (fit, validate, test)):
        _require_rows(store, split, bool((occupied & (split_of_document == split)).any()))

    training = np.flatnonzero(occupied & (split_of_document == fit))
    of_document[training] = 0
    if validate is not None:
        of_document[occupied & (split_of_document == validate)] = 1
    else:
        held_out = training[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
        if len(held_out) == 0:
            held_out = training[-1:] if len(training) > 1 else training[:0]
        of_document[held_out] = 1
    testing = np.flatnonzero(occupied & (split_of_document == test))
    group, num_groups = _groups(rows_of_document[testing], groups)
    of_document[testing] = 2 + group
    names = (FIT, VALIDATE, *(f"{TEST}-{number:02d}" for number in range(num_groups)))
    return Shares(
        names,
        of_document,
        validate is None,
        tuple(_parts(store, of_document, len(names), part_rows, chosen)),
        chosen,
    )


def _groups(rows: Array, wanted: int) -> tuple[Array, int]:
    """Cut documents into at most `wanted` runs with about as many rows each."""
    middle = np.cumsum(rows) - rows / 2
    group = np.minimum((middle * wanted / rows.sum()).astype(np.int64), wanted - 1)
    used, compact = np.unique(group, return_inverse=True)
    return compact.astype(np.int16), len(used)


def _rows_of_documents(store: ActivationStore, chosen: RowSet | None) -> Array:
    count = np.zeros(store.schema.documents, np.int64)
    for rows in store.schema.blocks(_ROWS_AT_ONCE):
        documents = _documents(store, rows, chosen)
        if not len(documents):
            continue
        first = int(documents.min())
        found = np.bincount(documents - first)
        count[first : first + len(found)] += found
    return count


def _parts(
    store: ActivationStore,
    of_document: Array,
    num_shares: int,
    part_rows: int,
    chosen: RowSet | None,
) -> Iterator[Part]:
    unit_rows = store.schema.geometry.unit_rows
    length = unit_rows * max(1, -(-part_rows // unit_rows))
    extents = list(store.schema.blocks(length))
    counts = np.zeros((num_shares, len(extents)), np.int64)
    for number, rows in enumerate(extents):
        share = of_document[_documents(store, rows, chosen)]
        counts[:, number] = np.bincount(share[share >= 0], minlength=num_shares)
    for share_number in range(num_shares):
        for number in np.flatnonzero(counts[share_number]).tolist():
            yield Part(share_number, extents[number], int(counts[share_number, number]))


def _documents(store: ActivationStore, rows: Extent, chosen: RowSet | None) -> Array:
    """The document of each row that counts."""
    documents: Array = store.tokens["document"][rows.slice()]
    return documents if chosen is None else documents[mask_of(chosen, rows)]


def _require_rows(store: ActivationStore, split: str, has_rows: bool) -> None:
    if split not in store.schema.splits:
        raise NotEnoughRows(
            f"There is no split {split!r} in {store.url}\n{nearest(split, store.schema.splits)}"
        )
    if not has_rows:
        raise NotEnoughRows(
            f"The split {split!r} of {store.url} has no rows\n"
            "hint: harvest a text of more documents, or divide it otherwise "
            "(corpus.splits.fractions); documents are divided, not tokens"
        )


def rows_of_part(
    store: ActivationStore,
    of_document: Array,
    part: Part,
    offset: int,
    *,
    excluded: bool,
    chosen: RowSet | None = None,
) -> Array:
    """The rows i of a part for which row i and row i + offset count, (n,) int64, ascending.

    Row i + offset must be in the same context and document. Position 0 and special ids are
    left out on both sides unless `excluded`, and so are rows that are not `chosen`.
    """
    rows = part.rows
    here = _Tokens.of(store, rows)
    count = of_document[here.document] == part.share
    if not excluded:
        count &= ~here.excluded
    if chosen is not None:
        count &= mask_of(chosen, rows)
    if offset:
        there = np.arange(rows.start, rows.stop) + offset
        (own,) = (s.rows for s in store.schema.stretches if len(s.rows.intersect(rows)))
        inside = (there >= own.start) & (there < own.stop)
        low, high = np.clip([rows.start + offset, rows.stop + offset], own.start, own.stop)
        others = Extent(int(low), int(max(low, high)))
        other = _Tokens.of(store, others)
        at = np.clip(there - low, 0, max(0, len(other.document) - 1))
        count &= inside
        if len(other.document):
            # Positions run on within a context and start again in the next.
            count &= other.position[at] - here.position == offset
            count &= other.document[at] == here.document
            if not excluded:
                count &= ~other.excluded[at]
            if chosen is not None:
                count &= mask_of(chosen, others)[at]
    return rows.start + np.flatnonzero(count)


@dataclass(frozen=True, slots=True)
class _Tokens:
    document: Array
    position: Array
    excluded: Array

    @classmethod
    def of(cls, store: ActivationStore, rows: Extent) -> "_Tokens":
        return cls(
            store.tokens["document"][rows.slice()],
            store.tokens["position"][rows.slice()].astype(np.int64),
            store.excluded(rows),
        )


def warn_if_few(rows: int, width: int) -> str | None:
    """Words of warning where there are few rows to fit a map of this width; None where not."""
    if rows >= 10 * width:
        return None
    held = "the map can pass through every row" if rows <= width else "it will be overfitted"
    return (
        f"{rows:,} rows to fit a map from {width:,} dimensions: fewer than 10 a dimension, "
        f"{held}; ridge and the held-out numbers say how far"
    )


def check_same_tokens(one: ActivationStore, other: ActivationStore) -> str | None:
    """Why row i of two stores is not the same token; None where it is, in all rows."""
    if one.schema.stretches != other.schema.stretches:
        counts = [f"{s.url} {s.schema.num_rows:,}" for s in (one, other)]
        if one.schema.num_rows != other.schema.num_rows:
            return f"there are different numbers of rows: {counts[0]}, {counts[1]}"
        return f"{one.url} and {other.url} have rows of other numbers: one was appended to"
    for rows in one.schema.blocks(_ROWS_AT_ONCE):
        for name in ("id", "position", "document"):
            a, b = (store.tokens[name][rows.slice()] for store in (one, other))
            different: Sequence[int] = np.flatnonzero(a != b)[:1].tolist()
            if different:
                at = different[0]
                return (
                    f"row {rows.start + at:,} has {name} {a[at]} in {one.url} and {b[at]} in "
                    f"{other.url}"
                )
    return None
