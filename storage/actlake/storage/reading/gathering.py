"""Batches of stores that can be read anywhere: each row is copied from where it lies.

Which rows stand at which places of an epoch is an `Order`; gathering does not care which.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from actlake.storage.extents import Extent
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
    """Every order of the rows is as likely as any other; one for each epoch of a seed."""

    def __init__(self, rows: RowSet, *, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = lru_cache(2)(self._permutation)  # threads may be in two

    def rows(self, epoch: int, places: Extent) -> Array:
        """See `Order.rows`."""
        return self._rows.select(self._epoch(epoch)(np.arange(places.start, places.stop)))

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(len(self._rows), seed=self._seed, purpose=f"epoch {epoch}")


class GatherReader:
    """Reads any places of any epoch, in any number of threads."""

    def __init__(self, stores: ManyStores, sites: Iterable[Site], order: Order) -> None:
        self._stores = stores
        self._sites = tuple(sites)
        self._order = order

    def read(self, epoch: int, places: Extent) -> tuple[Array, dict[Site, Array]]:
        """The rows at these places, and their activations, (n, dim) as stored."""
        rows = self._order.rows(epoch, places)
        return rows, {site: self._stores.take(rows, site) for site in self._sites}
