"""Make damaged files again what was committed.

    metadata   written again: the ledger says every byte of it
    totals     added up again from the moments of their units
    moments    worked out again, where the unit's rows are whole
    rows       had again from where they came: an exported store's from its parent
               (`actlake.storage.parent`), a harvested one's from its model
               (`actlake.jobs.harvest`)

The ledger keeps what each unit's files must be, so a repair changes nothing in it, and replaces a
file only by one with the checksum that was committed. What comes out otherwise is not written.
A repair that is killed leaves each file as damaged as it was, or whole; the next goes on.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from actlake.storage.errors import StoreDamaged
from actlake.storage.lease import Lease
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.metadata import metadata_of, write_metadata
from actlake.storage.store import ActivationStore
from actlake.storage.stored_moments import sum_up
from actlake.storage.verify import total_problems
from actlake.storage.writer import restore_unit

Array = np.ndarray[Any, Any]


def restore_metadata(lease: Lease) -> int:
    """Write every file again that only repeats the ledger, where it is not so; how many."""
    state = lease.ledger.state
    return write_metadata(lease, metadata_of(state.corpora[-1], state.schemas))


def restore_totals(lease: Lease, store: ActivationStore) -> int:
    """Write every total again that is not what its units add up to; how many were damaged.

    After the units' own moments. Totals that are not there are written, too.
    """
    damaged = 0
    for _, key, expected in total_problems(store):
        lease.writer.replace(key, [expected])
        damaged += 1
    sum_up(lease, store.sites)
    return damaged


def restore_shards(
    lease: Lease,
    store: ActivationStore,
    records: Iterable[ShardRecord],
    rows_of: Callable[[ShardRecord], Array],
) -> dict[ShardRecord, str]:
    """Write damaged shards again, each from its rows; which were not restored, and why.

    Parameters
    ----------
    rows_of
        (n, dim): the rows of a unit of a site, in the store's dtype. `StoreDamaged` where they
        cannot be had.
    """
    lost: dict[ShardRecord, str] = {}
    for record in records:
        try:
            rows = {record.site: rows_of(record)}
        except StoreDamaged as error:
            lost[record] = str(error)
            continue
        if not restore_unit(store, record.unit, rows, [record], token=lease.token):
            lost[record] = OTHER_BYTES
    return lost


OTHER_BYTES = "what comes out are other bytes than were committed; its files were left as they are"
"""Why a shard is not restored from rows that could be had."""


def own_rows(store: ActivationStore) -> Callable[[ShardRecord], Array]:
    """The rows that the store itself holds, for shards of which only the moments are damaged."""

    def rows_of(record: ShardRecord) -> Array:
        extent = store.schema.unit_extent(record.unit)
        return store[record.site].read(extent.start, extent.stop)

    return rows_of
