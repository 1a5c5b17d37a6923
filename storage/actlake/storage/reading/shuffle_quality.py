"""How well batches are mixed, in numbers, against a draw that could not be better.

Rows of one document are alike. What a batch should show is as many documents as a uniform draw
of rows would show, in as even a mixture: the number of distinct documents, and the entropy of
their shares.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from actlake.storage.reading.batches import Batch, Batches
from actlake.storage.reading.many import ManyStores

Array = np.ndarray[Any, Any]
_ROWS_AT_ONCE = 2**20
_DRAWS = 20


@dataclass(frozen=True, slots=True)
class ShuffleQuality:
    """Means over batches, and what a uniform draw without replacement gives."""

    num_batches: int
    documents: float
    """Distinct documents in a batch."""
    ideal_documents: float
    entropy_bits: float
    """Of the shares of documents in a batch."""
    ideal_entropy_bits: float

    @property
    def entropy(self) -> float:
        """Normalised: 1 is as good as a uniform draw, 0 is one document a batch."""
        if self.ideal_entropy_bits == 0.0:
            return 1.0
        return self.entropy_bits / self.ideal_entropy_bits


def shuffle_quality(batches: Batches, *, num_batches: int = 20, seed: int = 0) -> ShuffleQuality:
    """Measure the next `num_batches` batches, which are used up.

    Parameters
    ----------
    seed
        Of the uniform draws that they are compared with.
    """
    stores = batches.stores
    seen = [_counts(documents_of(stores, batch.rows)) for batch in _next(batches, num_batches)]
    if not seen:
        raise ValueError("There are no batches left to measure")
    size = int(np.median([counts.sum() for counts in seen]))
    sizes = _document_sizes(batches)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(
        sizes, size, size=_DRAWS, method="marginals"
    )
    return ShuffleQuality(
        num_batches=len(seen),
        documents=float(np.mean([len(counts) for counts in seen])),
        ideal_documents=float((drawn > 0).sum(axis=1).mean()),
        entropy_bits=float(np.mean([_entropy(counts) for counts in seen])),
        ideal_entropy_bits=float(np.mean([_entropy(draw[draw > 0]) for draw in drawn])),
    )


def documents_of(stores: ManyStores, rows: Array) -> Array:
    """(n,) the document of each row, numbered through all stores."""
    which, local = stores.locate(rows)
    documents = np.empty(len(rows), np.int64)
    before = 0
    for number, store in enumerate(stores.stores):
        here = which == number
        documents[here] = before + store.tokens["document"].take(local[here])
        before += store.schema.documents
    return documents


def _next(batches: Batches, count: int) -> Iterable[Batch]:
    return (batch for batch in islice(batches, count) if len(batch))


def _document_sizes(batches: Batches) -> Array:
    """The rows of an epoch that each document has."""
    stores = batches.stores
    total = sum(store.schema.documents for store in stores.stores)
    sizes = np.zeros(total, np.int64)
    for start in range(0, batches.num_rows, _ROWS_AT_ONCE):
        places = np.arange(start, min(start + _ROWS_AT_ONCE, batches.num_rows))
        documents = documents_of(stores, batches.selected.select(places))
        sizes += np.bincount(documents, minlength=total)
    return sizes[sizes > 0]


def _counts(documents: Array) -> Array:
    return np.unique(documents, return_counts=True)[1]


def _entropy(counts: Array) -> float:
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
