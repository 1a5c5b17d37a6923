"""The documents table, read a batch at a time: of the columns that are wanted, and no others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.errors import StoreDamaged

if TYPE_CHECKING:  # store.py asks through lookup.py
    from actlake.storage.store import ActivationStore

_DOCUMENTS_AT_ONCE = 1024  # a document's text may be long


def document_schema(store: "ActivationStore") -> pa.Schema:
    """Names and types of the columns of the documents.

    Raises
    ------
    StoreDamaged
        A file of documents is missing or unreadable.
    """
    schemas = []
    for key in store.ledger.document_files:
        with _opened(store, key) as file:
            schemas.append(file.schema_arrow.remove_metadata())
    return pa.unify_schemas(schemas)


def documents_table(store: "ActivationStore", columns: Sequence[str] | None = None) -> pa.Table:
    """All documents, a row each in order of their number; see `ActivationStore.documents`."""
    tables = []
    for key in store.ledger.document_files:
        with _opened(store, key) as file:
            there = file.schema_arrow.names
            wanted = None if columns is None else {"id", *(n for n in columns if n in there)}
            tables.append(file.read(None if wanted is None else list(wanted)))
    joined = pa.concat_tables(tables, promote_options="default")
    try:
        return joined if columns is None else joined.select(list(columns))
    except KeyError as error:
        raise StoreDamaged(
            f"The documents of {store.url} have no such column: {error}\n"
            f"hint: there are {', '.join(document_schema(store).names)}"
        ) from error


def document_batches(
    store: "ActivationStore",
    columns: Sequence[str],
    *,
    wanted: "np.ndarray[Any, Any] | None" = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The documents in order: the number of a batch's first, and the batch.

    Parameters
    ----------
    columns
        At least one; a document that lacks it has null there.
    wanted
        (documents,) bool: batches without one of these are left out, and row groups of a file
        without one are not read.

    Raises
    ------
    StoreDamaged
        A file of documents is missing or unreadable.
    """
    first = 0
    fields = None if len(store.ledger.document_files) == 1 else document_schema(store)
    for key in store.ledger.document_files:
        with _opened(store, key) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                after = first + file.metadata.row_group(group).num_rows
                if wanted is not None and not wanted[first:after].any():
                    first = after
                    continue
                for batch in file.iter_batches(
                    batch_size=_DOCUMENTS_AT_ONCE,
                    row_groups=[group],
                    columns=list(columns) if fields is None else there or ["id"],
                ):
                    if wanted is None or wanted[first : first + batch.num_rows].any():
                        yield first, batch if fields is None else _completed(batch, columns, fields)
                    first += batch.num_rows


def _completed(batch: pa.RecordBatch, columns: Sequence[str], fields: pa.Schema) -> pa.RecordBatch:
    """With all columns, as the documents together have them."""
    arrays = []
    for name in columns:
        kind = fields.field(name).type
        has = name in batch.schema.names
        arrays.append(batch[name].cast(kind) if has else pa.nulls(batch.num_rows, kind))
    return pa.record_batch(arrays, names=list(columns))


class DocumentColumns:
    """Columns of some documents at a time, for documents that are asked for roughly in order.

    Of each column the row groups asked for last are kept, so that memory does not grow with the
    corpus.
    """

    def __init__(self, store: "ActivationStore") -> None:
        self._store = store
        self._kept: dict[str, list[tuple[int, pa.Array]]] = {}
        """Of each column, batches by the number of their first document."""

    def take(self, column: str, numbers: "np.ndarray[Any, Any]") -> pa.Array:
        """(n,) the values of a column for documents, whose numbers ascend, each once.

        Raises
        ------
        StoreDamaged
            ``documents.parquet`` is missing or unreadable.
        """
        wanted = np.zeros(self._store.schema.documents, bool)
        wanted[numbers] = True
        kept = [
            (first, values)
            for first, values in self._kept.get(column, ())
            if wanted[first : first + len(values)].any()
        ]
        for first, values in kept:
            wanted[first : first + len(values)] = False
        if wanted.any():
            new = document_batches(self._store, [column], wanted=wanted)
            kept = sorted([*kept, *((first, batch[column]) for first, batch in new)], key=_first)
        self._kept[column] = kept
        parts = [
            values.take(pa.array(here[(here >= 0) & (here < len(values))]))
            for first, values in kept
            for here in [numbers - first]
        ]
        empty = document_schema(self._store).field(column).type
        return pa.concat_arrays(parts) if parts else pa.array([], empty)


def _first(batch: tuple[int, pa.Array]) -> int:
    return batch[0]


@contextmanager
def _opened(store: "ActivationStore", key: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(store.location.file(key)) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, StoreDamaged):
            raise
        raise StoreDamaged(
            f"{key} of {store.url} cannot be read: {error}\n"
            "hint: `actlake verify` tells what else is damaged"
        ) from error
