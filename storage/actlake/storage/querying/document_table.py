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
