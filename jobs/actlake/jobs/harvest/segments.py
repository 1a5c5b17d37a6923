"""The label table of the segments that the documents of a store have."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from actlake.platform.corpus.segments import SEGMENTS, Segment, from_json
from actlake.storage import ActivationStore
from actlake.storage.querying.document_table import document_schema
from actlake.storage.querying.labels.label_file import is_attached, is_of_all

Array = np.ndarray[Any, Any]


class _Part(NamedTuple):
    """A segment of a document: characters of its text, or tokens of its ids."""

    document_number: int
    start: int
    stop: int
    segment: str
    segment_number: int


def attach_segments(store: ActivationStore) -> None:
    """Attach the segments of the documents as labels, where they have any and it is not done.

    They are read from the documents, so that a harvest that was killed before goes on. After the
    store was appended to it is done again, of all documents.
    """
    if SEGMENTS not in document_schema(store).names:
        return
    was_attached = is_attached(store, SEGMENTS)
    if was_attached and is_of_all(store, SEGMENTS):
        return
    if store.provenance.corpus.get("source", {}).get("ids_column") is not None:
        store.attach_labels(SEGMENTS, _of_rows(store), key="row", replace=was_attached)
        return
    table = pa.Table.from_pylist(
        [part._asdict() for part in _parts(store)],
        pa.schema(
            [(name, pa.int64()) for name in ("document_number", "start", "stop")]
            + [("segment", pa.string()), ("segment_number", pa.int64())]
        ),
    )
    # What a context length or a budget cut off the end of a document has no rows to be labelled.
    store.attach_labels(
        SEGMENTS,
        table,
        key=("document_number", "start", "stop"),
        misaligned="drop",
        replace=was_attached,
    )


def _parts(store: ActivationStore) -> Iterator[_Part]:
    for document, text in enumerate(store.documents([SEGMENTS])[SEGMENTS].to_pylist()):
        segments = [Segment("", 0), *from_json(text or "[]")]
        for number, (before, segment) in enumerate(pairwise(segments)):
            if before.stop < segment.stop:
                yield _Part(document, before.stop, segment.stop, segment.name, number)


def _of_rows(store: ActivationStore) -> pa.Table:
    """Of each row that is a given id, its segment; beginnings and separators have none."""
    rows: list[Array] = [np.empty(0, np.int64)]
    names: list[str] = []
    numbers: list[int] = []
    given, of = np.empty(0, np.int64), -1
    for part in _parts(store):
        if part.document_number != of:
            of = part.document_number
            given = _given_rows(store, of)
        here = given[part.start : part.stop]
        rows.append(here)
        names += [part.segment] * len(here)
        numbers += [part.segment_number] * len(here)
    return pa.table(
        {
            "row": pa.array(np.concatenate(rows)),
            "segment": pa.array(names, pa.string()),
            "segment_number": pa.array(numbers, pa.int64()),
        }
    )


def _given_rows(store: ActivationStore, document: int) -> Array:
    """The rows of the ids that a document was given as, in order, and of its separator."""
    rows: Array = store.lookup.documents.rows(document)
    bos = store.provenance.corpus["bos"]
    if bos["at"] == "document":
        return rows[len(bos["ids"]) :]
    if bos["at"] == "context":
        return rows[store.tokens["position"].take(rows) >= len(bos["ids"])]
    return rows
