"""What a replica of the model is made of for some sites of a store, and which go together."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from actlake.jobs.harvest.batches import Batching
from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import plan_stages
from actlake.jobs.harvest.worker import HarvestWorker
from actlake.platform.cluster import ReplicaSpec, StageSpec, StageWorker
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.models import ResolvedModel
from actlake.storage import Lease, Site, UnitSet
from actlake.storage.ledger_records import ShardRecord


def replica_spec(
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    lease: Lease,
    sites: tuple[Site, ...],
    *,
    batching: Batching,
    damaged: Iterable[ShardRecord] = (),
) -> ReplicaSpec:
    """The stages that `sites` need, each with a `HarvestWorker`.

    With `damaged` the units are those of committed shards, whose files are to be again what these
    records say.
    """
    return chain_of(
        config,
        model,
        workers,
        sites,
        make=HarvestWorker,
        store_url=lease.location.url,
        token=lease.token,
        batch_tokens=config.batch_budget,
        batching=batching,
        damaged=tuple(damaged),
    )


def chain_of(
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    sites: tuple[Site, ...],
    *,
    make: Callable[..., StageWorker],
    **kwargs: Any,
) -> ReplicaSpec:
    """The stages that `sites` need, as the config cuts, places and connects them.

    Parameters
    ----------
    make, kwargs
        The worker of each stage, which also gets its layers, the sites, the model and threads.
    """
    layers_of_stages = [
        layers
        for layers in plan_stages(model, config)
        if any(site.layer >= layers.start for site in sites)
    ]
    common = kwargs | {"model": model, "sites": sites, "threads": workers.threads}
    return ReplicaSpec(
        stages=tuple(
            StageSpec(
                make=make,
                kwargs=common | {"layers": layers},
                resources=workers.resources,
                threads=workers.threads,
            )
            for layers in layers_of_stages
        ),
        placement=config.pipeline.placement,
        transport=config.pipeline.transport,
        messages_in_flight=config.pipeline.batches_in_flight,
    )


def phases(units_of: dict[Site, UnitSet]) -> Iterator[tuple[tuple[Site, ...], UnitSet]]:
    """Cut what is to be computed into runs of the same sites: usually one.

    First the units that are wanted of all sites, with all sites at once; then what is wanted of
    each site alone. So nothing is computed that nobody asked for.
    """
    sites = tuple(sorted(units_of))
    together = UnitSet(units_of[sites[0]].runs())
    for site in sites[1:]:
        together = together.intersection(units_of[site])
    if together:
        yield sites, together
    for site in sites:
        alone = UnitSet(units_of[site].runs())
        alone.difference_update(together)
        if alone:
            yield (site,), alone
