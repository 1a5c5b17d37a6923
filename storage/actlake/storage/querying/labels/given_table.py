"""A label table as it is given: a file, Arrow, a data frame or columns."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from actlake.storage.errors import InvalidQuery


def read_table(given: Any) -> pa.Table:
    """A label table from a path (.parquet, .csv, .arrow, .feather), Arrow, pandas or polars.

    Raises
    ------
    InvalidQuery
        It is none of these, cannot be read, or has two columns of one name.
    """
    if isinstance(given, str | os.PathLike):
        table = _from_file(Path(given))
    elif isinstance(given, Mapping):
        table = _from_memory(dict(given))
    elif hasattr(given, "__arrow_c_stream__"):  # Arrow's own protocol: pandas, polars, DuckDB
        table = _with_plain_strings(_from_memory(given))
    else:
        raise InvalidQuery(
            f"Labels cannot be made of {type(given).__name__}\nhint: give a path, an Arrow table, "
            "a pandas or polars data frame, or a dict of columns"
        )
    _check_names(table.column_names)
    return table


def _from_file(path: Path) -> pa.Table:
    readers = {
        ".parquet": lambda: pq.read_table(path, partitioning=None),
        ".csv": lambda: _from_csv(path),
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


def _from_csv(path: Path) -> pa.Table:
    """A CSV file, which does not say what is a number: only what is written as one.

    Ids are text, however they look. Of other columns those are numbers that are written as such:
    "007" and "7" are two labels.
    """
    with pyarrow.csv.open_csv(path) as file:
        names = file.schema.names
    read = pyarrow.csv.read_csv(path)
    written = pyarrow.csv.read_csv(
        path,
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    )
    for place, field in enumerate(read.schema):
        text = written.column(place)
        if field.name == "document" or not _is_written_so(read.column(place), text):
            read = read.set_column(place, field.name, text)
    return read


def _is_written_so(numbers: pa.ChunkedArray, text: pa.ChunkedArray) -> bool:
    """Whether whole numbers are what they are written as; other types are taken as read."""
    if not pa.types.is_integer(numbers.type):
        return True
    same = pc.equal(numbers.cast(pa.string()), text)
    return bool(pc.all(pc.fill_null(same, True)).as_py() is not False)


def _from_memory(given: Any) -> pa.Table:
    try:
        return pa.table(given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidQuery(
            f"The labels are no table: {'; '.join(map(str, error.args))}\n"
            "hint: columns are of one length, each of one type and of a name of its own"
        ) from error


def _check_names(names: list[str]) -> None:
    """Refuse two columns that SQL cannot tell apart."""
    counts = Counter(name.lower() for name in names)
    twice = [name for name in names if counts[name.lower()] > 1]
    if twice:
        raise InvalidQuery(
            f"The label table has several columns {twice[0]!r}: {', '.join(names)}\n"
            "hint: rename them; upper and lower case are the same in SQL"
        )


def _with_plain_strings(table: pa.Table) -> pa.Table:
    """Polars' strings are views, which not all of Arrow's functions know."""
    fields = [
        field.with_type(pa.large_string()) if pa.types.is_string_view(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))
