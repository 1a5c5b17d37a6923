"""What a store is asked with: its indexes, vocabulary and names, each made at first use."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

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
        """Tokens by text."""
        return Vocabulary(self._store.tokenizer)

    @cached_property
    def document_ids(self) -> Array:
        """(documents,) str objects, the documents' ids in order of their ordinal."""
        batches = [batch["id"] for _, batch in document_batches(self._store, ["id"])]
        return np.concatenate([ids.to_numpy(zero_copy_only=False) for ids in batches])

    @cached_property
    def _ordinals(self) -> dict[str, int]:
        return {name: ordinal for ordinal, name in enumerate(self.document_ids.tolist())}

    @cached_property
    def context_starts(self) -> Array:
        """(contexts + 1,) int64; context ``c`` is rows ``starts[c] <= row < starts[c + 1]``."""
        return np.asarray(self._store.contexts["start"][:])

    @cached_property
    def context_splits(self) -> Array:
        """(contexts,) int8 codes into ``schema.splits``."""
        return np.asarray(self._store.contexts["split"][:])

    def ordinal(self, document: str | int) -> int:
        """The ordinal of a document, given its id or its ordinal.

        Raises
        ------
        NotInStore
            There is no such document.
        """
        if isinstance(document, str):
            if document in self._ordinals:
                return self._ordinals[document]
            known = list(self._ordinals)
            shown = nearest(document, known) if len(known) < 20 else self._near(document)
            raise NotInStore(f"There is no document {document!r} in {self._store.url}\n{shown}")
        if 0 <= int(document) < self._store.schema.documents:
            return int(document)
        raise NotInStore(
            f"There is no document number {document}; {self._store.url} has "
            f"{self._store.schema.documents:,}\nhint: documents are counted from 0"
        )

    def _near(self, document: str) -> str:
        similar = [known for known in self._ordinals if abs(len(known) - len(document)) <= 3]
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
