"""Documents on their way to Parquet: on disk, since their columns are known only at the end."""

import copy
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.corpus import Document
from actlake.storage.errors import InvalidSchema

# Of documents that are in memory at once, here and where a row group of the file is read.
_BYTES_AT_ONCE = 2**25
_DOCUMENTS_AT_ONCE = 4096
_OWN_COLUMNS = {"id", "source", "split", "text"}


class DocumentSpool:
    """Takes documents one after the other, and makes one Parquet file of them.

    Parameters
    ----------
    folder
        Where files of its own may lie until `close`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = f"documents-{uuid.uuid4().hex}"
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._batches: list[Path] = []
        self._files: list[Path] = []
        self._count = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the documents' rows as JSON lines, however Parquet encodes them."""
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def add(self, document: Document) -> int:
        """Add a document; its number, which counts from 0, is returned.

        Raises
        ------
        InvalidSchema
            A column is called as one of the store's own, or holds values of several types.
        """
        taken = _OWN_COLUMNS & set(document.columns)
        if taken:
            raise InvalidSchema(
                f"A document column cannot be called {sorted(taken)[0]!r}: the store has one of "
                "its own\nhint: rename it in the corpus"
            )
        row = {
            "id": document.id,
            "source": document.source,
            "split": document.split,
            "text": document.text,
            **copy.deepcopy(dict(document.columns)),  # the caller's lists may be reused
        }
        line = json.dumps(row, sort_keys=True).encode()
        self._digest.update(line + b"\n")
        self._waiting.append(row)
        self._waiting_bytes += len(line)
        self._count += 1
        if len(self._waiting) >= _DOCUMENTS_AT_ONCE or self._waiting_bytes >= _BYTES_AT_ONCE:
            self._spill()
        return self._count - 1

    def as_parquet(self) -> np.ndarray[Any, Any]:
        """The whole table's file, mapped; columns that some documents lack are null there.

        Raises
        ------
        InvalidSchema
            A column holds values of several types.
        """
        self._spill()
        schema = self._schema()
        sink = self._new_file("parquet")
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for path in self._batches:
                with pa.ipc.open_file(path) as reader:
                    table = reader.read_all()
                lacking = [field for field in schema if field.name not in table.column_names]
                for field in lacking:
                    table = table.append_column(field, pa.nulls(len(table), field.type))
                writer.write_table(table.select(schema.names).cast(schema))
        return np.memmap(sink, np.uint8, "r")

    def close(self) -> None:
        """Remove its files."""
        for path in self._files:
            path.unlink(missing_ok=True)

    def _new_file(self, kind: str) -> Path:
        path = self._folder / f"{self._prefix}-{len(self._files)}.{kind}"
        self._files.append(path)
        return path

    def _spill(self) -> None:
        if not self._waiting:
            return
        try:
            table = pa.Table.from_pylist(_with_all_keys(self._waiting))
        except pa.ArrowException as error:
            raise InvalidSchema(
                f"A document column holds values of several types: {error}\n"
                "hint: give the column one type in the corpus"
            ) from error
        path = self._new_file("arrow")
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        self._batches.append(path)
        self._waiting = []
        self._waiting_bytes = 0

    def _schema(self) -> pa.Schema:
        schemas = []
        for path in self._batches:
            with pa.ipc.open_file(path) as reader:
                schemas.append(reader.schema)
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise InvalidSchema(
                f"A document column has different types in different documents: {error}\n"
                "hint: give the column one type in the corpus"
            ) from error
        text = schema.get_field_index("text")
        return schema.set(text, pa.field("text", pa.large_string()))


def _with_all_keys(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arrow takes the columns from the first row alone."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]
