"""Text, laid out: the documents and contexts a store is about.

Rows are fixed before any activation is computed. `Document` and `Context` are what a corpus
hands to `actlake.storage.create.StoreBuilder`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Document:
    """One row of ``documents.parquet``; its ordinal is the order in which it was added."""

    id: str
    """A relative path, a given id or a content hash; never an absolute path."""
    source: str
    """Where it came from: the file's name, the data set's."""
    split: str
    text: str | None = None
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    """Extra columns and labels, kept beside the text."""


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What the model sees at once: n consecutive rows, all of one split."""

    ids: np.ndarray[Any, Any]
    """(n,) int32 token ids."""
    documents: np.ndarray[Any, Any]
    """(n,) int64 ordinal of each token's document."""
    chars: np.ndarray[Any, Any]
    """(n,) int32 start character of each token in its document's text.

    A separator has its document's length, a BOS 0, and a token whose place is unknown -1.
    """
    split: str

    def __len__(self) -> int:
        return len(self.ids)
