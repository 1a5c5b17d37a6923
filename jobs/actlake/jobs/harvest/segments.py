"""The label table of the segments that the documents of a store have."""

from itertools import pairwise

import pyarrow as pa

from actlake.platform.corpus.segments import SEGMENTS, Segment, from_json
from actlake.storage import ActivationStore
from actlake.storage.querying.document_table import document_schema
from actlake.storage.querying.labels.label_file import is_attached


def attach_segments(store: ActivationStore) -> None:
    """Attach the segments of the documents as labels, where they have any and it is not done.

    They are read from the documents, so that a harvest that was killed before goes on.
    """
    if SEGMENTS not in document_schema(store).names or is_attached(store, SEGMENTS):
        return
    spans: dict[str, list[object]] = {
        name: [] for name in ("document_number", "start", "stop", "segment", "segment_number")
    }
    for document, text in enumerate(store.documents([SEGMENTS])[SEGMENTS].to_pylist()):
        segments = [Segment("", 0), *from_json(text or "[]")]
        for number, (before, segment) in enumerate(pairwise(segments)):
            if before.stop < segment.stop:
                row = (document, before.stop, segment.stop, segment.name, number)
                for column, value in zip(spans.values(), row, strict=True):
                    column.append(value)
    # What a context length or a budget cut off the end of a document has no rows to be labelled.
    store.attach_labels(
        SEGMENTS,
        pa.table(spans),
        key=("document_number", "start", "stop"),
        misaligned="drop",
    )
