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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from actlake.jobs.harvest.appending import planned_addition, prepare_addition
from actlake.jobs.harvest.batch_budget import with_batch_tokens
from actlake.jobs.harvest.batches import Batching
from actlake.jobs.harvest.commits import Commits
from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.planning import (
    HarvestPlan,
    plan_harvest,
    site_schemas,
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
from actlake.jobs.harvest.recompute import recompute
from actlake.jobs.harvest.replicas import phases, replica_spec
from actlake.jobs.harvest.trial import Trial, batching_words
from actlake.jobs.harvest.worker import numerics_here
from actlake.jobs.saying import say
from actlake.platform.cluster import (
    Gauges,
    PoolEvent,
    PoolResult,
    Session,
    run_units,
    session,
)
from actlake.platform.cluster.worker_plan import WorkerPlan, joins_cluster
from actlake.platform.config import to_dict
from actlake.platform.corpus import Progress
from actlake.platform.models import ResolvedModel
from actlake.platform.tracking import TrackedRun, Tracker, check_wandb, open_tracker, run_id_of
from actlake.platform.writable import check_writable
from actlake.storage import ActivationStore, Lease, Site, UnitSet, add_sites, open_store
from actlake.storage.ledger import read_state
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.location import locate
from actlake.storage.querying.index_file import cache_folder
from actlake.storage.resume import use_numerics
from actlake.storage.stored_moments import sum_up
from actlake.storage.summary import summarize
from actlake.storage.verify import undersized
from actlake.storage.writer import free_missing, free_unit

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
    restored: int = 0
    """Committed shards that were missing or cut short, and were computed again."""
    damaged: Mapping[tuple[Site, int], str] = field(default_factory=dict)
    """Those that could not be, with the reason."""
    trial: Trial | None = None
    """What the model did on a few contexts; None where no new rows were to be tried."""

    @property
    def complete(self) -> bool:
        """Whether all sites that were asked for are whole."""
        return not (self.failed or self.stopped or self.damaged)


def plan(config: HarvestConfig, *, append: bool = False) -> HarvestPlan:
    """What `harvest` would do now, in numbers. Reads the text if it is not in the store yet.

    Raises
    ------
    ActlakeError
        Whatever `harvest` would refuse before the model runs.
    """
    check_writable(config.store)
    model, workers = resolve(config)
    location = locate(config.store)
    state = read_state(location)
    config = with_batch_tokens(config, model, workers, state)
    if append:
        with planned_addition(location, config, model, workers, progress=_silent) as planned:
            config = replace(config, sites=planned.sites)
            return _plan(config, model, planned.prepared, workers, appended_to=planned.to)
    if state.corpora:
        store = open_store(location)
        prepared = store_as_found(store, config, model, workers, progress=_silent)
        return _plan(config, model, prepared, workers)
    with scratch_store(config, model, workers, progress=_silent) as prepared:
        return _plan(config, model, prepared, workers)


def harvest(
    config: HarvestConfig,
    *,
    append: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
) -> HarvestResult:
    """Fill the store of a config, or go on filling it.

    Parameters
    ----------
    append
        The store is finished, and the config's corpus is another, to be added to it; all of the
        store's sites are harvested for it. Called again, it goes on with that.
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
    check_writable(config.store)
    check_wandb(config.tracking)
    model, workers = resolve(config)
    threads = workers.threads
    with ExitStack() as stack:
        lease = stack.enter_context(Lease.acquire(locate(config.store)))
        config = with_batch_tokens(config, model, workers, lease.ledger.state)
        prepare = prepare_addition if append else prepare_store
        prepared = prepare(lease, config, model, workers, progress=progress or _silent)
        store = prepared.store
        if append:
            config = replace(config, sites=store.sites)
        else:
            sites = site_schemas(config, model)
            add_sites(lease, store, sites, harvest_request(config, threads=threads))
            store.refresh()
        lost = _lost(store, config.sites)
        planned = _plan(config, model, prepared, workers, lost=lost)
        say(planned, console)
        if not lost and not any(_missing(store, config.sites).values()):
            logger.info("Nothing to do: all %d units are committed", store.schema.num_units)
            sum_up(lease, config.sites)
            lease.ledger.merge_all()
            return HarvestResult(store.url, store.schema.num_rows, 0, {}, False, 0.0)
        if numerics := _numerics(config, model, prepared, workers):
            use_numerics(lease, numerics, allow_other=config.allow_other_numerics)
        free_missing(lease, store, config.sites)
        cluster = stack.enter_context(session(config.cluster))
        tracker = stack.enter_context(_tracker(config, store))
        if prepared.trial is not None:
            tracker.summary(prepared.trial.as_metrics())
        run = _Run(
            config, model, workers, prepared.batching, lease, store, cluster, tracker, console
        )
        return replace(run.run(lost), trial=prepared.trial)


class _Run:
    """One call of `harvest`, from the first unit to the last."""

    def __init__(
        self,
        config: HarvestConfig,
        model: ResolvedModel,
        workers: WorkerPlan,
        batching: Batching,
        lease: Lease,
        store: ActivationStore,
        cluster: Session,
        tracker: Tracker,
        console: Console,
    ) -> None:
        self._config = config
        self._model = model
        self._workers = workers
        self._batching = batching
        self._lease = lease
        self._store = store
        self._cluster = cluster
        self._tracker = tracker
        done = store.committed(config.sites)
        self._tally = Tally(
            total_rows=store.schema.num_rows,
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

    def run(self, lost: Sequence[ShardRecord]) -> HarvestResult:
        """Compute what is missing, then `lost`, which is committed and damaged."""
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
            sum_up(self._lease, self._config.sites)
            self._lease.ledger.merge_all()
        damaged = dict.fromkeys(lost, "the harvest was stopped before")
        if lost and not any(result.stopped for result in results):
            damaged = recompute(
                self._cluster, self._config, self._model, self._workers, self._lease, lost,
                batching=self._batching,
            )  # fmt: skip
        self._tracker.summary(
            {
                "rows": self._store.schema.num_rows,
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
            rows=self._store.schema.num_rows,
            units_done=tally.units,
            failed={unit: why for result in results for unit, why in result.failed.items()},
            stopped=any(result.stopped for result in results),
            seconds=tally.seconds,
            given_up=tuple(why for result in results for why in result.given_up),
            restored=len(lost) - len(damaged),
            damaged={(record.site, record.unit): why for record, why in damaged.items()},
        )

    def _run_phase(self, sites: tuple[Site, ...], units: UnitSet) -> PoolResult:
        return run_units(
            self._cluster,
            iter(units),
            replica_spec(
                self._config,
                self._model,
                self._workers,
                self._lease,
                sites,
                batching=self._batching,
            ),
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

    def _hear(self, event: PoolEvent) -> None:
        if event.replica is not None and event.kind == "replica_up":
            self._tally.actors.up(event.replica)
        elif event.replica is not None and event.kind == "replica_lost":
            self._tally.actors.gone(event.replica)
        if event.kind == "replica_up" and self._tally.units == 0:
            self._tally.restart_clock()
        elif event.kind == "unit_requeued" and event.unit is not None:
            self._tally.requeued += 1
            # The next one may compute other bits, where that is allowed.
            free_unit(self._lease, self._store, event.unit, self._config.sites)
        self._progress.update()


def _plan(
    config: HarvestConfig,
    model: ResolvedModel,
    prepared: Prepared,
    workers: WorkerPlan,
    *,
    lost: Iterable[ShardRecord] = (),
    appended_to: str = "",
) -> HarvestPlan:
    store = prepared.store
    missing = _missing(store, config.sites)
    pending = UnitSet((record.unit, record.unit + 1) for record in lost)
    for units in missing.values():
        pending.update(units)
    return plan_harvest(
        config,
        model,
        store.schema,
        pending_units=len(pending),
        workers=workers,
        beginning=str(prepared.beginning),
        special_tokens=prepared.special_tokens,
        rows_per_split=store.lookup.rows_per_split(),
        tried=_tried(prepared),
        appended_to=appended_to,
    )


def _tried(prepared: Prepared) -> Mapping[str, str]:
    if prepared.trial is not None:
        return prepared.trial.lines()
    return {"contexts": f"run {batching_words(prepared.batching)}, as from the first unit"}


def _numerics(
    config: HarvestConfig, model: ResolvedModel, prepared: Prepared, workers: WorkerPlan
) -> Mapping[str, Any] | None:
    """What the bits will depend on; None on a cluster, where the first receipt tells."""
    if prepared.trial is not None:
        return prepared.trial.numerics
    if joins_cluster(config.cluster):
        return None
    return numerics_here(
        model,
        threads=workers.threads,
        batch_tokens=config.batch_budget,
        batching=prepared.batching,
    )


def _missing(store: ActivationStore, sites: Iterable[Site]) -> dict[Site, UnitSet]:
    units, covered = store.schema.units, store.ledger.covered
    stored = stored_sites(tuple(sites))
    return {site: units.without(covered.get(site, UnitSet())) for site in stored}


def _lost(store: ActivationStore, sites: Iterable[Site]) -> list[ShardRecord]:
    """What the ledger has and the disk has not, of these sites: rows lost or cut short."""
    lost = list(undersized(store, stored_sites(tuple(sites))))
    if lost:
        logger.warning(
            "The rows of %d committed shards are missing or cut short, and are computed again; the "
            "first: %s, unit %d",
            len(lost), lost[0].site, lost[0].unit,
        )  # fmt: skip
    return lost


def _rows_of(store: ActivationStore, units: UnitSet) -> int:
    return sum(map(len, store.schema.rows_of(units)))


def _tracker(config: HarvestConfig, store: ActivationStore) -> TrackedRun:
    log = store.location.local_path("log")
    if log is None:  # trackers append, which a bucket cannot
        log = cache_folder() / "log" / hashlib.sha256(store.url.encode()).hexdigest()[:12]
        logger.info("The log of %s is kept in %s", store.url, log)
    sites = ",".join(map(str, stored_sites(config.sites)))
    run_id = run_id_of("harvest", [store.fingerprint, sites], store.url)
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
