"""Two tiny corpora, and what a store of each must hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.storage import Context, Document, Site

Array = np.ndarray[Any, Any]
SITES = (Site(0), Site(3))
DIM = 2
UNIT_ROWS = 4
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
    def num_units(self) -> int:
        """Units of work."""
        return -(-self.rows // UNIT_ROWS)

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


def activations(ids: Array, site: Site) -> Array:
    """(n, DIM) float32: what the model says of these tokens."""
    return np.stack([ids, np.cos(ids * (site.layer + 1))], axis=1).astype(np.float32)


NEWS = Corpus("news", (3, 4, 1), 10)
# Fewer rows: its last unit is shorter, and arrays of the one do not fit the other's metadata.
POEMS = Corpus("poems", (2, 4), 50)
