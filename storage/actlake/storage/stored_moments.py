"""The moments of a site's committed rows, read from few files however many units there are.

Each unit has a file of its own, for good. Wherever 32 of them lie side by side and are committed,
their total is a file as well, and so on: 10⁶ units are read as some sixty files. A total says
nothing that its units do not, to the last bit: one that is not there, or is damaged, is added up
again. `sum_up` writes them.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from actlake.storage.ahead import map_ahead
from actlake.storage.errors import StoreDamaged, StoreNotFound
from actlake.storage.extents import UnitSet
from actlake.storage.lease import Lease
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.location import Location
from actlake.storage.mapped import REPAIR_HINT
from actlake.storage.moments import Moments
from actlake.storage.moments_file import (
    Block,
    decode_moments,
    encode_moments,
    merge_groups,
    moments_folders,
    sizes_of_totals,
)
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site

logger = logging.getLogger(__name__)
Groups = Sequence[Moments]
"""Of each group of rows, ``2 * split + excluded``."""


@dataclass(frozen=True, slots=True)
class StoredMoments:
    """The moments of one site of a store."""

    location: Location
    site: Site
    schema: SiteSchema
    splits: tuple[str, ...]

    def of(self, units: UnitSet) -> Groups:
        """The moments of the rows of these units, which are committed, added up.

        In a fixed order, a tree of blocks of 32: the sum depends on which units they are, and not
        on which totals are there.

        Raises
        ------
        StoreDamaged
            The moments of a unit are missing, or not what was written.
        """
        if not units:
            return [Moments.empty(self.schema.dim)] * (2 * len(self.splits))
        root = Block(1, 0)
        while root.stop < units.runs()[-1][1]:
            root = root.whole
        totals = map_ahead(self._total, largest_blocks(units), threads=self.location.parallel)
        return self._fold(root, units, totals)

    def sum_of(self, block: Block) -> Groups:
        """The moments of a block whose units are all committed, from those of its parts."""
        parts = map_ahead(self._total, block.parts, threads=self.location.parallel)
        return merge_groups(
            [
                self.sum_of(part) if total is None else total
                for part, total in zip(block.parts, parts, strict=True)
            ]
        )

    def encoded_sum(self, block: Block) -> bytes:
        """What the file of a block must be; from those of its parts, as `sum_of`."""
        return encode_moments(self.site, block, self.splits, self.sum_of(block))

    def decode(self, block: Block, data: bytes) -> Groups:
        """What a file says; `StoreDamaged` where it is not that of the block."""
        return decode_moments(
            data,
            site=self.site,
            block=block,
            splits=self.splits,
            dim=self.schema.dim,
            name=f"{block.key(self.site)} in {self.location.url}",
        )

    def _fold(self, block: Block, units: UnitSet, totals: Iterator[Groups | None]) -> Groups:
        """The moments of those of a block's units that are asked for; `totals` are in order."""
        if units.covers(block.start, block.stop):
            total = next(totals)
            return self.sum_of(block) if total is None else total
        parts = [part for part in block.parts if units.meets(part.start, part.stop)]
        return merge_groups([self._fold(part, units, totals) for part in parts])

    def _total(self, block: Block) -> Groups | None:
        """What the file of a block says; None of several units whose total is not to be had."""
        key = block.key(self.site)
        try:
            return self.decode(block, self.location.read(key))
        except StoreNotFound as error:
            if block.units > 1:
                return None
            raise StoreDamaged(
                f"{key} is missing from {self.location.url}\n{REPAIR_HINT}"
            ) from error
        except StoreDamaged as error:
            if block.units > 1:
                logger.warning("%s; its units are added up again\n%s", error, REPAIR_HINT)
                return None
            raise StoreDamaged(f"{error}\n{REPAIR_HINT}") from error


def largest_blocks(units: UnitSet) -> Iterator[Block]:
    """Those whose units are all in the set, and that lie in no larger such block; in order."""
    for start, stop in units.runs():
        while start < stop:
            block = Block(1, start)
            while block.whole.start == start and block.whole.stop <= stop:
                block = block.whole
            yield block
            start = block.stop


def blocks_of_size(units: UnitSet, size: int) -> Iterator[Block]:
    """The blocks of so many units that are all in the set, in order."""
    for start, stop in units.runs():
        for number in range(-(-start // size), stop // size):
            yield Block(size, number)


def sum_up_around(lease: Lease, records: Iterable[ShardRecord]) -> None:
    """Write the totals that have become complete by committing these units.

    Raises
    ------
    LeaseLost
        Another driver has taken over.
    StoreNotWritable
        No space, or no permission.
    """
    for record in records:
        committed = lease.ledger.state.covered[record.site]
        block = Block(1, record.unit).whole
        while committed.covers(block.start, block.stop):
            _write(lease, _of_site(lease, record.site), block)
            block = block.whole


def sum_up(lease: Lease, sites: Iterable[Site]) -> None:
    """Write all totals of these sites that can be and are not there; raises as `sum_up_around`.

    Killed drivers leave gaps.
    """
    for site in sorted({site.stored for site in sites}):
        stored, committed = _of_site(lease, site), lease.ledger.state.covered[site]
        for size, keys in total_keys(lease.location, site, committed):
            for block in blocks_of_size(committed, size):
                if block.key(site) not in keys:
                    _write(lease, stored, block)


def total_keys(
    location: Location, site: Site, committed: UnitSet
) -> Iterator[tuple[int, frozenset[str]]]:
    """The keys of the totals that are there, by how many units each is of."""
    last = max((stop for _, stop in committed.runs()), default=0)
    for size in sizes_of_totals(last):
        folders = moments_folders(site, size, total_units=last)
        yield size, frozenset(key for folder in folders for key in location.list(folder))


def _write(lease: Lease, stored: StoredMoments, block: Block) -> None:
    try:
        content = stored.encoded_sum(block)
    except StoreDamaged as error:  # which `verify` names, and a repair mends; then there is a total
        logger.warning("%s is not summed up: %s", block.key(stored.site), error)
        return
    lease.writer.ensure(block.key(stored.site), [content])


def _of_site(lease: Lease, site: Site) -> StoredMoments:
    """As the ledger of a driver's store has announced them."""
    state = lease.ledger.state
    assert state.corpus is not None, lease.location.url
    return StoredMoments(lease.location, site, state.schemas[site], state.corpus.schema.splits)
