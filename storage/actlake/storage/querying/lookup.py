"""What a store is asked with: its indexes, vocabulary and names, each made at first use."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from actlake.storage.errors import NotInStore, nearest
from actlake.storage.querying.document_table import document_batches
from actlake.storage.querying.ranges import expanded
from actlake.storage.querying.token_index import DocumentRuns, TokenIndex
from actlake.storage.querying.vocabulary import Vocabulary

if TYPE_CHECKING:  # store.py has one
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]


class Lookup:
    """Finds rows by token, document and split, and names by row.

    Memory: 17 bytes a context, and the documents' ids, once they are asked for.
    """

    def __init__(self, store: "ActivationStore") -> None:
        self._store = store

    @cached_property
    def tokens(self) -> TokenIndex:
        """Rows by token id."""
        return TokenIndex.of(self._store)

    @cached_property
    def documents(self) -> DocumentRuns:
        """Rows by document."""
        return DocumentRuns.of(self._store)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Tokens by text; none in a store that was made without a tokenizer.

        Raises
        ------
        StoreDamaged
            The tokenizer that it was made with is gone.
        """
        return Vocabulary(self._store.tokenizer if self._store.tokenizer_files else None)

    @cached_property
    def document_ids(self) -> Array:
        """(documents,) str objects, the documents' ids in order of their number."""
        batches = [batch["id"] for _, batch in document_batches(self._store, ["id"])]
        return np.concatenate([ids.to_numpy(zero_copy_only=False) for ids in batches])

    @cached_property
    def _numbers_by_id(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.document_ids.tolist())}

    @cached_property
    def _context_numbers(self) -> Array:
        """(contexts,) int64: the number of each context that there is, in order."""
        extents = (stretch.contexts for stretch in self._store.schema.stretches)
        return np.concatenate([np.arange(e.start, e.stop) for e in extents])

    @cached_property
    def _context_edges(self) -> tuple[Array, Array]:
        """Both (contexts,) int64: the first row of each, and the one after its last."""
        start = self._store.contexts["start"]
        extents = [stretch.contexts for stretch in self._store.schema.stretches]
        edges = [start.read(extent.start, extent.stop + 1) for extent in extents]
        return np.concatenate([e[:-1] for e in edges]), np.concatenate([e[1:] for e in edges])

    @cached_property
    def _context_splits(self) -> Array:
        """(contexts,) int8 codes into ``schema.splits``."""
        splits = self._store.contexts["split"]
        extents = (stretch.contexts for stretch in self._store.schema.stretches)
        return np.concatenate([splits.read(e.start, e.stop) for e in extents])

    def document_numbers(self, ids: Iterable[str | None]) -> Array:
        """(n,) int64, the numbers of documents by their ids; -1 where there is none."""
        known = self._numbers_by_id
        return np.array([-1 if name is None else known.get(name, -1) for name in ids], np.int64)

    def document_number(self, document: str) -> int:
        """The number of the document with an id.

        Raises
        ------
        NotInStore
            There is no such document; the nearest is named.
        """
        if document in self._numbers_by_id:
            return self._numbers_by_id[document]
        known = list(self._numbers_by_id)
        shown = nearest(document, known) if len(known) < 20 else self._near(document)
        if document in map(str, range(len(known))):
            shown += f"; document_number={document} asks for a document by its place"
        raise NotInStore(f"There is no document {document!r} in {self._store.url}\n{shown}")

    def _near(self, document: str) -> str:
        similar = [known for known in self._numbers_by_id if abs(len(known) - len(document)) <= 3]
        hint = nearest(document, similar)
        if "did you mean" in hint:
            return hint
        return "hint: store.documents(['id']) lists them"

    def contexts(self, rows: Array) -> Array:
        """(n,) int64, the context of each row; -1 in a gap between two stretches."""
        places = self._places(rows)
        found: Array = np.where(places < 0, -1, self._context_numbers[places])
        return found

    def _places(self, rows: Array) -> Array:
        """(n,) int64, the place of each row's context among those that there are, or -1."""
        starts, stops = self._context_edges
        places = np.searchsorted(starts, rows, side="right") - 1
        found: Array = np.where(rows < stops[places], places, -1)
        return found

    def splits(self, rows: Array) -> Array:
        """(n,) int8, the split code of each row; -1 in a gap between two stretches."""
        places = self._places(rows)
        codes: Array = np.where(places < 0, np.int8(-1), self._context_splits[places])
        return codes

    def split_code(self, split: str) -> int:
        """See `ActivationStore.split_code`."""
        return self._store.split_code(split)

    def documents_of_split(self, split: str) -> Array:
        """(n,) int64, ascending, the numbers of the documents of a split.

        Raises
        ------
        UnknownSplit
            The store has no such split.
        """
        self.split_code(split)
        batches = document_batches(self._store, ["split"])
        found = [
            first + np.flatnonzero(pc.equal(batch["split"], split).to_numpy(zero_copy_only=False))
            for first, batch in batches
        ]
        return np.concatenate(found)

    def rows_per_split(self) -> dict[str, int]:
        """How many rows each split has, committed or not."""
        starts, stops = self._context_edges
        lengths, codes = stops - starts, self._context_splits
        names = self._store.schema.splits
        return {name: int(lengths[codes == code].sum()) for code, name in enumerate(names)}

    def contexts_of_split(self, split: str) -> Array:
        """(n, 2) int64: the first row of each context of a split, and the one after its last.

        Raises
        ------
        UnknownSplit
            The store has no such split.
        """
        own = self._context_splits == self.split_code(split)
        return np.stack([edges[own] for edges in self._context_edges], axis=1)

    def rows_of_split(self, split: str) -> Array:
        """(n,) int64, all rows of a split: 8 bytes each.

        Raises
        ------
        UnknownSplit
            The store has no such split.
        """
        starts, stops = self.contexts_of_split(split).T
        _, rows = expanded(starts, stops - starts)
        return rows
