"""Tiny corpora, and what a store of one, or of several in a chain, must hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.storage import Context, Document, Site

Array = np.ndarray[Any, Any]
SITES = (Site(0), Site(3))
DIM = 2
UNIT_ROWS = 4
TOKEN_SHARD_ROWS = 16  # of which units are a part, so that an append begins at one
CONTEXT_LENGTH = 4


@dataclass(frozen=True)
class Corpus:
    """A text, laid out, with the model that reads it."""

    name: str
    lengths: tuple[int, ...]
    """Of its contexts, in tokens."""
    first_id: int

    @property
    def rows(self) -> int:
        """Tokens."""
        return sum(self.lengths)

    @property
    def ids(self) -> Array:
        """(rows,) int32."""
        return (self.first_id + np.arange(self.rows)).astype(np.int32)

    def documents(self) -> list[Document]:
        """One a context."""
        return [
            Document(f"{self.name}-{n}", "made", "all", f"text {n} of {self.name}")
            for n in range(len(self.lengths))
        ]

    def contexts(self) -> list[Context]:
        """In the order of rows."""
        cuts = np.cumsum(self.lengths)[:-1]
        return [
            Context(ids, np.full(len(ids), n), np.arange(len(ids), dtype=np.int32), "all")
            for n, ids in enumerate(np.split(self.ids, cuts))
        ]


@dataclass(frozen=True)
class Chain:
    """A corpus, and those that were appended to it."""

    corpora: tuple[Corpus, ...]
    is_exported: bool = False
    """Whether it was copied into one corpus, without gaps."""

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join(corpus.name for corpus in self.corpora)

    @property
    def ids(self) -> Array:
        """(rows,) int32: of each corpus from a shard's border on, -1 in the gaps."""
        parts: list[Array] = []
        for corpus in self.corpora:
            gap = 0 if self.is_exported else -sum(map(len, parts)) % TOKEN_SHARD_ROWS
            parts += [np.full(gap, -1, np.int32), corpus.ids]
        return np.concatenate(parts)

    def documents(self) -> list[Document]:
        """Of all of them."""
        return [document for corpus in self.corpora for document in corpus.documents()]


def activations(ids: Array, site: Site) -> Array:
    """(n, DIM) float32: what the model says of these tokens."""
    return np.stack([ids, np.cos(ids * (site.layer + 1))], axis=1).astype(np.float32)


NEWS = Corpus("news", (3, 4, 1), 10)
# Fewer rows: its last unit is shorter, and arrays of the one do not fit the other's metadata.
POEMS = Corpus("poems", (2, 4), 50)
LATER = Corpus("later", (4, 1), 70)
OTHER = Corpus("other", (3,), 90)
