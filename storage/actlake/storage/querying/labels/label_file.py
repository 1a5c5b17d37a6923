"""A label table as it is kept: ``labels/<name>.parquet``, in a folder of the store.

The first column is the key, the others are the labels:

    by document   document_number
    by span       row: a row for each token of each span
    by row        row

The schema's metadata says what the labels are of, and how the given table fitted.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.errors import (
    InvalidQuery,
    LabelsNotAttached,
    StoreDamaged,
    StoreMismatch,
    nearest,
)
from actlake.storage.location import LocalFolder
from actlake.storage.querying.arguments import check_text
from actlake.storage.querying.index_file import corpus_key
from actlake.storage.querying.labels.alignment import Alignment, Fitted, Kind
from actlake.storage.querying.relations import Relation

if TYPE_CHECKING:  # store.py attaches labels
    from actlake.storage.store import ActivationStore

FOLDER = "labels"
_METADATA = b"actlake.labels"
_FORMAT = 1
_BATCH = 2**17
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_TAKEN = {"tokens", "documents", "vocabulary"}
logger = logging.getLogger(__name__)


def check_name(name: str) -> None:
    """Refuse what labels cannot be called.

    Raises
    ------
    InvalidQuery
        It is no name in SQL, or that of a table of the store.
    """
    check_text("The name of labels", name)
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise InvalidQuery(
            f"Labels cannot be called {name!r}\n"
            "hint: a name is lower-case letters, digits and _, no digit first, and not one of "
            f"{', '.join(sorted(_TAKEN))}"
        )


def attached_names(store: "ActivationStore") -> list[str]:
    """The names of all attached label tables, sorted.

    Files that are none, or of another corpus, are left out; the log names them.
    """
    keys = store.location.list(FOLDER)
    files = (key.rpartition("/")[2] for key in keys)
    names = []
    for name in sorted(f.removesuffix(".parquet") for f in files if f.endswith(".parquet")):
        try:
            check_name(name)
            _schema(store, name)
        except (InvalidQuery, StoreDamaged, StoreMismatch) as error:
            logger.warning("%s is left out: %s", _key(name), error)
        else:
            names.append(name)
    return names


def is_attached(store: "ActivationStore", name: str) -> bool:
    """Whether there is a label table of that name."""
    return store.location.size(_key(name)) is not None


def is_of_all(store: "ActivationStore", name: str) -> bool:
    """Whether labels were attached to the store as it is, not before it was appended to.

    Raises
    ------
    LabelsNotAttached, StoreDamaged, StoreMismatch
        As `labels_relation`.
    """
    metadata = _schema(store, name).metadata[_METADATA]
    return bool(json.loads(metadata)["corpus"] == corpus_key(store))


def labels_relation(store: "ActivationStore", name: str) -> Relation:
    """A label table for SQL: key first, then the label columns; batches of a bounded size.

    Raises
    ------
    LabelsNotAttached, StoreDamaged, StoreMismatch
        There is none of that name; it is unreadable; it belongs to another corpus.
    """
    schema = _schema(store, name).remove_metadata()

    def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(store.location.file(_key(name))) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns)):
                yield batch.select(list(columns))

    return Relation(schema, produce)


def read_about(store: "ActivationStore", name: str) -> tuple[Kind, tuple[str, ...], Alignment]:
    """What the labels are of, the names of their columns, and how the given table fitted.

    Raises
    ------
    InvalidQuery
        Labels cannot be called so.
    LabelsNotAttached, StoreDamaged, StoreMismatch
        As `labels_relation`.
    """
    check_name(name)
    said = json.loads(_schema(store, name).metadata[_METADATA])
    examples = tuple(said["alignment"].pop("examples"))
    alignment = Alignment(**said["alignment"], examples=examples)
    return said["key"], tuple(said["columns"]), alignment


def write_labels(
    store: "ActivationStore",
    name: str,
    labels: pa.Table,
    kind: Kind,
    fitted: Fitted,
    alignment: Alignment,
) -> None:
    """Write a label table beside the rows.

    It does not go through the store's staging, which a driver may be clearing.

    Parameters
    ----------
    labels
        The given table without its key.

    Raises
    ------
    StoreNotWritable
        The store's folder cannot be written.
    """
    data = _encoded(store, labels, kind, fitted, alignment)
    folder = store.location.local_path(FOLDER)
    if folder is None:
        store.location.write(_key(name), [data])
    else:
        LocalFolder(folder).write(f"{name}.parquet", [data])


def _encoded(
    store: "ActivationStore", labels: pa.Table, kind: Kind, fitted: Fitted, alignment: Alignment
) -> Any:
    """The Parquet file, made a batch of labels at a time."""
    key = "document_number" if kind == "document" else "row"
    said = {
        "format": _FORMAT,
        "corpus": corpus_key(store),
        "key": kind,
        "columns": labels.column_names,
        "alignment": asdict(alignment),
    }
    schema = pa.schema(
        [pa.field(key, pa.int64(), nullable=False), *labels.schema],
        metadata={_METADATA: json.dumps(said).encode()},
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(fitted.key), _BATCH):
            part = slice(start, start + _BATCH)
            values = labels.take(pa.array(fitted.labels[part])).columns
            writer.write_table(pa.Table.from_arrays([fitted.key[part], *values], schema=schema))
    return sink.getvalue().to_pybytes()


def _key(name: str) -> str:
    return f"{FOLDER}/{name}.parquet"


def _schema(store: "ActivationStore", name: str) -> pa.Schema:
    if not is_attached(store, name):
        attached = attached_names(store)
        hint = nearest(name, attached) if attached else "hint: store.attach_labels attaches them"
        raise LabelsNotAttached(f"No labels {name!r} are attached to {store.url}\n{hint}")
    try:
        schema = pq.read_schema(store.location.file(_key(name)))
        corpus = json.loads(schema.metadata[_METADATA])["corpus"]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreDamaged(
            f"labels/{name}.parquet of {store.url} is no label table of actlake: {error}\n"
            "hint: attach the labels again, with replace=True"
        ) from error
    if store.ledger.place_of(corpus) is None:  # of the store as it is, or before it grew
        raise StoreMismatch(
            f"The labels {name!r} in {store.url} were attached to another corpus\n"
            "hint: attach them again, with replace=True"
        )
    return schema
