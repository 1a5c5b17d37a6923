"""Damaged shards of a harvested store, computed again with its model, and nothing else.

Neither the text nor the tokenizer is needed: the tokens are in the store. What comes out is
written only where it has the checksums that were committed.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from actlake.jobs.harvest.batches import Batching
from actlake.jobs.harvest.config import HarvestConfig, StagesConfig
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.planning import units_in_flight
from actlake.jobs.harvest.preparation import batching_of
from actlake.jobs.harvest.replicas import phases, replica_spec
from actlake.jobs.harvest.worker import UnitReceipt, numerics_here
from actlake.jobs.model_of_store import NotTheModel, check_model
from actlake.platform.cluster import ClusterConfig, Session, UnitTiming, run_units, session
from actlake.platform.cluster.worker_plan import WorkerPlan, joins_cluster
from actlake.platform.config import from_dict
from actlake.platform.models import ModelConfig, ResolvedModel
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, Lease, Site, UnitSet
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.ledger_state import SiteGroup
from actlake.storage.provenance import differences
from actlake.storage.repair import OTHER_BYTES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recomputation:
    """How the sites of one harvest are computed again. Making it changes nothing."""

    store: ActivationStore
    config: HarvestConfig
    model: ResolvedModel
    workers: WorkerPlan
    batching: Batching

    @classmethod
    def resolve(
        cls,
        store: ActivationStore,
        group: SiteGroup,
        *,
        model_name: str | None = None,
        cluster: ClusterConfig | None = None,
    ) -> Self:
        """Find the model that a harvest recorded, as it was run.

        Parameters
        ----------
        model_name
            Where the model is now, if not where it was.

        Raises
        ------
        NotTheModel
            The ledger does not say how the sites were computed, or another model is there.
        ActlakeError
            The model cannot be found, or run here.
        """
        request, batching = group.request, batching_of(store)
        if "model" not in request or batching is None:
            raise NotTheModel(
                f"The ledger of {store.url} does not say how {group.sites[0]} was computed\n"
                "hint: write its units with what wrote them, to another path"
            )
        model = from_dict(ModelConfig, request["model"])
        config = HarvestConfig(
            store=store.url,
            sites=group.sites,
            model=model if model_name is None else replace(model, name=model_name, revision=""),
            batch_tokens=request["batch_tokens"],
            threads=request["threads"],
            stages=request["stages"],
            pipeline=from_dict(StagesConfig, request["pipeline"]),
            cluster=cluster or ClusterConfig(),
            tracking=TrackingConfig(wandb="disabled"),
        )
        resolved, workers = resolve(config)
        check_model(store, resolved)
        return cls(store, config, resolved, workers, batching)

    def __str__(self) -> str:
        return f"its model, {self.model.name}"

    def impossible(self, records: Iterable[ShardRecord]) -> dict[ShardRecord, str]:
        """Which were computed with other numerics than there are here, and the difference.

        Empty where a cluster is joined: what its workers compute with is seen when they do.
        """
        if joins_cluster(self.config.cluster):
            return {}
        here = numerics_here(
            self.model,
            threads=self.workers.threads,
            batch_tokens=self.config.batch_budget,
            batching=self.batching,
        )
        then = self.store.ledger.numerics
        return {
            record: "it was computed with other numerics than there are here:\n"
            + "\n".join(differences(then[record.numerics], here))
            + "\nhint: repair it where and how the store was begun"
            for record in records
            if then[record.numerics] != here
        }

    def restore(self, lease: Lease, records: Sequence[ShardRecord]) -> dict[ShardRecord, str]:
        """Compute damaged shards again; which were not restored, and why."""
        with session(self.config.cluster) as cluster:
            return recompute(
                cluster, self.config, self.model, self.workers, lease, records,
                batching=self.batching,
            )  # fmt: skip


def recompute(
    cluster: Session,
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    lease: Lease,
    records: Iterable[ShardRecord],
    *,
    batching: Batching,
) -> dict[ShardRecord, str]:
    """Compute damaged shards again; which were not restored, and why."""
    left = {(record.site, record.unit): record for record in records}
    reasons: dict[int, str] = {}
    units_of: dict[Site, UnitSet] = {}
    for site, unit in left:
        units_of.setdefault(site, UnitSet()).add(unit)

    def restored(unit: int, receipts: Sequence[UnitReceipt], timing: UnitTiming) -> None:
        for record in (record for receipt in receipts for record in receipt.records):
            del left[record.site, unit]
            logger.info("Computed again: %s, unit %d", record.site, unit)
        reasons[unit] = OTHER_BYTES

    for sites, units in phases(units_of):
        spec = replica_spec(
            config,
            model,
            workers,
            lease,
            sites,
            batching=batching,
            damaged=[left[site, unit] for site in sites for unit in units],
        )
        result = run_units(
            cluster,
            iter(units),
            spec,
            replicas=min(config.replicas, len(units)),
            on_done=restored,
            at_least=1,
            in_flight=units_in_flight(config.num_stages),
            max_attempts=config.max_attempts,
            unit_timeout_s=config.unit_timeout_s,
        )
        reasons |= {unit: why[-1] for unit, why in result.failed.items()}
        if result.stopped:
            break
    not_reached = "it was not reached before the repair was stopped"
    return {record: reasons.get(record.unit, not_reached) for record in left.values()}
