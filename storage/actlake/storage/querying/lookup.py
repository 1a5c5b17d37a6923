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

    Memory: 9 bytes a context, and the documents' ids, once they are asked for.
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
    def context_starts(self) -> Array:
        """(contexts + 1,) int64; context ``c`` is rows ``starts[c] <= row < starts[c + 1]``."""
        return np.asarray(self._store.contexts["start"][:])

    @cached_property
    def context_splits(self) -> Array:
        """(contexts,) int8 codes into ``schema.splits``."""
        return np.asarray(self._store.contexts["split"][:])

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
        """(n,) int64, the context of each row."""
        found: Array = np.searchsorted(self.context_starts, rows, side="right") - 1
        return found

    def splits(self, rows: Array) -> Array:
        """(n,) int8, the split code of each row."""
        codes: Array = self.context_splits[self.contexts(rows)]
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
        lengths = np.diff(self.context_starts)
        names = self._store.schema.splits
        return {
            name: int(lengths[self.context_splits == code].sum()) for code, name in enumerate(names)
        }

    def rows_of_split(self, split: str) -> Array:
        """(n,) int64, all rows of a split: 8 bytes each.

        Raises
        ------
        UnknownSplit
            The store has no such split.
        """
        contexts = np.flatnonzero(self.context_splits == self.split_code(split))
        starts = self.context_starts[contexts]
        _, rows = expanded(starts, self.context_starts[contexts + 1] - starts)
        return rows
