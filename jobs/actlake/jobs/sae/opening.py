"""Open what a configuration refers to, and refuse what cannot be before a row is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actlake.jobs.begun import open_as_begun
from actlake.jobs.chosen_rows import ChosenRows, choose_rows, inputs_of_rows
from actlake.jobs.massive_rows import MassiveRows, find_massive, without_massive
from actlake.jobs.sae.architectures import check_across_sites, check_architecture
from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.data import held_out_batches, sites_of, training_batches
from actlake.jobs.sae.dead_latents import RESAMPLED, dead_window
from actlake.jobs.sae.errors import InvalidSAE, InvalidTraining, NotEnoughRows
from actlake.jobs.sae.sweep import expand
from actlake.jobs.stored_as import inputs_of_store
from actlake.jobs.widths import one_width
from actlake.platform.cluster import (
    WorkerPlan,
    check_device_of_workers,
    joins_cluster,
    threads_here,
)
from actlake.platform.config import to_dict
from actlake.platform.models.numerics import resolve_device
from actlake.platform.runs import Input
from actlake.storage import ActivationStore
from actlake.storage.errors import ActlakeError, UnknownSplit, nearest


@dataclass(frozen=True)
class Opened:
    """What a configuration refers to, opened and checked."""

    config: SAEConfig
    store: ActivationStore
    specs: tuple[SAESpec, ...]
    """All SAEs, with names."""
    num_rows: int
    """Rows of an epoch."""
    steps: int
    """Batches in all."""
    held_out_rows: int
    """Rows that are tested on."""
    device: torch.device
    """Of this process: the CPU for a driver whose workers are on a cluster."""
    threads: int
    """Compute threads of each worker; those on a running cluster get theirs from `plan_workers`."""
    joins: bool
    """Whether the work goes to a running cluster; then nothing is trained in this process."""
    chosen: ChosenRows | None
    """The rows of which `SAEConfig.where` is true; None: all."""
    massive: MassiveRows | None
    """Those that are left out; None: `SAEConfig.max_norm` is null."""
    rows: ChosenRows | None
    """The chosen rows less massive ones: what is trained and tested on; None: all."""

    @property
    def out(self) -> Path:
        """Folder of the results."""
        return Path(self.config.out).expanduser()

    @property
    def dim(self) -> int:
        """Width of the rows of all sites that are read."""
        return one_width(self.store, (site for spec in self.specs for site in spec.all_sites))

    @property
    def warnings(self) -> list[str]:
        """What makes some numbers say less than they seem to."""
        rows = self.steps * self.config.batch_rows
        return [
            f"{spec.name}: a latent is dead after {spec.dead_after_rows:,} rows without a firing, "
            f"and the training has {rows:,}: none will be; leave dead_after_rows out for "
            f"{dead_window(None, rows):,}"
            for spec in self.specs
            if spec.dead_after_rows is not None and spec.dead_after_rows > rows
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """What the weights and the logged numbers depend on, as plain JSON."""
        return identity(self.config, self.inputs)

    @property
    def inputs(self) -> dict[str, Input]:
        """What is read, with its identity."""
        store = inputs_of_store(self.config.store, self.store, sites_of(self.specs))
        return {**store, **inputs_of_rows(self.chosen)}


def open_config(config: SAEConfig, *, plan: WorkerPlan | None = None) -> Opened:
    """Store and SAEs of a configuration, checked against each other.

    Parameters
    ----------
    plan
        What this process computes with, where it is one of several workers or on a cluster.

    Raises
    ------
    InvalidSAE
        An SAE that cannot be.
    SiteNotStored, UnknownSplit, EmptySelection, InvalidQuery, MissingExtra
        As their names say.
    NotEnoughRows
        Fewer rows than a batch, or than `config.rows` within `config.epochs`.
    InvalidModelConfig
        There is no such device.
    InvalidClusterConfig
        A certain device is asked for, and workers have theirs from Ray.
    """
    joins = plan is None and joins_cluster(config.cluster)
    if joins or config.workers > 1:
        check_device_of_workers(config.device)
    specs = expand(config)
    for spec in specs:
        _check(spec, config)
    store = open_as_begun(config.store, Path(config.out).expanduser())
    for site in sites_of(specs):
        store.site(site)
    _check_splits(store, config)
    chosen = choose_rows(
        store,
        config.where,
        splits={"split": config.split, "evaluation.split": config.evaluation.split},
        excluded=config.excluded,
    )
    massive = find_massive(
        store, sites_of(specs),
        split=config.split, max_norm=config.max_norm, excluded=config.excluded,
    )  # fmt: skip
    kept = without_massive(store, chosen, massive, excluded=config.excluded)
    with training_batches(store, specs, config, rows_per_batch=1, chosen=kept) as rows:
        num_rows = rows.num_rows
    steps = _steps(config, num_rows)
    with held_out_batches(store, specs, config, chosen=kept) as rows:
        held_out_rows = rows.num_rows
    device = plan.device if plan else config.device
    return Opened(
        config=config,
        store=store,
        specs=specs,
        num_rows=num_rows,
        steps=steps,
        held_out_rows=min(held_out_rows, config.evaluation.rows),
        device=torch.device("cpu" if joins else resolve_device(device).value),
        threads=plan.threads if plan else threads_here(config.threads, config.workers),
        joins=joins,
        chosen=chosen,
        massive=massive,
        rows=kept,
    )


_NOT_THE_RESULT = (
    "store", "out", "device", "threads", "checkpoint", "report", "resources",
    "hang_timeout_s", "cluster", "tracking",
)  # fmt: skip
"""Fields that may be others when a run goes on. The store is known by what is in it."""


def identity(config: SAEConfig, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """What a result depends on: a run goes on, or is there already, only where it is the same.

    How many workers share the rows of a step is no part of it, for losses then agree but for
    rounding; how many share the SAEs is, for each has checkpoints of its own.
    """
    decisive = {k: v for k, v in to_dict(config).items() if k not in _NOT_THE_RESULT}
    if config.spread == "rows":
        del decisive["workers"]
    return {**{name: given.fingerprint for name, given in inputs.items()}, **decisive}


def _check(spec: SAESpec, config: SAEConfig) -> None:
    """Refuse what an architecture cannot be, with the SAE's name in front."""
    try:
        check_architecture(spec.architecture, spec.options, d_sae=spec.d_sae)
        if spec.target is not None:
            check_across_sites(spec.architecture, "transcoder")
        if spec.sites:
            check_across_sites(spec.architecture, "crosscoder")
    except ActlakeError as error:
        raise InvalidSAE(f"{spec.name}: {error}") from error
    if spec.resample_every_rows is not None and (
        spec.architecture not in RESAMPLED or spec.target is not None or spec.sites
    ):
        raise InvalidSAE(
            f"{spec.name}: dead latents of a {spec.architecture} are not resampled\n"
            f"hint: leave resample_every_rows out; it is for SAEs of {', '.join(RESAMPLED)}, and "
            "the family of topk has an auxiliary loss"
        )
    if spec.early_stop is not None and config.evaluation.every_steps is None:
        raise InvalidTraining(
            f"{spec.name} can only end early where it is tested during the training\n"
            "hint: set evaluation.every_steps"
        )


def _check_splits(store: ActivationStore, config: SAEConfig) -> None:
    for key, split in (("split", config.split), ("evaluation.split", config.evaluation.split)):
        if split not in store.schema.splits:
            raise UnknownSplit(
                f"There is no split {split!r} in {store.url} ({key})\n"
                f"{nearest(split, store.schema.splits)}"
            )
    if config.split == config.evaluation.split:
        raise InvalidTraining(
            f"SAEs would be tested on the split {config.split!r} that they are trained on\n"
            "hint: give another as evaluation.split"
        )


def _steps(config: SAEConfig, num_rows: int) -> int:
    if num_rows < config.batch_rows:
        raise NotEnoughRows(
            f"A batch of {config.batch_rows:,} rows cannot be filled: {num_rows:,} rows of "
            f"{config.store} are in the split {config.split!r} and not excluded"
            f"{f', where {config.where}' if config.where else ''}\n"
            f"hint: --batch_rows {max(num_rows // 8, 1)}, or harvest more"
        )
    most = config.epochs * (num_rows // config.batch_rows)
    if config.rows is None:
        return most
    if config.rows < config.batch_rows:
        raise InvalidTraining(
            f"rows is {config.rows:,}, less than one batch of {config.batch_rows:,}\n"
            "hint: give more rows, or a smaller batch_rows"
        )
    steps = config.rows // config.batch_rows
    if steps > most:
        raise NotEnoughRows(
            f"{config.rows:,} rows are asked for: {steps:,} batches of {config.batch_rows:,}. "
            f"{config.epochs} epoch(s) of {num_rows:,} rows have {most:,}\n"
            f"hint: --epochs {-(-steps // (num_rows // config.batch_rows))} sees rows again; or "
            "harvest more"
        )
    return steps
