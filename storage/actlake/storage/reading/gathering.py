"""Batches of stores that can be read anywhere: each row is copied from where it lies.

Which rows stand at which places of an epoch is an `Order`; gathering does not care which.
"""

import os
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from actlake.storage.arrays import READS_PER_SEEK
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.reading.kept import Kept
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.order import Permutation
from actlake.storage.reading.selection import RowSet
from actlake.storage.sites import Site

Array = np.ndarray[Any, Any]


class Order(Protocol):
    """Which row is at each place of an epoch; any number of threads may ask."""

    def rows(self, epoch: int, places: Extent) -> Array:
        """(n,) int64: the rows at these places."""
        ...


class StoredOrder:
    """The order of the store, in every epoch."""

    def __init__(self, rows: RowSet) -> None:
        self._rows = rows

    def rows(self, epoch: int, places: Extent) -> Array:
        """See `Order.rows`."""
        return self._rows.select(np.arange(places.start, places.stop))


class UniformOrder:
    """Every order of the rows is as likely as any other; one for each epoch of a seed.

    Rows are worked out for some thousand places at once and kept for a while: threads that do it
    for each batch hand Python's lock to and fro, which two of them pay with a tenth of their speed.
    """

    def __init__(self, rows: RowSet, *, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = Kept(self._permutation, 2)  # threads may be in two
        self._span = Kept(self._rows_of_span, _SPANS_KEPT)

    def rows(self, epoch: int, places: Extent) -> Array:
        """See `Order.rows`."""
        parts = []
        for span in range(places.start // SPAN, -(-places.stop // SPAN)):
            here = slice(max(0, places.start - span * SPAN), places.stop - span * SPAN)
            parts.append(self._span((epoch, span))[here])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(len(self._rows), seed=self._seed, purpose=f"epoch {epoch}")

    def _rows_of_span(self, key: tuple[int, int]) -> Array:
        epoch, span = key
        places = np.arange(span * SPAN, min((span + 1) * SPAN, len(self._rows)))
        return self._rows.select(self._epoch(epoch)(places))


# Places whose rows are worked out at once: 128 KiB of row numbers, which the caches hold.
SPAN = 2**14
_SPANS_KEPT = 16


class GatherReader:
    """Reads any places of any epoch, in any number of threads.

    Parameters
    ----------
    ahead
        See `RowArray.take`.
    """

    def __init__(
        self, stores: ManyStores, sites: Iterable[Site], order: Order, *, ahead: bool = False
    ) -> None:
        self._stores = stores
        self._sites = tuple(sites)
        self._order = order
        self._ahead = ahead

    def prepare(self, epoch: int, places: Extent) -> None:
        """Work out which rows these are, so that `read` will not wait for it."""
        self._order.rows(epoch, places)

    def read(self, epoch: int, places: Extent) -> tuple[Array, dict[Site, Array]]:
        """The rows at these places, and their activations, (n, dim) as stored."""
        rows = self._order.rows(epoch, places)
        take = self._stores.take
        return rows, {site: take(rows, site, ahead=self._ahead) for site in self._sites}


def reading_ahead_pays(
    stores: ManyStores, sites: Iterable[Site], *, num_rows: int, committed: Iterable[UnitSet]
) -> bool:
    """Whether an epoch in random order is faster where the disk is read in large pieces.

    It is where most of what lies around a row is read as well, while it is still in memory.

    Parameters
    ----------
    num_rows
        Rows of the epoch.
    committed
        The units of each store that may be read.
    """
    of_each = zip(stores.stores, committed, strict=True)
    there = sum(len(rows) for store, units in of_each for rows in store.schema.rows_of(units))
    row_bytes = sum(stores.schema_of(site).row_bytes for site in sites)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return there <= READS_PER_SEEK * num_rows and 2 * there * row_bytes <= memory
