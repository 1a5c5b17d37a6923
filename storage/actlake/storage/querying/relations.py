"""A store's tables as SQL sees them: streamed from the files, only the columns that are named.

tokens      row, id, document_number, position, char, context, split     a row a token
documents   document_number, and the columns of documents.parquet
vocabulary  id, piece (its name in the tokenizer's file), text
<labels>    row or document_number, and the columns of an attached label table
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actlake.storage.errors import InvalidQuery
from actlake.storage.querying.document_table import document_batches, document_schema

if TYPE_CHECKING:  # sql.py asks for the store
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Produce = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]

# 128 Ki rows: a multiple of DuckDB's vectors, and a few megabytes.
_ROWS_AT_ONCE = 2**17


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A table that is read when it is scanned, and again for every further scan."""

    schema: pa.Schema
    produce: Produce
    """Batches of the named columns, front to back."""

    def only(self, names: frozenset[str]) -> Self:
        """With those columns whose name is among `names` (lower case); at least with one."""
        kept = [field for field in self.schema if field.name.lower() in names]
        return type(self)(pa.schema(kept or [self.schema.field(0)]), self.produce)

    def renamed(self, names: dict[str, str], *, without: Sequence[str] = ()) -> Self:
        """With other names for some columns, and without some."""
        kept = [field for field in self.schema if field.name not in without]
        schema = pa.schema([field.with_name(names.get(field.name, field.name)) for field in kept])
        back = {new: old for old, new in names.items()}

        def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            for batch in self.produce([back.get(name, name) for name in columns]):
                yield pa.record_batch(batch.columns, names=list(columns))

        return type(self)(schema, produce)

    def emptied(self) -> Self:
        """The same columns, and no row."""
        return type(self)(self.schema, lambda columns: iter(()))

    def shifted(self, by: Mapping[str, int]) -> Self:
        """With a number added to some integer columns, where it has them."""
        by = {name: shift for name, shift in by.items() if shift and name in self.schema.names}

        def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            for batch in self.produce(columns):
                arrays = [
                    pc.add(batch[name], pa.scalar(by[name], batch[name].type))
                    if name in by
                    else batch[name]
                    for name in columns
                ]
                yield pa.record_batch(arrays, names=list(columns))

        return type(self)(self.schema, produce) if by else self

    def reader(self) -> pa.RecordBatchReader:
        """One scan of all its columns."""
        names = self.schema.names
        batches = (batch.cast(self.schema) for batch in self.produce(names))
        return pa.RecordBatchReader.from_batches(self.schema, batches)


def joined(name: str, of_each: Sequence[tuple[int, Relation]]) -> Relation:
    """A table of several stores as one, with a column ``store``.

    A column that a store's table lacks is null for that store.

    Parameters
    ----------
    of_each
        The number of each store that has the table, and the table.

    Raises
    ------
    InvalidQuery
        The tables' keys differ, or the types of a column.
    """
    keys = {relation.schema.names[0] for _, relation in of_each}
    plain = [pa.schema([_plain(field) for field in relation.schema]) for _, relation in of_each]
    try:
        if len(keys) > 1:
            raise pa.ArrowTypeError(f"they are keyed by {' and by '.join(sorted(keys))}")
        schema = pa.unify_schemas(plain, promote_options="permissive")
    except pa.ArrowException as error:
        raise InvalidQuery(
            f"The tables {name} of these stores cannot be one: {error}\n"
            "hint: give them the same key and columns in each store, or ask each store alone"
        ) from error
    kept = [field for field in schema if field.name != _STORE]
    schema = pa.schema([*kept, pa.field(_STORE, pa.int32())])

    def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = pa.schema([schema.field(column) for column in columns])
        for number, relation in of_each:
            there = [column for column in relation.schema.names if column != _STORE]
            stored = [column for column in columns if column in there]
            for batch in relation.produce(stored or there[:1]):  # it has to say how many rows
                yield _completed(batch, wanted, number)

    return Relation(schema, produce)


_STORE = "store"
_NUMBER = "document_number"


def _plain(field: pa.Field) -> pa.Field:
    """Not coded by a dictionary, since each store has its own."""
    is_coded = pa.types.is_dictionary(field.type)
    return field.with_type(field.type.value_type) if is_coded else field


def _completed(batch: pa.RecordBatch, wanted: pa.Schema, store: int) -> pa.RecordBatch:
    def column(field: pa.Field) -> pa.Array:
        if field.name == _STORE:
            return pa.array(np.full(batch.num_rows, store, np.int32))
        if field.name in batch.schema.names:
            return batch[field.name].cast(field.type)
        return pa.nulls(batch.num_rows, field.type)

    return pa.record_batch([column(field) for field in wanted], schema=wanted)


def tokens_relation(store: "ActivationStore", among: Array | None = None) -> Relation:
    """The tokens; of all rows, or of the given ones, (n,) int64 and ascending."""
    schema = pa.schema(
        {
            "row": pa.int64(),
            "id": pa.int32(),
            "document_number": pa.int64(),
            "position": pa.int32(),
            "char": pa.int32(),
            "context": pa.int64(),
            "split": pa.dictionary(pa.int8(), pa.string()),
        }
    )
    return Relation(schema, lambda columns: _token_batches(store, among, columns))


def documents_relation(store: "ActivationStore") -> Relation:
    """The documents, with their number in front."""
    stored = [field for field in document_schema(store) if field.name != _NUMBER]
    schema = pa.schema([pa.field(_NUMBER, pa.int64()), *stored])

    def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = [name for name in columns if name != _NUMBER]
        # Parquet gives no batch without a column, and so no count of documents.
        for first, batch in document_batches(store, wanted or ["id"]):
            numbers = pa.array(np.arange(first, first + batch.num_rows))
            arrays = [numbers if name == _NUMBER else batch[name] for name in columns]
            yield pa.record_batch(arrays, names=list(columns))

    return Relation(schema, produce)


def vocabulary_relation(store: "ActivationStore") -> Relation:
    """The tokenizer's tokens."""
    schema = pa.schema({"id": pa.int32(), "piece": pa.string(), "text": pa.string()})

    def produce(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        vocabulary = store.lookup.vocabulary
        ids = sorted(vocabulary.pieces)
        values = {
            "id": ids,
            "piece": [vocabulary.pieces[token] for token in ids],
            "text": [vocabulary.text(token) for token in ids],
        }
        arrays = [pa.array(values[name], schema.field(name).type) for name in columns]
        yield pa.record_batch(arrays, names=list(columns))

    return Relation(schema, produce)


def _row_numbers(store: "ActivationStore", among: Array | None) -> Iterator[Array]:
    """All row numbers, or the given ones, some at a time."""
    if among is None:
        for extent in store.schema.blocks(_ROWS_AT_ONCE):
            yield np.arange(extent.start, extent.stop)
    else:
        for start in range(0, len(among), _ROWS_AT_ONCE):
            yield among[start : start + _ROWS_AT_ONCE]


def _token_batches(
    store: "ActivationStore", among: Array | None, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for rows in _row_numbers(store, among):

        def read(name: str, rows: Array = rows) -> Any:
            if name == "row":
                return pa.array(rows)
            if name == "context":
                return pa.array(store.lookup.contexts(rows))
            if name == "split":
                codes = pa.array(store.lookup.splits(rows))
                return pa.DictionaryArray.from_arrays(codes, pa.array(store.schema.splits))
            stored = store.tokens["document" if name == _NUMBER else name]
            if among is None:
                return pa.array(stored.read(int(rows[0]), int(rows[-1]) + 1))
            return pa.array(stored.take(rows))

        yield pa.record_batch([read(name) for name in columns], names=list(columns))
