"""Give the rows of committed units up, on purpose, to make room.

Everything else of such a unit stays: tokens, moments, checksums, and the ledger's record of how it
was computed. It is released for good, and never computed again.
"""

import logging
from collections.abc import Iterable, Mapping

from actlake.storage.extents import UnitSet
from actlake.storage.lease import Lease
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore

logger = logging.getLogger(__name__)


def release_units(
    lease: Lease, store: ActivationStore, units: Mapping[Site, Iterable[int]]
) -> None:
    """Release the rows of these units; the ledger says so before a file is removed.

    Doing it again does no harm, and removes what a killed release has left.

    Raises
    ------
    RowsNotCommitted
        One of them is not committed; nothing was released.
    SiteNotStored
        One of the sites is not stored.
    LeaseLost
        Another driver has taken over.
    """
    asked: dict[Site, UnitSet] = {}
    for site, numbers in units.items():
        chosen = asked.setdefault(store.site(site), UnitSet())
        for unit in numbers:
            chosen.add(unit)
    lease.ledger.release(asked)
    keys = [
        spec.shard_key(unit)
        for site, chosen in asked.items()
        for spec in store.row_specs(site)
        for unit in chosen
    ]
    lease.writer.remove(keys)  # a released unit's key is never used again
    num_units = sum(map(len, asked.values()))
    logger.info("%s: the rows of %d units are released", lease.location.url, num_units)
