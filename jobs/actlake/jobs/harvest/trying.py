"""Run a few contexts where the units will be run, before the first of them; see `Trial`."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from actlake.jobs.harvest.batches import BATCHINGS, Batching
from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import stored_sites
from actlake.jobs.harvest.readings import Losses, Reading
from actlake.jobs.harvest.replicas import chain_of
from actlake.jobs.harvest.trial import BOUNDS, Trial, check_range, not_independent
from actlake.jobs.harvest.trial_worker import (
    LOSS,
    LossReceipt,
    TrialReceipt,
    TrialUnit,
    TrialWorker,
)
from actlake.platform.cluster import (
    ReplicasKeepDying,
    WorkStopped,
    run_chain,
    run_units,
    session,
)
from actlake.platform.cluster.worker_plan import WorkerPlan, joins_cluster
from actlake.platform.compute_threads import compute_threads
from actlake.platform.models import ResolvedModel
from actlake.storage import Site

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

RunUnits: TypeAlias = Callable[[Sequence[int]], dict[int, list[Any]]]
"""Does units of a trial, each once; the receipts of all stages."""


def try_contexts(
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    sample: Sequence[Array],
    *,
    readings: Mapping[str, Reading],
    fixed: Batching | None = None,
) -> Trial:
    """Run a few contexts where the units will be run, and settle how contexts are batched.

    Parameters
    ----------
    sample
        Contexts of the corpus, (tokens,) int32 each.
    readings
        Forms of them whose loss is wanted; see `readings_of`.
    fixed
        How the contexts of the store are run already; only whether the model bears it is then
        left to find out.

    Raises
    ------
    RowsNotIndependent
        No batching gives the rows that the contexts have alone; or not the fixed one.
    NonFiniteActivations
        The store's dtype does not hold what the model computes, and infinities are refused.
    ActlakeError
        The model cannot be loaded or run.
    """
    unit = TrialUnit.of(
        sample,
        context_length=config.corpus.context_length,
        batch_tokens=config.batch_budget,
    )
    errors: dict[Batching, tuple[Site, float]] = {}
    losses, why_no_loss = None, "asked not to" if fixed is None else "this store was begun before"
    with _trial_workers(config, model, workers, unit, tuple(readings.values())) as run:
        for batching in BATCHINGS if fixed is None else (fixed,):
            number = BATCHINGS.index(batching)
            with_loss = bool(readings) and not errors  # once, on the same workers
            receipts = run([number, LOSS] if with_loss else [number])
            seen: list[TrialReceipt] = receipts[number]
            largest = _largest(receipt.largest for receipt in seen)
            check_range(largest, config.storage, model)
            if with_loss:
                losses, why_no_loss = _losses(receipts[LOSS][-1], readings, model)
            errors[batching] = _largest(receipt.errors for receipt in seen)
            if errors[batching][1] <= BOUNDS[model.dtype_name]:
                break
        else:
            raise not_independent(model, errors, fixed)
    trial = Trial(
        batching=batching,
        errors=errors,
        largest=largest,
        dtype=config.storage.dtype,
        losses=losses,
        why_no_loss=why_no_loss,
        numerics=seen[0].numerics,
    )
    for subject, words in trial.lines().items():
        if subject != "warning":
            logger.info("Tried %s, %s: %s", model.name, subject, words)
    for words in trial.warnings():
        logger.warning("%s", words)
    return trial


def _losses(
    receipt: LossReceipt, readings: Mapping[str, Reading], model: ResolvedModel
) -> tuple[Losses | None, str]:
    if not receipt.losses:
        return None, receipt.why_not
    (num_tokens,) = {reading.num_predicted for reading in readings.values()}
    by_reading = {
        name: nats / num_tokens for name, nats in zip(readings, receipt.losses, strict=True)
    }
    uniform = math.log(model.vocab_size)
    return Losses(by_reading=by_reading, num_tokens=num_tokens, uniform=uniform), ""


def _largest(numbers: Iterable[Mapping[Site, float]]) -> tuple[Site, float]:
    """The largest of all stages; NaN is larger than any."""
    items = [item for found in numbers for item in found.items()]
    return max(items, key=lambda item: math.inf if math.isnan(item[1]) else item[1])


@contextmanager
def _trial_workers(
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    trial: TrialUnit,
    readings: tuple[Reading, ...],
) -> Iterator[RunUnits]:
    """Workers placed as the harvest's will be; on this machine's CPU, in this process."""
    spec = chain_of(
        config,
        model,
        workers,
        stored_sites(config.sites),
        make=TrialWorker,
        trial=trial,
        readings=readings,
    )
    if not joins_cluster(config.cluster) and model.device.value == "cpu":
        with compute_threads(workers.threads):
            chain = [stage.make(**stage.kwargs) for stage in spec.stages]
            yield lambda units: {unit: run_chain(chain, unit) for unit in units}
        return
    with session(config.cluster) as cluster:

        def run(units: Sequence[int]) -> dict[int, list[Any]]:
            found: dict[int, list[Any]] = {}
            result = run_units(
                cluster,
                units,
                spec,
                replicas=1,
                in_flight=1,
                max_attempts=config.max_attempts,
                unit_timeout_s=config.unit_timeout_s,
                on_done=lambda unit, receipts, timing: found.update({unit: receipts}),
            )
            if result.stopped:
                raise WorkStopped("The harvest was stopped before its text was laid out")
            for why in result.failed.values():
                raise ReplicasKeepDying(
                    f"The few contexts a model is tried on lost their workers: {why[-1]}\n"
                    "hint: cluster.worker_output: true shows what they said"
                )
            return found

        yield run
