"""The documents table, read a batch at a time: of the columns that are wanted, and no others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.corpus_record import DOCUMENTS
from actlake.storage.errors import StoreDamaged

if TYPE_CHECKING:  # store.py asks through lookup.py
    from actlake.storage.store import ActivationStore

_DOCUMENTS_AT_ONCE = 1024  # a document's text may be long


def document_schema(store: "ActivationStore") -> pa.Schema:
    """Names and types of the columns of ``documents.parquet``.

    Raises
    ------
    StoreDamaged
        It is missing or unreadable.
    """
    with _opened(store) as file:
        return file.schema_arrow.remove_metadata()


def document_batches(
    store: "ActivationStore",
    columns: Sequence[str],
    *,
    wanted: "np.ndarray[Any, Any] | None" = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The documents in order: the number of a batch's first, and the batch.

    Parameters
    ----------
    wanted
        (documents,) bool: batches without one of these are left out, and row groups of the file
        without one are not read.

    Raises
    ------
    StoreDamaged
        ``documents.parquet`` is missing or unreadable.
    """
    first = 0
    with _opened(store) as file:
        for group in range(file.num_row_groups):
            after = first + file.metadata.row_group(group).num_rows
            if wanted is not None and not wanted[first:after].any():
                first = after
                continue
            for batch in file.iter_batches(
                batch_size=_DOCUMENTS_AT_ONCE, row_groups=[group], columns=list(columns)
            ):
                if wanted is None or wanted[first : first + batch.num_rows].any():
                    yield first, batch
                first += batch.num_rows


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
def _opened(store: "ActivationStore") -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(store.location.file(DOCUMENTS)) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, StoreDamaged):
            raise
        raise StoreDamaged(
            f"documents.parquet of {store.url} cannot be read: {error}\n"
            "hint: `actlake verify` tells what else is damaged"
        ) from error
