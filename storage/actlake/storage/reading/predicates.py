"""Predicates on rows: what a token is, where it stands, what its document says.

Written as SQL, as an Arrow expression, as a function, or as row numbers. SQL is what
``find(where=…)`` takes, and sees what that sees, attached labels too; it is asked once of a store,
and the answer is a bit a row. The others are worked out block by block, on the columns

    row, id, document, position, char    numbers of the row (`row` is numbered through)
    split                                the name of its context's split
    every column of documents.parquet    of its document; its own id is `document_id`
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actlake.storage.errors import ActlakeError, InvalidQuery, nearest
from actlake.storage.extents import Extent
from actlake.storage.querying.document_table import document_schema
from actlake.storage.querying.sql import rows_where_in_batches
from actlake.storage.sealed import crc32c
from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Where = str | pc.Expression | Callable[[Mapping[str, Any]], Any] | Array | list[int]
_TOKEN_COLUMNS = ("id", "document", "position", "char")
_DOCUMENT_ID = "document_id"


class TokenBlock(Mapping[str, Array]):
    """Columns of consecutive rows of a store, each (n,), read when it is asked for."""

    def __init__(
        self,
        store: ActivationStore,
        rows: Extent,
        *,
        offset: int = 0,
        documents: dict[tuple[str, str], pa.Array] | None = None,
    ) -> None:
        self._store = store
        self._rows = rows
        self._offset = offset
        self._documents = {} if documents is None else documents  # shared by all blocks
        self._read: dict[str, pa.Array] = {}

    def __getitem__(self, name: str) -> Array:
        column: Array = self.arrow(name).to_numpy(zero_copy_only=False)
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def arrow(self, name: str) -> pa.Array:
        """A column, (n,), as Arrow.

        Raises
        ------
        InvalidQuery
            There is no such column; the nearest is named.
        """
        if name not in self._names:
            raise InvalidQuery(f"Rows have no column {name!r}\n{nearest(name, self._names)}")
        if name not in self._read:
            self._read[name] = self._column(name)
        return self._read[name]

    def table(self, written: str) -> pa.Table:
        """The columns that the text names, and `row`, as a table."""
        words = set(re.findall(r"\w+", written.lower()))
        names = [name for name in self._names if name.lower() in words]
        return pa.table({name: self.arrow(name) for name in dict.fromkeys(["row", *names])})

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return len(self._rows)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        own = ("row", *_TOKEN_COLUMNS, "split", _DOCUMENT_ID)
        return (*own, *(name for name in document_schema(self._store).names if name not in own))

    def _column(self, name: str) -> pa.Array:
        rows = self._rows
        if name == "row":
            return pa.array(np.arange(rows.start, rows.stop, dtype=np.int64) + self._offset)
        if name in _TOKEN_COLUMNS:
            return pa.array(self._store.tokens[name].read(rows.start, rows.stop))
        if name == "split":
            codes = pa.array(self._store.splits_of(rows), pa.int8())
            return pa.DictionaryArray.from_arrays(codes, list(self._store.schema.splits)).cast(
                pa.string()
            )
        stored = "id" if name == _DOCUMENT_ID else name
        key = self._store.url, stored
        if key not in self._documents:
            self._documents[key] = self._store.documents([stored])[stored].combine_chunks()
        return self._documents[key].take(self.arrow("document"))


class Predicate:
    """A question about rows that is true or false of each.

    Parameters
    ----------
    where
        SQL (``"position >= 4 and label = 'positive'"``, see `ActivationStore.find`), a
        ``pyarrow.compute`` expression, a function of a mapping from column names to NumPy
        arrays that returns (n,) bool, or the row numbers themselves.

    Raises
    ------
    InvalidQuery
        It is none of these.
    """

    def __init__(self, where: Any) -> None:
        self._where = where
        self._documents: dict[tuple[str, str], pa.Array] = {}
        self._answers: dict[tuple[str, int], Array] = {}  # of SQL, a bit a row
        if isinstance(where, str | pc.Expression):
            self._written = str(where)
        elif callable(where):
            self._written = f"function {getattr(where, '__qualname__', type(where).__name__)}"
        else:
            self._where = _row_numbers(where)
            self._written = f"{len(self._where)} rows {crc32c(self._where.tobytes()):08x}"

    def __str__(self) -> str:
        return self._written

    def mask(self, store: ActivationStore, rows: Extent, *, offset: int = 0) -> Array:
        """(n,) bool: where it is true of `rows`; null counts as false.

        Raises
        ------
        InvalidQuery
            It cannot be worked out on this store's columns, or gives no booleans.
        MissingExtra
            It is SQL, and the extra ``query`` is not installed.
        """
        if isinstance(self._where, str):
            return self._mask_by_sql(self._where, store, rows, offset)
        block = TokenBlock(store, rows, offset=offset, documents=self._documents)
        try:
            mask = self._mask(block, rows.start + offset)
        except (ActlakeError, MemoryError):
            raise
        except Exception as error:  # the predicate is foreign code
            raise InvalidQuery(
                f"The predicate {self} cannot be worked out: {error}\n"
                f"hint: columns are {', '.join(block)}"
            ) from error
        if mask.shape != (len(rows),) or mask.dtype != bool:
            raise InvalidQuery(
                f"The predicate {self} gave {mask.dtype} of shape {mask.shape} for {len(rows)} "
                "rows\nhint: it must give one boolean a row"
            )
        return mask

    def _mask(self, block: TokenBlock, first: int) -> Array:
        where = self._where
        if isinstance(where, pc.Expression):
            true = block.table(str(where)).filter(where)["row"].to_numpy()
            return _at(true - first, block.num_rows)
        if callable(where):
            return np.asarray(where(block))
        here = where[np.searchsorted(where, first) : np.searchsorted(where, first + block.num_rows)]
        return _at(here - first, block.num_rows)

    def _mask_by_sql(self, where: str, store: ActivationStore, rows: Extent, offset: int) -> Array:
        key = store.url, offset
        if key not in self._answers:
            bits = np.zeros(-(-len(store) // 8), np.uint8)
            for found in rows_where_in_batches(store, where, first_row=offset):
                local = found - offset
                np.bitwise_or.at(bits, local // 8, np.uint8(1) << (local % 8).astype(np.uint8))
            self._answers[key] = bits
        first = rows.start // 8
        bits = self._answers[key][first : -(-rows.stop // 8)]
        mask: Array = np.unpackbits(bits, bitorder="little").astype(bool)
        return mask[rows.start - 8 * first : rows.stop - 8 * first]


def _at(places: Array, length: int) -> Array:
    mask = np.zeros(length, bool)
    mask[places] = True
    return mask


def _row_numbers(where: Any) -> Array:
    rows = np.asarray(getattr(where, "rows", where))
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise InvalidQuery(
            f"A predicate cannot be {type(where).__name__}\n"
            "hint: give SQL, a pyarrow expression, a function, or row numbers"
        )
    return np.unique(rows.astype(np.int64))
