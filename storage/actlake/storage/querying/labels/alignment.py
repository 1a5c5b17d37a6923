"""How the keys of a label table fit a store: which labels do, and why the others do not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from actlake.storage.errors import InvalidQuery
from actlake.storage.querying.document_table import document_batches
from actlake.storage.querying.ranges import expanded
from actlake.storage.querying.spans import TokenExtents
from actlake.storage.querying.text_search import document_tokens

if TYPE_CHECKING:  # store.py attaches labels
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Kind = Literal["document", "span", "row"]
KEYS: dict[tuple[str, ...], Kind] = {
    ("document",): "document",
    ("document_number",): "document",
    ("document", "start", "stop"): "span",
    ("document_number", "start", "stop"): "span",
    ("row",): "row",
}
"""The columns by which labels may be keyed, and what they are then of."""
_REASONS = (
    "missing_keys",
    "unknown_documents",
    "outside_text",
    "empty_spans",
    "without_tokens",
    "out_of_range",
    "duplicates",
)
# Whole floats are integers without doubt up to here.
_LARGEST_WHOLE = 2**53


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a label table fits the store: of `given` labels, `kept`, and why not the others."""

    given: int
    kept: int
    missing_keys: int = 0
    """The key is null."""
    unknown_documents: int = 0
    outside_text: int = 0
    """The span begins before the text, or ends after it."""
    empty_spans: int = 0
    without_tokens: int = 0
    """The span's part of the text was not laid out as rows."""
    out_of_range: int = 0
    """There is no such row."""
    duplicates: int = 0
    """A label with the same key came before."""
    examples: tuple[str, ...] = ()
    """The first few keys that were not kept."""

    @property
    def misaligned(self) -> int:
        """Labels that do not fit."""
        return self.given - self.kept

    def __str__(self) -> str:
        text = f"{self.kept:,} of {self.given:,} labels fit"
        for field in fields(self)[2:-1]:
            if count := getattr(self, field.name):
                text += f"; {count:,} {field.name.replace('_', ' ')}"
        return text


class Fitted:
    """Which labels fit: the reason against each, and the key of those that do.

    Attributes
    ----------
    labels
        (n,) int64 places in the given table; a span's comes once for each of its tokens.
    key
        (n,) int64 numbers of documents or rows of `labels`, ascending.
    """

    def __init__(self, num_labels: int) -> None:
        self.labels = np.empty(0, np.int64)
        self.key = np.empty(0, np.int64)
        self._reason = np.full(num_labels, -1, np.int8)  # into _REASONS; -1 fits

    def refuse(self, reason: str, which: Array) -> None:
        """Mark labels, by a mask or by their places, that were not refused before."""
        places = np.arange(len(self._reason))[which]
        self._reason[places[self.fits[places]]] = _REASONS.index(reason)

    def keep(self, key: Array) -> None:
        """Take the labels that fit, in order of their key; `key` is of all labels."""
        order = np.argsort(key, kind="stable")
        self.labels = order[self.fits[order]]
        self.key = key[self.labels]

    @property
    def fits(self) -> Array:
        """(labels,) bool: which were not refused."""
        return self._reason < 0

    def alignment(self, given: pa.Table, keys: Sequence[str]) -> Alignment:
        """The counts, and examples in words."""
        bad = np.flatnonzero(~self.fits)
        examples = tuple(
            f"label {place}: "
            + ", ".join(f"{key} {given[key][place].as_py()!r}" for key in keys)
            + f" ({_REASONS[self._reason[place]].replace('_', ' ')})"
            for place in bad[:3].tolist()
        )
        counts = {name: int((self._reason == code).sum()) for code, name in enumerate(_REASONS)}
        return Alignment(
            given=len(self._reason), kept=int(self.fits.sum()), examples=examples, **counts
        )


def fit(store: "ActivationStore", given: pa.Table, key: tuple[str, ...]) -> Fitted:
    """Fit the keys of a label table, one of `KEYS`, to the store.

    Raises
    ------
    InvalidQuery
        A key column does not hold what its keys can be.
    """
    fitted = Fitted(len(given))
    if KEYS[key] == "row":
        _fit_rows(store, given, fitted)
        return fitted
    by_number = key[0] == "document_number"
    numbers = (_by_number if by_number else _by_id)(store, given, fitted)
    if KEYS[key] == "span":
        _fit_spans(store, given, numbers, fitted)
    else:
        fitted.refuse("duplicates", _seen_before(fitted, numbers))
        fitted.keep(numbers)
    return fitted


def _fit_rows(store: "ActivationStore", given: pa.Table, fitted: Fitted) -> None:
    rows = _integers(given, "row", fitted)
    outside = np.ones(len(rows), bool)
    for stretch in store.schema.stretches:
        outside &= (rows < stretch.rows.start) | (rows >= stretch.rows.stop)
    fitted.refuse("out_of_range", outside)
    fitted.refuse("duplicates", _seen_before(fitted, rows))
    fitted.keep(rows)


def _fit_spans(store: "ActivationStore", given: pa.Table, documents: Array, fitted: Fitted) -> None:
    begins, ends = _integers(given, "start", fitted), _integers(given, "stop", fitted)
    fitted.refuse("outside_text", begins < 0)
    fitted.refuse("empty_spans", ends <= begins)
    fitted.refuse("duplicates", _seen_before(fitted, documents, begins, ends))
    labels, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, own, text in _documents(store, documents, fitted):
        own_rows, extents = document_tokens(store, number, text)
        beyond = ends[own] > _end(text, extents)
        fitted.refuse("outside_text", own[beyond])
        own = own[~beyond]
        first, last = extents.overlapping(begins[own], ends[own])
        fitted.refuse("without_tokens", own[last == first])
        which, places = expanded(first, last - first)
        labels.append(own[which])
        rows.append(own_rows[extents.tokens[places]])
    all_labels, all_rows = np.concatenate(labels), np.concatenate(rows)
    order = np.lexsort((all_labels, all_rows))
    fitted.labels, fitted.key = all_labels[order], all_rows[order]


def _documents(
    store: "ActivationStore", documents: Array, fitted: Fitted
) -> Iterator[tuple[int, Array, str | None]]:
    """Of each labelled document its number, its labels that fit so far, and its text."""
    order = np.argsort(documents, kind="stable")
    order = order[fitted.fits[order]]
    labelled, begins = np.unique(documents[order], return_index=True)
    groups = dict(zip(labelled.tolist(), np.split(order, begins[1:]), strict=False))
    if not groups:
        return
    wanted = np.zeros(store.schema.documents, bool)
    wanted[labelled] = True
    for first, batch in document_batches(store, ["text"], wanted=wanted):
        for number in range(first, first + batch.num_rows):
            if number in groups:
                yield number, groups[number], batch["text"][number - first].as_py()


def _end(text: str | None, extents: TokenExtents) -> float:
    """Where the text ends; if it was not kept, where its last token does."""
    if text is not None:
        return len(text)
    return int(extents.stops[-1]) if len(extents.stops) else np.inf


def _by_number(store: "ActivationStore", given: pa.Table, fitted: Fitted) -> Array:
    """(n,) int64 numbers of documents; 0 where there is none, and refused."""
    numbers = _integers(given, "document_number", fitted)
    unknown = (numbers < 0) | (numbers >= store.schema.documents)
    fitted.refuse("unknown_documents", unknown)
    return np.where(unknown, 0, numbers)


def _by_id(store: "ActivationStore", given: pa.Table, fitted: Fitted) -> Array:
    """(n,) int64 numbers of the documents with these ids; 0 where there is none, and refused."""
    ids = _ids(given["document"])
    fitted.refuse("missing_keys", ids.is_null().to_numpy(zero_copy_only=False))
    found = store.lookup.document_numbers(ids.to_pylist())
    fitted.refuse("unknown_documents", found < 0)
    return np.maximum(found, 0)


def _ids(given: pa.ChunkedArray) -> pa.Array:
    """(n,) ids as a store has them, which is as text: the number 12 is the id ``"12"``."""
    column = _whole(_plain(given), "document")
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InvalidQuery(
            f"The key column `document` holds {column.type}\n"
            "hint: it must hold documents' ids, as text or as whole numbers"
        )
    return column


def _integers(given: pa.Table, name: str, fitted: Fitted) -> Array:
    """(n,) int64 of a key column; nulls are refused, and 0."""
    column = _whole(_plain(given[name]), name)
    if not pa.types.is_integer(column.type):
        raise InvalidQuery(
            f"The key column `{name}` holds {column.type}\nhint: it must hold integers"
        )
    fitted.refuse("missing_keys", column.is_null().to_numpy(zero_copy_only=False))
    values: Array = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _plain(given: pa.ChunkedArray) -> pa.Array:
    """In one piece, and not coded by a dictionary, as a pandas category is."""
    column = given.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunks
        column = pa.array([], column.type)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _whole(column: pa.Array, name: str) -> pa.Array:
    """Whole floats as integers, NaN as null: what pandas makes of integers with gaps.

    Whole decimals too, which databases make of large integers; what is no number stays as it is.
    """
    if pa.types.is_decimal(column.type) and column.type.scale == 0:
        return column.cast(pa.int64())
    if not pa.types.is_floating(column.type):
        return column
    numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
    missing = np.isnan(numbers)
    broken = ~missing & ((np.abs(numbers) >= _LARGEST_WHOLE) | (numbers != np.rint(numbers)))
    if broken.any():
        raise InvalidQuery(
            f"The key column `{name}` holds {column.type} such as {numbers[broken][0]}\n"
            "hint: it must hold integers"
        )
    return pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)


def _seen_before(fitted: Fitted, *keys: Array) -> Array:
    """(n,) bool, which labels have the key of an earlier one that fits so far."""
    fits = np.flatnonzero(fitted.fits)
    stacked = np.stack([key[fits] for key in keys], axis=1)
    _, first = np.unique(stacked, axis=0, return_index=True)
    seen = np.zeros(len(fitted.fits), bool)
    seen[np.delete(fits, first)] = True
    return seen
