"""Stores that are asked as one: each with the numbers of its first row, document and context."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.errors import RowsOutOfRange

if TYPE_CHECKING:  # both are asked, and hand out the answers
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One of the stores that are asked together; a store asked alone is its only part."""

    store: "ActivationStore"
    number: int = 0
    """Which of the stores, from 0."""
    first_row: int = 0
    first_document: int = 0
    first_context: int = 0

    @property
    def shift(self) -> dict[str, int]:
        """What is added to the store's own numbers, by column."""
        return {
            "row": self.first_row,
            "document_number": self.first_document,
            "context": self.first_context,
        }

    def among(self, rows: Array) -> Array:
        """(n,) int64: those of `rows` (ascending) that are of this store, numbered as in it."""
        edges = [self.first_row, self.first_row + len(self.store)]
        first, last = np.searchsorted(rows, edges)
        here: Array = rows[first:last] - self.first_row
        return here


def parts_of(store: "ActivationStore | ManyStores") -> tuple[Part, ...]:
    """The stores, numbered through."""
    return tuple(_parts(store))


def refuse_gaps(store: "ActivationStore | ManyStores", rows: Array) -> None:
    """Refuse row numbers that are left out between two stretches of a store.

    Raises
    ------
    RowsOutOfRange
        The first of them is in the message.
    """
    for part in parts_of(store):
        for gap in part.store.schema.gaps:
            inside = (rows >= part.first_row + gap.rows.start) & (
                rows < part.first_row + gap.rows.stop
            )
            if inside.any():
                raise RowsOutOfRange(
                    f"There is no row {rows[inside][0]:,}: {part.store.url} was appended to, and "
                    f"rows begin again at {part.first_row + gap.rows.stop:,}\n"
                    "hint: store.schema.stretches says which there are"
                )


def _parts(store: Any) -> Iterator[Part]:
    row = document = context = 0
    for number, one in enumerate(getattr(store, "stores", (store,))):
        yield Part(one, number, row, document, context)
        row += len(one)
        document += one.schema.documents
        context += one.schema.contexts
