"""Label tables, attached to a store beside its rows, which stay as they are.

A label table is keyed in one of three ways:

    "document"                     a label a document: its id, or its ordinal
    ("document", "start", "stop")  a label a span of characters ``start <= c < stop``
    "row"                          a label a row

and holds any other columns. It is kept as ``labels/<name>.parquet``: by ordinal and by row, the
spans already mapped to their tokens. Keys that are not of the store are counted, and refused
unless they are asked to be dropped.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from actlake.storage.errors import (
    InvalidQuery,
    LabelsMisaligned,
    LabelsNotAttached,
    StoreDamaged,
    StoreMismatch,
    nearest,
)
from actlake.storage.location import LocalFolder
from actlake.storage.querying.document_table import document_batches
from actlake.storage.querying.index_file import corpus_key
from actlake.storage.querying.relations import Relation
from actlake.storage.querying.rows import Rows
from actlake.storage.querying.text_search import document_tokens

if TYPE_CHECKING:  # store.py attaches labels
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Key = Literal["document", "row"] | tuple[Literal["document"], Literal["start"], Literal["stop"]]
Misaligned = Literal["refuse", "drop"]
FOLDER = "labels"
_SPAN = ("document", "start", "stop")
_METADATA = b"actlake.labels"
_FORMAT = 1
_TAKEN = {"tokens", "documents", "vocabulary"}
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_BATCH = 2**17


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


class Labels:
    """An attached label table. `ActivationStore.labels` opens one.

    Attributes
    ----------
    name
        Under which it is attached; in SQL the name of its table.
    key
        ``document``, ``span`` or ``row``: what a label is of.
    alignment
        How the given table fitted.
    columns
        Names of the label columns, without the key.
    """

    def __init__(self, store: "ActivationStore", name: str) -> None:
        schema = _schema(store, name)
        said = json.loads(schema.metadata[_METADATA])
        said["alignment"]["examples"] = tuple(said["alignment"]["examples"])
        self.store = store
        self.name = name
        self.key: str = said["key"]
        self.alignment = Alignment(**said["alignment"])
        self.columns = tuple(said["columns"])

    def table(self) -> pa.Table:
        """As stored: by document (ordinal), or by row (spans: a row a token of each span)."""
        relation = labels_relation(self.store, self.name)
        return pa.Table.from_batches(list(relation.reader()), relation.schema)

    @cached_property
    def _aligned(self) -> pa.Table:
        table = self.table()
        if self.key == "document":
            which, rows = self.store.lookup.documents.rows_of_each(table["document"].to_numpy())
            order = np.argsort(rows, kind="stable")
            table = table.select(self.columns).take(pa.array(which[order]))
            return table.add_column(0, "row", pa.array(rows[order]))
        return table.select(["row", *self.columns])

    @property
    def rows(self) -> Array:
        """(n,) int64, the labelled rows, ascending; a row in several spans comes several times."""
        return np.asarray(self._aligned["row"].to_numpy())

    def values(self, column: str | None = None) -> Array:
        """(n,) the labels of `rows`, one after the other.

        Parameters
        ----------
        column
            Which column; may be left out if there is one only.

        Raises
        ------
        LabelsNotAttached
            There is no such column, or which one is not clear.
        """
        if column is None and len(self.columns) == 1:
            column = self.columns[0]
        if column not in self.columns:
            raise LabelsNotAttached(
                f"The labels {self.name!r} have no column {column!r}\n"
                f"hint: there is {', '.join(self.columns)}"
            )
        return np.asarray(self._aligned[column].to_numpy())

    def to_arrow(self) -> pa.Table:
        """``row`` and the label columns: `rows` and all `values` as one table."""
        return self._aligned

    def found(self) -> Rows:
        """The labelled rows as a set."""
        return Rows(self.store, self.rows, found_by=f"labels {self.name}")

    def __len__(self) -> int:
        return int(self._aligned.num_rows)

    def __repr__(self) -> str:
        return f"Labels {self.name!r} by {self.key}: {', '.join(self.columns)}\n{self.alignment}"


def attach_labels(
    store: "ActivationStore",
    name: str,
    table: Any,
    *,
    key: Key,
    misaligned: Misaligned = "refuse",
    replace: bool = False,
) -> Labels:
    """Attach a label table; see `ActivationStore.attach_labels`."""
    _check_name(name)
    kind = _kind(key)
    if store.location.size(_key(name)) is not None and not replace:
        raise InvalidQuery(
            f"Labels called {name!r} are attached to {store.url} already\n"
            "hint: give another name, or replace=True"
        )
    given = read_table(table)
    keys = _SPAN if kind == "span" else (kind,)
    columns = _label_columns(given, keys)
    fitted = {"document": _by_document, "span": _by_span, "row": _by_row}[kind](store, given)
    alignment = fitted.alignment(given, keys)
    if alignment.misaligned and misaligned != "drop":
        raise LabelsMisaligned(
            f"The labels {name!r} do not fit {store.url}: {alignment}\n"
            f"such as {'; '.join(alignment.examples)}\n"
            'hint: correct them, or leave them out with misaligned="drop"'
        )
    if not alignment.kept:
        raise LabelsMisaligned(
            f"No label of {name!r} fits {store.url}: {alignment}\n"
            "hint: documents are named by their id (a string) or their ordinal (an integer)"
        )
    data = _encoded(store, kind, given.select(columns), fitted, alignment)
    _write(store, name, data)
    return Labels(store, name)


def attached_names(store: "ActivationStore") -> list[str]:
    """The names of all attached label tables, sorted."""
    keys = store.location.list(FOLDER)
    names = (key.rpartition("/")[2] for key in keys)
    return sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))


def labels_relation(store: "ActivationStore", name: str) -> Relation:
    """A label table for SQL: key first, then the label columns; batches of a bounded size.

    Raises
    ------
    LabelsNotAttached, StoreDamaged, StoreMismatch
        There is none of that name; it is unreadable; it belongs to another corpus.
    """
    schema = _schema(store, name).remove_metadata()

    def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(_source(store, name)) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns)):
                yield batch.select(list(columns))

    return Relation(schema, produce)


def read_table(given: Any) -> pa.Table:
    """A label table from a path (.parquet, .csv, .arrow, .feather), Arrow, pandas or polars.

    Raises
    ------
    InvalidQuery
        It is none of these, or cannot be read.
    """
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        readers = {
            ".parquet": lambda: pq.read_table(path, partitioning=None),
            ".csv": lambda: pyarrow.csv.read_csv(path),
            ".arrow": lambda: pyarrow.feather.read_table(path, memory_map=False),
            ".feather": lambda: pyarrow.feather.read_table(path, memory_map=False),
        }
        if path.suffix.lower() not in readers:
            raise InvalidQuery(
                f"Labels are not read from {path.name}\n"
                f"hint: give a file that ends in {', '.join(readers)}"
            )
        try:
            return readers[path.suffix.lower()]()
        except (OSError, pa.ArrowException) as error:
            raise InvalidQuery(
                f"The labels in {path} cannot be read: {error}\nhint: check the path and the file"
            ) from error
    if isinstance(given, Mapping):
        return pa.table(dict(given))
    if hasattr(given, "__arrow_c_stream__"):  # Arrow's own protocol: pandas, polars, DuckDB
        return _with_plain_strings(pa.table(given))
    raise InvalidQuery(
        f"Labels cannot be made of {type(given).__name__}\n"
        "hint: give a path, an Arrow table, a pandas or polars data frame, or a dict of columns"
    )


def _with_plain_strings(table: pa.Table) -> pa.Table:
    """Polars' strings are views, which not all of Arrow's functions know."""
    fields = [
        field.with_type(pa.large_string()) if pa.types.is_string_view(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


# How keys are fitted to the store.

_REASONS = (
    "missing_keys",
    "unknown_documents",
    "outside_text",
    "empty_spans",
    "without_tokens",
    "out_of_range",
    "duplicates",
)


class _Fitted:
    """Which labels fit: the reason against each, and the key of those that do."""

    def __init__(self, num_labels: int) -> None:
        self.reason = np.full(num_labels, -1, np.int8)  # into _REASONS; -1 fits
        self.labels = np.empty(0, np.int64)
        self.key = np.empty(0, np.int64)
        """(n,) the ordinal or row of `labels`, which are places in the given table."""

    def refuse(self, reason: str, which: Array) -> None:
        """Mark labels (a mask) that were not refused before."""
        self.reason[(self.reason < 0) & which] = _REASONS.index(reason)

    @property
    def fits(self) -> Array:
        return self.reason < 0

    def alignment(self, given: pa.Table, keys: Sequence[str]) -> Alignment:
        bad = np.flatnonzero(self.reason >= 0)
        examples = tuple(
            f"label {place}: "
            + ", ".join(f"{key} {given[key][place].as_py()!r}" for key in keys)
            + f" ({_REASONS[self.reason[place]].replace('_', ' ')})"
            for place in bad[:3].tolist()
        )
        counts = {name: int((self.reason == code).sum()) for code, name in enumerate(_REASONS)}
        return Alignment(
            given=len(self.reason), kept=int(self.fits.sum()), examples=examples, **counts
        )


def _by_document(store: "ActivationStore", given: pa.Table) -> _Fitted:
    fitted = _Fitted(len(given))
    ordinals = _fit_documents(store, given, fitted)
    fitted.refuse("duplicates", _seen_before(fitted, ordinals))
    order = np.argsort(ordinals, kind="stable")
    fitted.labels = order[fitted.fits[order]]
    fitted.key = ordinals[fitted.labels]
    return fitted


def _by_row(store: "ActivationStore", given: pa.Table) -> _Fitted:
    fitted = _Fitted(len(given))
    rows = _integers(given, "row", fitted)
    fitted.refuse("out_of_range", (rows < 0) | (rows >= len(store)))
    fitted.refuse("duplicates", _seen_before(fitted, rows))
    order = np.argsort(rows, kind="stable")
    fitted.labels = order[fitted.fits[order]]
    fitted.key = rows[fitted.labels]
    return fitted


def _by_span(store: "ActivationStore", given: pa.Table) -> _Fitted:
    fitted = _Fitted(len(given))
    begins, ends = _integers(given, "start", fitted), _integers(given, "stop", fitted)
    ordinals = _fit_documents(store, given, fitted)
    fitted.refuse("outside_text", begins < 0)
    fitted.refuse("empty_spans", ends <= begins)
    fitted.refuse("duplicates", _seen_before(fitted, ordinals, begins, ends))
    labels, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    by_document = np.argsort(ordinals, kind="stable")
    by_document = by_document[fitted.fits[by_document]]
    for own, text in _texts_of(store, ordinals, by_document):
        if text is not None:
            outside = own[ends[own] > len(text)]
            fitted.reason[outside] = _REASONS.index("outside_text")
            own = own[ends[own] <= len(text)]
        own_rows, extents = (
            document_tokens(store, int(ordinals[own[0]]), text)
            if len(own)
            else (
                np.empty(0, np.int64),
                None,
            )
        )
        if extents is None:
            continue
        first, last = extents.overlapping(begins[own], ends[own])
        none = last <= first
        fitted.reason[own[none]] = _REASONS.index("without_tokens")
        lengths = (last - first)[~none]
        starts = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(first[~none] - starts, lengths)
        labels.append(np.repeat(own[~none], lengths))
        rows.append(own_rows[extents.tokens[places]])
    all_labels, all_rows = np.concatenate(labels), np.concatenate(rows)
    order = np.lexsort((all_labels, all_rows))
    fitted.labels, fitted.key = all_labels[order], all_rows[order]
    return fitted


def _texts_of(
    store: "ActivationStore", ordinals: Array, by_document: Array
) -> Iterator[tuple[Array, str | None]]:
    """The labels of each labelled document, and its text."""
    if not len(by_document):
        return
    sorted_ordinals = ordinals[by_document]
    begins = np.flatnonzero(np.diff(sorted_ordinals, prepend=-1))
    groups = dict(
        zip(
            sorted_ordinals[begins].tolist(),
            np.split(by_document, begins[1:]),
            strict=True,
        )
    )
    for first, batch in document_batches(store, ["text"]):
        for ordinal in range(first, first + batch.num_rows):
            if ordinal in groups:
                yield groups[ordinal], batch["text"][ordinal - first].as_py()


def _fit_documents(store: "ActivationStore", given: pa.Table, fitted: _Fitted) -> Array:
    """(n,) int64 ordinals; 0 where there is none, and refused."""
    column = given["document"].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        ordinals = _integers(given, "document", fitted)
        unknown = (ordinals < 0) | (ordinals >= store.schema.documents)
        fitted.refuse("unknown_documents", unknown)
        return np.where(unknown, 0, ordinals)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InvalidQuery(
            f"The key column `document` holds {column.type}\n"
            "hint: documents are named by their id (a string) or their ordinal (an integer)"
        )
    fitted.refuse("missing_keys", column.is_null().to_numpy(zero_copy_only=False))
    known = {name: ordinal for ordinal, name in enumerate(store.lookup.document_ids.tolist())}
    found = np.array([known.get(name, -1) for name in column.to_pylist()], np.int64)
    fitted.refuse("unknown_documents", found < 0)
    return np.maximum(found, 0)


def _integers(given: pa.Table, name: str, fitted: _Fitted) -> Array:
    """(n,) int64 of a key column; nulls are refused, and 0."""
    column = given[name].combine_chunks()
    if not pa.types.is_integer(column.type):
        raise InvalidQuery(
            f"The key column `{name}` holds {column.type}\nhint: it must hold integers"
        )
    fitted.refuse("missing_keys", column.is_null().to_numpy(zero_copy_only=False))
    values: Array = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _seen_before(fitted: _Fitted, *keys: Array) -> Array:
    """(n,) bool, which labels have the key of an earlier one that fits so far."""
    fits = np.flatnonzero(fitted.fits)
    stacked = np.stack([key[fits] for key in keys], axis=1)
    _, first = np.unique(stacked, axis=0, return_index=True)
    seen = np.zeros(len(fitted.reason), bool)
    seen[np.delete(fits, first)] = True
    return seen


# Names, files.


def _kind(key: Any) -> str:
    if key in ("document", "row"):
        return str(key)
    if tuple(key) == _SPAN:
        return "span"
    raise InvalidQuery(
        f"Labels cannot be keyed by {key!r}\n"
        'hint: key is "document", ("document", "start", "stop") or "row"'
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise InvalidQuery(
            f"Labels cannot be called {name!r}\n"
            "hint: a name is lower-case letters, digits and _, no digit first, and not one of "
            f"{', '.join(sorted(_TAKEN))}"
        )


def _label_columns(given: pa.Table, keys: Sequence[str]) -> list[str]:
    lacking = [name for name in keys if name not in given.column_names]
    if lacking:
        raise InvalidQuery(
            f"The label table has no key column {lacking[0]!r}, but "
            f"{', '.join(given.column_names)}\nhint: rename its columns, or give another key"
        )
    columns = [name for name in given.column_names if name not in keys]
    clash = [name for name in columns if name.lower() in {"row", *_SPAN}]
    if clash or not columns:
        what = f"a column {clash[0]!r}, which is a key's name" if clash else "no column of labels"
        raise InvalidQuery(
            f"The label table keyed by {', '.join(keys)} has {what}\nhint: drop or rename it"
        )
    return columns


def _encoded(
    store: "ActivationStore", kind: str, given: pa.Table, fitted: _Fitted, alignment: Alignment
) -> Any:
    """The Parquet file, made a batch of labels at a time."""
    key = "document" if kind == "document" else "row"
    said = {
        "format": _FORMAT,
        "corpus": corpus_key(store),
        "key": kind,
        "columns": given.column_names,
        "alignment": asdict(alignment),
    }
    schema = pa.schema(
        [pa.field(key, pa.int64(), nullable=False), *given.schema],
        metadata={_METADATA: json.dumps(said).encode()},
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(fitted.key), _BATCH):
            part = slice(start, start + _BATCH)
            values = given.take(pa.array(fitted.labels[part])).columns
            writer.write_table(pa.Table.from_arrays([fitted.key[part], *values], schema=schema))
    return sink.getvalue().to_pybytes()


def _write(store: "ActivationStore", name: str, data: bytes) -> None:
    """Beside the rows; not through the store's staging, which a driver may be clearing."""
    folder = store.location.local_path(FOLDER)
    if folder is None:
        store.location.write(_key(name), [data])
    else:
        LocalFolder(folder).write(f"{name}.parquet", [data])


def _key(name: str) -> str:
    return f"{FOLDER}/{name}.parquet"


def _source(store: "ActivationStore", name: str) -> Any:
    return store.location.file(_key(name))


def _schema(store: "ActivationStore", name: str) -> pa.Schema:
    if store.location.size(_key(name)) is None:
        attached = attached_names(store)
        hint = nearest(name, attached) if attached else "hint: store.attach_labels attaches them"
        raise LabelsNotAttached(f"No labels {name!r} are attached to {store.url}\n{hint}")
    try:
        schema = pq.read_schema(_source(store, name))
        corpus = json.loads(schema.metadata[_METADATA])["corpus"]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreDamaged(
            f"labels/{name}.parquet of {store.url} is no label table of actlake: {error}\n"
            "hint: attach the labels again, with replace=True"
        ) from error
    if corpus != corpus_key(store):
        raise StoreMismatch(
            f"The labels {name!r} in {store.url} were attached to another corpus\n"
            "hint: attach them again, with replace=True"
        )
    return schema
