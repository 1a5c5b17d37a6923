"""Fill a store: lay the text down, run it through the model, commit unit after unit.

    harvest(HarvestConfig(
        store="runs/smollm2",
        model=ModelConfig(name="HuggingFaceTB/SmolLM2-135M"),
        sites=(Site(4), Site(9), Site(14)),
    ))

Killed at any moment and called again, it goes on with the units that are missing; on the same
numerics the finished store is the same to the byte. A finished store is left as it is.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console

from actlake.jobs.harvest.commits import Commits
from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.planning import (
    HarvestPlan,
    plan_harvest,
    plan_stages,
    stored_sites,
    units_in_flight,
)
from actlake.jobs.harvest.preparation import (
    Prepared,
    harvest_request,
    prepare_store,
    scratch_store,
    store_as_found,
)
from actlake.jobs.harvest.progress import HarvestProgress, Tally
from actlake.jobs.harvest.worker import HarvestWorker, numerics_here
from actlake.jobs.saying import say
from actlake.platform.cluster import (
    Gauges,
    PoolEvent,
    PoolResult,
    ReplicaSpec,
    Session,
    StageSpec,
    run_units,
    session,
)
from actlake.platform.cluster.worker_plan import WorkerPlan, joins_cluster
from actlake.platform.config import to_dict
from actlake.platform.corpus import Progress
from actlake.platform.models import ResolvedModel
from actlake.platform.tracking import TrackedRun, Tracker, open_tracker
from actlake.storage import ActivationStore, Lease, Site, UnitSet, add_sites, open_store
from actlake.storage.create import MANIFEST
from actlake.storage.location import locate
from actlake.storage.querying.index_file import cache_folder
from actlake.storage.resume import use_numerics
from actlake.storage.summary import summarize
from actlake.storage.verify import revoke_shards, undersized

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HarvestResult:
    """How a harvest ended."""

    store: str
    rows: int
    """Rows of the store."""
    units_done: int
    """Units computed by this call; 0 when the store was complete already."""
    failed: dict[int, tuple[str, ...]]
    """Units that were given up, with the reason of each attempt. The store is valid without
    them, and another call tries them again."""
    stopped: bool
    """Ended early because it was asked to; another call goes on."""
    seconds: float
    given_up: tuple[str, ...] = ()
    """Copies of the model that could not work where they were, with the reason."""

    @property
    def complete(self) -> bool:
        """Whether all sites that were asked for are whole."""
        return not (self.failed or self.stopped)


def plan(config: HarvestConfig) -> HarvestPlan:
    """What `harvest` would do now, in numbers. Reads the text if there is no store yet.

    Raises
    ------
    ActlakeError
        Whatever `harvest` would refuse before the model runs.
    """
    model, workers = resolve(config)
    location = locate(config.store)
    if location.size(MANIFEST) is not None:
        prepared = store_as_found(open_store(location), config, model, progress=_silent)
        return _plan(config, model, prepared, workers)
    with scratch_store(config, model, threads=workers.threads, progress=_silent) as prepared:
        return _plan(config, model, prepared, workers)


def harvest(
    config: HarvestConfig, *, console: Console | None = None, progress: Progress | None = None
) -> HarvestResult:
    """Fill the store of a config, or go on filling it.

    Parameters
    ----------
    console
        Where the plan and the progress are shown; by default standard error.
    progress
        Called while the text is laid out.

    Raises
    ------
    StoreLocked
        Another harvest is writing to this store.
    StoreMismatch
        The store holds other rows, or was computed with other numerics.
    ActlakeError
        Anything else that is refused; the message says what, and what to do.
    """
    console = console or Console(stderr=True)
    model, workers = resolve(config)
    threads = workers.threads
    with ExitStack() as stack:
        lease = stack.enter_context(Lease.acquire(locate(config.store)))
        prepared = prepare_store(
            lease, config, model, threads=threads, progress=progress or _silent
        )
        store = prepared.store
        add_sites(lease, store, config.sites, harvest_request(config, threads=threads))
        store.refresh()
        _revoke_undersized(lease, store)
        planned = _plan(config, model, prepared, workers)
        say(planned, console)
        if not any(_missing(store, config.sites).values()):
            logger.info("Nothing to do: all %d units are committed", store.schema.num_units)
            lease.ledger.merge_all()
            return HarvestResult(store.url, store.schema.rows, 0, {}, False, 0.0)
        if not joins_cluster(config.cluster):  # there, the first receipt tells
            numerics = numerics_here(model, threads=threads, batch_tokens=config.batch_tokens)
            use_numerics(lease, numerics, allow_other=config.allow_other_numerics)
        cluster = stack.enter_context(session(config.cluster))
        tracker = stack.enter_context(_tracker(config, store))
        run = _Run(config, model, workers, lease, store, cluster, tracker, console)
        return run.run()


class _Run:
    """One call of `harvest`, from the first unit to the last."""

    def __init__(
        self,
        config: HarvestConfig,
        model: ResolvedModel,
        workers: WorkerPlan,
        lease: Lease,
        store: ActivationStore,
        cluster: Session,
        tracker: Tracker,
        console: Console,
    ) -> None:
        self._config = config
        self._model = model
        self._workers = workers
        self._lease = lease
        self._store = store
        self._cluster = cluster
        self._tracker = tracker
        done = store.committed(config.sites)
        self._tally = Tally(
            total_rows=store.schema.rows,
            total_units=store.schema.num_units,
            rows_before=_rows_of(store, done),
            units_before=len(done),
        )
        self._progress = HarvestProgress(
            self._tally,
            store.location,
            console=console,
            gauges=Gauges({"store": store.fingerprint}).set,
        )
        self._commits = Commits(
            lease=lease,
            rows_of=lambda unit: len(store.schema.unit_extent(unit)),
            allow_other_numerics=config.allow_other_numerics,
            progress=self._progress,
            tracker=tracker,
        )

    def run(self) -> HarvestResult:
        results: list[PoolResult] = []
        with self._progress.showing():
            for sites, units in phases(_missing(self._store, self._config.sites)):
                results.append(self._run_phase(sites, units))
                if results[-1].stopped:
                    break
        tally = self._tally
        self._tracker.log(self._progress.numbers(), step=tally.rows_before + tally.rows)
        self._store.refresh()
        complete = all(result.complete for result in results)
        if complete:
            self._lease.ledger.merge_all()
        self._tracker.summary(
            {
                "rows": self._store.schema.rows,
                "fingerprint": self._store.fingerprint,
                "complete": complete,
                **{
                    f"mean_norm/{line.site}": line.mean_norm
                    for line in summarize(self._store).sites
                },
            }
        )
        return HarvestResult(
            store=self._store.url,
            rows=self._store.schema.rows,
            units_done=tally.units,
            failed={unit: why for result in results for unit, why in result.failed.items()},
            stopped=any(result.stopped for result in results),
            seconds=tally.seconds,
            given_up=tuple(why for result in results for why in result.given_up),
        )

    def _run_phase(self, sites: tuple[Site, ...], units: UnitSet) -> PoolResult:
        return run_units(
            self._cluster,
            iter(units),
            self._replica(sites),
            replicas=min(self._config.replicas, len(units)),
            on_done=self._commits.commit,
            at_least=min(
                self._config.min_replicas or self._config.replicas,
                self._config.replicas,
                len(units),
            ),
            in_flight=units_in_flight(self._config.num_stages),
            max_attempts=self._config.max_attempts,
            unit_timeout_s=self._config.unit_timeout_s,
            on_event=self._hear,
        )

    def _replica(self, sites: tuple[Site, ...]) -> ReplicaSpec:
        layers_of_stages = [
            layers
            for layers in plan_stages(self._model, self._config)
            if any(site.layer >= layers.start for site in sites)
        ]
        return ReplicaSpec(
            stages=tuple(
                StageSpec(
                    make=HarvestWorker,
                    kwargs={
                        "store_url": self._store.url,
                        "token": self._lease.token,
                        "model": self._model,
                        "layers": layers,
                        "sites": sites,
                        "batch_tokens": self._config.batch_tokens,
                        "threads": self._workers.threads,
                    },
                    resources=self._workers.resources,
                    threads=self._workers.threads,
                )
                for layers in layers_of_stages
            ),
            placement=self._config.pipeline.placement,
            transport=self._config.pipeline.transport,
            messages_in_flight=self._config.pipeline.batches_in_flight,
        )

    def _hear(self, event: PoolEvent) -> None:
        if event.replica is not None and event.kind == "replica_up":
            self._tally.actors.up(event.replica)
        elif event.replica is not None and event.kind == "replica_lost":
            self._tally.actors.gone(event.replica)
        if event.kind == "replica_up" and self._tally.units == 0:
            self._tally.restart_clock()
        elif event.kind == "unit_requeued":
            self._tally.requeued += 1
        self._progress.update()


def phases(missing: dict[Site, UnitSet]) -> Iterator[tuple[tuple[Site, ...], UnitSet]]:
    """Cut what is missing into runs of the same sites: usually one, more after a repair.

    First the units that all sites lack, with all sites at once; then what each site lacks
    alone. So no committed shard is ever written again.
    """
    sites = tuple(sorted(missing))
    together = UnitSet(missing[sites[0]].runs())
    for site in sites[1:]:
        together = together.intersection(missing[site])
    if together:
        yield sites, together
    for site in sites:
        alone = UnitSet(missing[site].runs())
        alone.difference_update(together)
        if alone:
            yield (site,), alone


def _plan(
    config: HarvestConfig, model: ResolvedModel, prepared: Prepared, workers: WorkerPlan
) -> HarvestPlan:
    store = prepared.store
    missing = _missing(store, config.sites)
    pending = UnitSet()
    for units in missing.values():
        pending.update(units)
    return plan_harvest(
        config,
        model,
        store.schema,
        pending_units=len(pending),
        workers=workers,
        beginning=str(prepared.beginning),
    )


def _missing(store: ActivationStore, sites: Iterable[Site]) -> dict[Site, UnitSet]:
    total = store.schema.num_units
    stored = stored_sites(tuple(sites))
    covered = store.ledger.covered
    return {site: UnitSet(covered.get(site, UnitSet()).gaps(total)) for site in stored}


def _revoke_undersized(lease: Lease, store: ActivationStore) -> None:
    """Take back what the ledger has and the disk has not: a file lost or cut short."""
    lost = [(record.site, record.unit) for record in undersized(store)]
    if lost:
        logger.warning(
            "%d committed shards are missing or cut short and are computed again, the first: "
            "%s, unit %d", len(lost), *lost[0],
        )  # fmt: skip
        revoke_shards(lease, lost)
        store.refresh()


def _rows_of(store: ActivationStore, units: UnitSet) -> int:
    return sum(
        min(stop * store.schema.geometry.unit_rows, store.schema.rows)
        - start * store.schema.geometry.unit_rows
        for start, stop in units.runs()
    )


def _tracker(config: HarvestConfig, store: ActivationStore) -> TrackedRun:
    log = store.location.local_path("log")
    if log is None:  # trackers append, which a bucket cannot
        log = cache_folder() / "log" / hashlib.sha256(store.url.encode()).hexdigest()[:12]
        logger.info("The log of %s is kept in %s", store.url, log)
    sites = ",".join(map(str, stored_sites(config.sites)))
    identity = hashlib.sha256(f"{store.fingerprint} {sites}".encode()).hexdigest()[:12]
    run_id = f"harvest-{identity}"
    return open_tracker(
        config.tracking,
        run_id=run_id,
        folder=log / run_id,
        job_type="harvest",
        config_dict=to_dict(config),
        resume_step=_rows_of(store, store.committed(config.sites)),
    )


def _silent(*, documents: int, rows: int) -> None:
    """Say nothing while the text is laid out."""
