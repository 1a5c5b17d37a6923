"""What a task's labels are, row by row: values, items, entities; nothing of activations.

Labels come from a table attached to the store, or from the documents' own columns. Here they are
read once, missing values refused or counted, and turned into codes of classes, numbers, or a
matrix of yes and no.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actlake.jobs.probe.config import DOCUMENTS, RowsConfig, TaskConfig, TaskKind
from actlake.jobs.probe.errors import InvalidLabels, LabelNotFound, NotEnoughRows
from actlake.storage import ActivationStore
from actlake.storage.errors import nearest
from actlake.storage.querying.document_table import document_schema

Array = np.ndarray[Any, Any]
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Labelled:
    """The labelled rows of a task, item after item."""

    task: TaskConfig
    kind: TaskKind
    classes: tuple[str, ...]
    """Names; of a multilabel task its labels. Empty for numbers."""
    targets: Array
    """(n,) int64 codes, (n,) float64 numbers, or (n, labels) bool."""
    rows: Array
    """(n,) int64, the labelled rows."""
    item: Array
    """(n,) int64, ascending: the document, span or group that a row belongs to."""
    document: Array
    """(n,) int64."""
    entity: Array
    """(n,) int64, what must not be on both sides of a split."""
    of_documents: bool
    """A label is of a whole document."""
    warnings: tuple[str, ...] = ()


def read_labels(store: ActivationStore, task: TaskConfig, rows: RowsConfig) -> Labelled:
    """The labels of a task.

    Raises
    ------
    LabelsNotAttached, LabelNotFound
        No such labels, or no such column.
    InvalidLabels
        Values are missing, have one class only, or cannot be predicted.
    NotEnoughRows
        No row is labelled.
    """
    table, of_documents, warnings = _table(store, task)
    column = _column(task, table)
    if not len(table):
        raise NotEnoughRows(
            f"No row of {store.url} has a label of {task.called!r}\n"
            "hint: store.labels(…).alignment says what became of the labels"
        )
    values = _plain(table[column])
    absent = _absent(values)
    if missing := int(absent.sum()):
        if rows.missing == "refuse":
            raise InvalidLabels(
                f"{missing:,} of {len(absent):,} rows labelled by {task.called!r} have no value "
                f"(null or NaN), such as row {int(table['row'][int(absent.argmax())].as_py()):,}\n"
                "hint: correct the labels, or leave these rows out with rows.missing: drop"
            )
        warnings.append(f"{missing:,} rows have no value of {task.called}, and were left out")
        kept = pa.array(~absent)
        table, values = table.filter(kept), values.filter(kept)
        if not len(table):
            raise InvalidLabels(
                f"All {missing:,} rows labelled by {task.called!r} have no value\n"
                "hint: is it the right column?"
            )
    kind = _kind(task, values)
    classes, targets = _targets(task, kind, values)
    number = table["row"].to_numpy()
    document = store.tokens["document"].take(number).astype(np.int64)
    item = _items(table, task, number, document, of_documents)
    order = np.lexsort((number, item))
    entity = _entities(store, table, task, number, document)
    return Labelled(
        task, kind, classes, targets[order], number[order], item[order], document[order],
        entity[order], of_documents, tuple(warnings),
    )  # fmt: skip


def _table(store: ActivationStore, task: TaskConfig) -> tuple[pa.Table, bool, list[str]]:
    """``row`` and all columns, whether a label is of a document, and warnings."""
    if task.labels != DOCUMENTS:
        labels = store.labels(task.labels)
        lost = labels.alignment.misaligned
        said = [f"{task.called}: {labels.alignment}"] if lost else []
        return labels.to_arrow(), labels.key == "document", said
    names = [name for name in document_schema(store).names if name != "text"]
    asked = [name for name in (task.column, task.item, task.entity) if name is not None]
    for name in asked:
        _require(name, names, "the documents")
    documents = store.documents(sorted(set(asked)))
    which, rows = store.lookup.documents.rows_of_each(np.arange(len(documents)))
    order = np.argsort(rows, kind="stable")
    table = documents.take(pa.array(which[order]))
    return table.add_column(0, "row", pa.array(rows[order])), True, []


def _require(name: str, names: Sequence[str], whose: str) -> None:
    if name not in names:
        raise LabelNotFound(f"There is no column {name!r} of {whose}\n{nearest(name, names)}")


def _column(task: TaskConfig, table: pa.Table) -> str:
    names = [name for name in table.column_names if name != "row"]
    if task.column is None:
        if len(names) == 1:
            return str(names[0])
        raise LabelNotFound(
            f"The labels {task.labels!r} have several columns: {', '.join(names)}\n"
            "hint: say which: tasks: [{labels: …, column: …}]"
        )
    for name in (task.column, task.item):
        if name is not None:
            _require(name, names, f"the labels {task.labels!r}")
    return task.column


def _plain(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # of no chunks
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    return values


def _absent(values: pa.Array) -> Array:
    absent = values.is_null(nan_is_null=True)
    return np.asarray(absent.to_numpy(zero_copy_only=False))


def _kind(task: TaskConfig, values: pa.Array) -> TaskKind:
    kind, given = task.kind, values.type
    lists = pa.types.is_list(given) or pa.types.is_large_list(given)
    number = pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_decimal(given)
    classes = number or pa.types.is_boolean(given) or _is_text(given)
    fits = {
        "regression": number,
        "multilabel": lists,
        "binary": classes,
        "multiclass": classes,
        "auto": classes or lists,
    }[kind]
    if not fits:
        raise InvalidLabels(
            f"The column of {task.called!r} holds {given}, which cannot be {kind}\n"
            "hint: regression takes numbers; binary and multiclass text, whole numbers, true and "
            "false; multilabel lists of text"
        )
    if kind != "auto":
        return kind
    if lists:
        return "multilabel"
    if pa.types.is_floating(given) or pa.types.is_decimal(given):
        plain = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if not np.array_equal(plain, np.round(plain)):
            return "regression"
    return "binary" if len(pc.unique(values)) <= 2 else "multiclass"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _targets(task: TaskConfig, kind: TaskKind, values: pa.Array) -> tuple[tuple[str, ...], Array]:
    if kind == "regression":
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if not np.isfinite(numbers).all():
            raise InvalidLabels(
                f"{int((~np.isfinite(numbers)).sum()):,} labels of {task.called!r} are infinite\n"
                "hint: numbers to predict are finite"
            )
        if np.ptp(numbers) == 0:
            raise InvalidLabels(
                f"All labels of {task.called!r} are {numbers[0]:g}\n"
                "hint: there is nothing to predict; is it the right column?"
            )
        return (), np.array(numbers)
    if kind == "multilabel":
        return _label_matrix(task, values)
    values = _whole_as_integers(values)
    found = pc.unique(values).to_pylist()
    classes = sorted(found)
    check_classes(task, kind, [str(one) for one in classes])
    codes = pc.index_in(values, pa.array(classes, values.type))
    return tuple(map(str, classes)), codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _whole_as_integers(values: pa.Array) -> pa.Array:
    """Whole floats as integers: what pandas makes of a column with gaps has the same classes."""
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:  # one is not whole, or too large
            return values
    return values


def check_classes(task: TaskConfig, kind: TaskKind, classes: Sequence[str]) -> None:
    """Refuse what are too few classes, or too many."""
    if len(classes) < 2:
        raise InvalidLabels(
            f"The labels of {task.called!r} have one class only: {', '.join(classes) or 'none'}\n"
            "hint: a probe tells classes apart; label also rows that are not in it"
        )
    if kind == "binary" and len(classes) > 2:
        raise InvalidLabels(
            f"The labels of {task.called!r} are said to be binary and have {len(classes):,} "
            f"classes: {', '.join(classes[:5])}, …\nhint: kind: multiclass, or auto"
        )
    if len(classes) > MOST_CLASSES:
        raise InvalidLabels(
            f"The labels of {task.called!r} have {len(classes):,} classes; up to "
            f"{MOST_CLASSES:,} are fitted\nhint: kind: regression for numbers, or fewer classes"
        )


def _label_matrix(task: TaskConfig, values: pa.Array) -> tuple[tuple[str, ...], Array]:
    flat = values.flatten()
    if flat.null_count:
        raise InvalidLabels(
            f"Lists of {task.called!r} hold nulls\nhint: a list names the labels that apply"
        )
    classes = sorted(pc.unique(flat).to_pylist())
    if not classes:
        raise InvalidLabels(
            f"All lists of {task.called!r} are empty\nhint: a list names the labels that apply"
        )
    lengths = np.asarray(values.value_lengths().to_numpy(zero_copy_only=False))
    matrix = np.zeros((len(values), len(classes)), bool)
    codes = pc.index_in(flat, pa.array(classes, flat.type)).to_numpy(zero_copy_only=False)
    matrix[np.repeat(np.arange(len(values)), lengths), codes] = True
    for name, share in zip(classes, matrix.mean(axis=0), strict=True):
        if share == 1:
            raise InvalidLabels(
                f"The label {name!r} of {task.called!r} is on every row\n"
                "hint: leave it out; there is nothing to tell apart"
            )
    return tuple(map(str, classes)), matrix


def _items(
    table: pa.Table, task: TaskConfig, rows: Array, document: Array, of_documents: bool
) -> Array:
    """Which rows belong together."""
    if task.item is not None:
        return _pairs(document, _codes(table[task.item]))
    if of_documents:
        return document
    begins = np.ones(len(rows), bool)
    begins[1:] = (np.diff(document) != 0) | (np.diff(rows) != 1)
    for name in table.column_names:
        if name != "row":
            codes = _codes(table[name])
            begins[1:] |= np.diff(codes) != 0
    return np.cumsum(begins) - 1


def _entities(
    store: ActivationStore, table: pa.Table, task: TaskConfig, rows: Array, document: Array
) -> Array:
    if task.entity is None:
        return tokens_of(store, rows, document)
    if task.entity in table.column_names:
        return _codes(table[task.entity])
    names = [name for name in document_schema(store).names if name != "text"]
    _require(task.entity, [*names, *table.column_names[1:]], "the documents, or of the labels")
    return _codes(store.documents([task.entity])[task.entity])[document]


def _codes(column: pa.ChunkedArray) -> Array:
    """A number for each different value; nulls are alike."""
    if pa.types.is_nested(column.type):
        column = pa.chunked_array([pa.array([str(one) for one in column.to_pylist()])])
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.asarray(codes, np.int64)


def _pairs(one: Array, other: Array) -> Array:
    _, codes = np.unique(np.stack([one, other]), axis=1, return_inverse=True)
    return np.asarray(codes, np.int64).reshape(-1)


def tokens_of(store: ActivationStore, rows: Array, group: Array) -> Array:
    """(n,) int64: for each row a hash of all tokens of its group, in order of their rows.

    `group` is any numbering; equal hashes mean equal tokens, but for one chance in 2⁶⁴ a pair.
    """
    ids = store.tokens["id"].take(rows).astype(np.uint64)
    order = np.lexsort((rows, group))
    begins = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] - 1))
    lengths = np.diff(np.append(begins, len(order)))
    place = (np.arange(len(order)) - np.repeat(begins, lengths)).astype(np.uint64)
    mixed = _scrambled(ids[order] + _scrambled(place))
    sums = np.add.reduceat(mixed, begins)
    found = np.empty(len(rows), np.int64)
    found[order] = np.repeat(sums, lengths).view(np.int64)
    return found


def _scrambled(value: Array) -> Array:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: Array = value ^ (value >> np.uint64(31))
    return scrambled
