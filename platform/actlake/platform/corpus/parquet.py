"""Read Parquet: a row is a document."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from actlake.platform.corpus.errors import UnreadableFile
from actlake.platform.corpus.passages import ColumnPlan, Row, Unreadable, check_columns
from actlake.platform.corpus.paths import SourceFile

_ROWS_AT_ONCE = 256


def read_parquet(file: SourceFile, plan: ColumnPlan) -> Iterator[Row | Unreadable]:
    """Each row of the file, in order, with the columns that `plan` needs.

    Raises
    ------
    ColumnMissing
        The file lacks a column that `plan` names.
    UnreadableFile
        It is not Parquet, or damaged.
    """
    try:
        with pq.ParquetFile(file.path) as parquet:
            check_columns(file.name, parquet.schema_arrow.names, plan)
            wanted = None if plan.needed is None else _leaves(parquet.schema, plan.needed)
            number = 0
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
                yield from _rows(file.name, batch, number)
                number += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(
            f"{file.name} cannot be read as Parquet: {error}\n"
            "hint: fetch the file again, or leave it out of the pattern"
        ) from error


def _leaves(schema: pq.ParquetSchema, columns: Iterable[str]) -> list[str]:
    """The columns, or of one that is not there all that is around it, so that it can be named."""
    paths = [schema.column(i).path for i in range(len(schema))]
    return [
        name
        if any(path == name or path.startswith(f"{name}.") for path in paths)
        else name.partition(".")[0]
        for name in columns
    ]


def _rows(name: str, batch: pa.RecordBatch, first: int) -> Iterator[Row | Unreadable]:
    try:
        all_fields = batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(len(batch)):
            yield _row(name, batch.slice(i, 1), first + i)
    else:
        for i, fields in enumerate(all_fields):
            yield Row(f"{name}:row {first + i}", name, fields)


def _row(name: str, batch: pa.RecordBatch, number: int) -> Row | Unreadable:
    place = f"{name}:row {number}"
    try:
        return Row(place, name, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Unreadable(place, f"not UTF-8 at byte {error.start} of a text")
