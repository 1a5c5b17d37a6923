"""Compute again what `verify` found damaged, and nothing else."""

from actlake.jobs.harvest.config import (
    HarvestConfig,
    InvalidHarvest,
    StagesConfig,
    StorageConfig,
)
from actlake.jobs.harvest.job import HarvestResult, harvest
from actlake.platform.cluster import ClusterConfig
from actlake.platform.config import from_dict
from actlake.platform.corpus import CorpusConfig
from actlake.platform.models import ModelConfig
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, Lease, VerifyReport, open_store, revoke


def repair(
    store: ActivationStore, report: VerifyReport, *, cluster: ClusterConfig | None = None
) -> list[HarvestResult]:
    """Take the damaged units out of the ledger and harvest them again, as they were.

    The model, its numerics and the batch budget are those the store's ledger remembers, so
    the units come back with the same bytes; other numerics are refused.

    Parameters
    ----------
    report
        What `verify` found in this store.

    Raises
    ------
    InvalidHarvest
        The corpus or the ledger is damaged, which cannot be computed again.
    """
    lost = [problem for problem in report.problems if problem.kind in ("corpus", "ledger")]
    if lost:
        raise InvalidHarvest(
            f"{store.url} cannot be repaired: {lost[0]}\n"
            "hint: only activations can be computed again; harvest the corpus to another path"
        )
    damaged = set(report.damaged)
    with Lease.acquire(store.location) as lease:
        revoke(lease, store, report)
    results = []
    for group in open_store(store.location).ledger.groups:
        sites = tuple(site for site in group.sites if site in damaged)
        if sites:
            request = group.request
            config = HarvestConfig(
                store=store.url,
                sites=group.sites,
                model=from_dict(ModelConfig, request["model"]),
                corpus=from_dict(CorpusConfig, request["corpus"]),
                storage=from_dict(StorageConfig, request["storage"]),
                batch_tokens=request["batch_tokens"],
                threads=request["threads"],
                stages=request["stages"],
                pipeline=from_dict(StagesConfig, request.get("pipeline", {})),
                cluster=cluster or ClusterConfig(),
                tracking=TrackingConfig(wandb="disabled"),
            )
            results.append(harvest(config))
    return results
