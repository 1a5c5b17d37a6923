"""What the driver does for every unit: commit it, count it, show it, log it.

All of it runs in the driver's only loop, so it reads nothing back but moments, where a block of
units can be summed up: what is shown came with the receipts. benchmarks/scale.py measures it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actlake.jobs.harvest.progress import HarvestProgress
from actlake.jobs.harvest.worker import UnitReceipt
from actlake.platform.cluster import UnitTiming
from actlake.platform.tracking import Tracker
from actlake.storage import Lease
from actlake.storage.resume import use_numerics
from actlake.storage.stored_moments import sum_up_around


@dataclass(frozen=True, slots=True, kw_only=True)
class Commits:
    """Makes units of one store visible, one after another."""

    lease: Lease
    rows_of: Callable[[int], int]
    """Rows of a unit."""
    allow_other_numerics: bool
    progress: HarvestProgress
    tracker: Tracker

    def commit(self, unit: int, receipts: Sequence[UnitReceipt], timing: UnitTiming) -> None:
        """Make one unit visible, and count it.

        Raises
        ------
        StoreMismatch
            A stage computes with other numerics than the store has. Nothing was committed.
        """
        records = [
            record.computed_with(number)
            for receipt, number in zip(receipts, self._numerics(receipts), strict=True)
            for record in receipt.records
        ]
        self.lease.ledger.commit(records)
        sum_up_around(self.lease, records)
        tally = self.progress.tally
        tally.count(self.rows_of(unit), receipts, replica=timing.replica)
        self.progress.update()
        numbers = self.progress.numbers()
        for receipt in receipts:
            numbers |= receipt.norms
        self.tracker.log(numbers, step=tally.rows_before + tally.rows)

    def _numerics(self, receipts: Sequence[UnitReceipt]) -> list[int]:
        """The ledger's number of what each stage's bits depend on."""
        return [
            use_numerics(self.lease, receipt.numerics, allow_other=self.allow_other_numerics)
            for receipt in receipts
        ]
