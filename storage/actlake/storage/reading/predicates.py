"""Predicates on rows: what a token is, where it stands, what its document says.

Written as SQL, as an Arrow expression, as a function, or as the rows themselves. SQL is what
``find(where=…)`` takes, and sees what that sees, attached labels too; it is asked once of a store,
and the answer is a bit a row. Expressions and functions are worked out block by block, on the
columns

    row, id, document_number, position, char    numbers of the row (`row` is numbered through)
    split                                       the name of its context's split
    every column of documents.parquet           of its document; its own id is `document_id`

A document's text is not copied for each of its rows: a function is given one and the same `str`
for them all, and an expression is worked out on as many rows at once as have few bytes of text.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actlake.storage.arrays import as_rows
from actlake.storage.errors import ActlakeError, InvalidQuery, RowsOutOfRange, nearest
from actlake.storage.extents import Extent
from actlake.storage.querying.document_table import DocumentColumns, document_schema
from actlake.storage.querying.labels.attachment import Labels
from actlake.storage.querying.parts import parts_of
from actlake.storage.querying.relations import Relation
from actlake.storage.querying.rows import Rows
from actlake.storage.querying.sql import label_tables, rows_where_in_batches
from actlake.storage.reading.many import ManyStores
from actlake.storage.sealed import crc32c
from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Where = str | pc.Expression | Callable[[Mapping[str, Any]], Any] | Rows | Labels | Array | list[int]
_OF_ROWS = ("row", "id", "document_number", "position", "char", "split")
_DOCUMENT_ID = "document_id"
# Of text that an Arrow expression is worked out on at once.
_TEXT_BYTES = 2**25
logger = logging.getLogger(__name__)


class TokenBlock(Mapping[str, Array]):
    """Columns of consecutive rows of a store, each (n,), read when it is asked for."""

    def __init__(
        self,
        store: ActivationStore,
        rows: Extent,
        *,
        offset: int = 0,
        documents: "DocumentColumns | None" = None,
    ) -> None:
        self._store = store
        self._rows = rows
        self._offset = offset
        self._documents = documents or DocumentColumns(store)  # shared by all blocks
        self._read: dict[str, pa.Array] = {}

    def __getitem__(self, name: str) -> Array:
        self._check(name)
        if name in _OF_ROWS:
            column: Array = self._of_rows(name).to_numpy(zero_copy_only=False)
            return column
        of_each: Array = self._of_documents(name).to_numpy(zero_copy_only=False)
        return of_each[self._documents_here[1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def tables(self, written: str) -> Iterator[pa.Table]:
        """The columns that the text names, and `row`: tables of some rows each, in order.

        In each a column of text has few bytes, or is of one row.
        """
        words = set(re.findall(r"\w+", written.lower()))
        named = [n for n in self._names if words.issuperset(re.findall(r"\w+", n.lower()))]
        own = {name: self._of_rows(name) for name in ("row", *named) if name in _OF_ROWS}
        _, places = self._documents_here
        others = {name: self._of_documents(name) for name in named if name not in _OF_ROWS}
        for part in self._parts(others.values()):
            table = {name: column[part] for name, column in own.items()}
            here = pa.array(places[part])
            table |= {name: column.take(here) for name, column in others.items()}
            yield pa.table(table)

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return len(self._rows)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        own = (*_OF_ROWS, _DOCUMENT_ID)
        return (*own, *(name for name in document_schema(self._store).names if name not in own))

    @cached_property
    def _documents_here(self) -> tuple[Array, Array]:
        """The numbers of the rows' documents, each once, and (n,) each row's place among them."""
        return np.unique(self._of_rows("document_number"), return_inverse=True)

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise InvalidQuery(f"Rows have no column {name!r}\n{nearest(name, self._names)}")

    def _parts(self, columns: Iterable[pa.Array]) -> Iterator[slice]:
        """Consecutive rows with few bytes of these columns of documents."""
        bytes_of_document = sum(map(_num_bytes, columns), np.zeros(1, np.int64))
        if not (len(self._rows) and bytes_of_document.any()):
            yield slice(0, len(self._rows))
            return
        edges = np.cumsum(bytes_of_document[self._documents_here[1]])
        start = 0
        while start < len(self._rows):
            before = edges[start - 1] if start else 0
            fitting = int(np.searchsorted(edges, before + _TEXT_BYTES, side="right"))
            stop = max(fitting, start + 1)
            yield slice(start, stop)
            start = stop

    def _of_rows(self, name: str) -> pa.Array:
        """(n,) what the token tables say."""
        if name not in self._read:
            self._read[name] = self._column(name)
        return self._read[name]

    def _column(self, name: str) -> pa.Array:
        rows = self._rows
        if name == "row":
            return pa.array(np.arange(rows.start, rows.stop, dtype=np.int64) + self._offset)
        if name == "split":
            codes = pa.array(self._store.splits_of(rows), pa.int8())
            return pa.DictionaryArray.from_arrays(codes, list(self._store.schema.splits)).cast(
                pa.string()
            )
        stored = self._store.tokens["document" if name == "document_number" else name]
        return pa.array(stored.read(rows.start, rows.stop))

    def _of_documents(self, name: str) -> pa.Array:
        """What the documents' table says of each of the block's documents."""
        distinct, _ = self._documents_here
        return self._documents.take("id" if name == _DOCUMENT_ID else name, distinct)


def _num_bytes(column: pa.Array) -> Array:
    """(n,) int64: how long each text is; 0 of what is no text, which is short."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        return np.asarray(lengths).astype(np.int64)
    return np.zeros(len(column), np.int64)


class Predicate:
    """A question about rows that is true or false of each.

    Parameters
    ----------
    where
        SQL (``"position >= 4 and label = 'positive'"``, see `ActivationStore.find`), a
        ``pyarrow.compute`` expression, a function of a mapping from column names to NumPy
        arrays that returns (n,) bool, or the rows themselves: `Rows`, labels, row numbers, or
        (rows,) bool.

    Raises
    ------
    InvalidQuery
        It is none of these.
    """

    def __init__(self, where: Any) -> None:
        self._where = where
        self._documents: dict[str, DocumentColumns] = {}  # by the store
        self._answers: dict[tuple[str, int], Array] = {}  # of SQL, a bit a row
        self._elsewhere: dict[str, Relation] = {}  # labels of the other stores
        self._given: Rows | Array | None = None  # as rows were given
        if isinstance(where, str | pc.Expression):
            self._written = str(where)
        elif callable(where):
            self._written = f"function {getattr(where, '__qualname__', type(where).__name__)}"
        else:
            self._given = _given_rows(where)
            self._where = _numbers(self._given)
            self._written = f"{len(self._where)} rows {crc32c(self._where.tobytes()):08x}"

    def __str__(self) -> str:
        return self._written

    def prepare(
        self,
        stores: ActivationStore | ManyStores,
        *,
        committed: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Get ready for what is asked together: check rows that were given, find all labels.

        Rows that were given and are not committed are counted in the log.

        Parameters
        ----------
        committed
            Sorted runs of rows, numbered through; None where all are read.

        Raises
        ------
        RowsOutOfRange
            There are no such rows; or a mask is not as long as there are rows.
        InvalidQuery
            They are rows of another store.
        """
        if isinstance(self._where, str):
            self._elsewhere = label_tables(parts_of(stores))
        if self._given is not None:
            _check_rows(self._given, stores)
            if committed is not None:
                _count_uncommitted(self._where, committed, stores)

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
        documents = self._documents.setdefault(store.url, DocumentColumns(store))
        block = TokenBlock(store, rows, offset=offset, documents=documents)
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
            true = [table.filter(where)["row"].to_numpy() for table in block.tables(str(where))]
            return _at(np.concatenate(true) - first, block.num_rows)
        if callable(where):
            return np.asarray(where(block))
        here = where[np.searchsorted(where, first) : np.searchsorted(where, first + block.num_rows)]
        return _at(here - first, block.num_rows)

    def _mask_by_sql(self, where: str, store: ActivationStore, rows: Extent, offset: int) -> Array:
        key = store.url, offset
        if key not in self._answers:
            bits = np.zeros(-(-len(store) // 8), np.uint8)
            for found in rows_where_in_batches(
                store, where, first_row=offset, elsewhere=self._elsewhere
            ):
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


def _given_rows(where: Any) -> Rows | Array:
    """Rows of a store, or what is said of any: (n,) numbers, or (rows,) bool."""
    if isinstance(where, Rows):
        return where
    if isinstance(where, Labels):
        return where.found()
    given: Array = np.asarray(where)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iub"):
        raise InvalidQuery(
            f"A predicate cannot be {type(where).__name__}\n"
            "hint: give SQL, a pyarrow expression, a function, row numbers or a mask of all rows"
        )
    return given


def _numbers(given: Rows | Array) -> Array:
    """(n,) int64, ascending, each once."""
    if isinstance(given, Rows):
        return given.rows
    return np.flatnonzero(given) if given.dtype == bool else np.unique(given.astype(np.int64))


def _check_rows(given: Rows | Array, stores: ActivationStore | ManyStores) -> None:
    if isinstance(given, Rows):
        given.numbers_in(stores)
    elif given.dtype != bool:
        as_rows(given, len(stores), of=stores.url)
        _refuse_mask_of_numbers(given, stores)
    elif len(given) != len(stores):
        raise RowsOutOfRange(
            f"The mask is of {len(given):,} rows; there are {len(stores):,} in {stores.url}\n"
            "hint: give one boolean a row, or row numbers"
        )


def _refuse_mask_of_numbers(given: Array, stores: ActivationStore | ManyStores) -> None:
    """Refuse zeros and ones for all rows: as row numbers they would be the first two rows."""
    if len(given) == len(stores) > 2 and given.max() <= 1:
        raise InvalidQuery(
            f"A predicate of {len(given):,} zeros and ones, as many as there are rows in "
            f"{stores.url}, would name the rows 0 and 1\n"
            "hint: a mask is of booleans: give array.astype(bool)"
        )


def _count_uncommitted(
    numbers: Array, committed: Sequence[tuple[int, int]], stores: ActivationStore | ManyStores
) -> None:
    edges = np.array(committed, np.int64).reshape(-1)
    absent = numbers[np.searchsorted(edges, numbers, side="right") % 2 == 0]
    if len(absent):
        logger.warning(
            "%s of %s rows asked of %s are not committed and left out, the first row %s",
            f"{len(absent):,}",
            f"{len(numbers):,}",
            stores.url,
            f"{absent[0]:,}",
        )
