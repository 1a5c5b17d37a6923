"""Reading a store in batches: which rows, in what order, a batch at a time.

From the question to the batch:

    many              several stores as one, rows numbered through       `open_stores`
    predicates        what a row must be: SQL, Arrow, function, rows     `Predicate`
    selection         the rows that take part, as a set that counts      `select_rows`
    order             a permutation of them that is worked out, not kept `Permutation`
    mixing            reading in large pieces, mixed in rounds           `PoolReader`
    batches           the batches, resumable, over ranks and workers     `read_batches`
    shuffle_quality   how well they are mixed, against a perfect shuffle `shuffle_quality`

``store.batches(…)`` and ``open_stores([…]).batches(…)`` are the ways in; their options are those
of `read_batches`. SQL predicates are worked out in the folder beside this one, `querying`.
Why the order is as it is: docs/design/003-order-of-batches.md.
"""

from actlake.storage.reading.batches import Batch, Batches, BatchOptions, read_batches
from actlake.storage.reading.many import ManyStores, open_stores
from actlake.storage.reading.predicates import Predicate
from actlake.storage.reading.shuffle_quality import ShuffleQuality, shuffle_quality

__all__ = [
    "Batch",
    "BatchOptions",
    "Batches",
    "ManyStores",
    "Predicate",
    "ShuffleQuality",
    "open_stores",
    "read_batches",
    "shuffle_quality",
]
