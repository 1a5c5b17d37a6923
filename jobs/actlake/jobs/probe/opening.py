"""Open what a config refers to, and refuse what cannot be before an activation is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from actlake.jobs.begun import open_as_begun
from actlake.jobs.chosen_rows import ChosenRows, choose_rows
from actlake.jobs.massive_rows import MassiveRows, find_massive
from actlake.jobs.probe.config import ProbeConfig, StoreSplits
from actlake.jobs.probe.errors import InvalidProbe
from actlake.jobs.probe.examples import Examples, build_examples
from actlake.jobs.probe.gathering import CHUNK, rows_needed
from actlake.jobs.probe.identity import NOT_THE_RESULT, what_decides
from actlake.jobs.probe.labelling import read_labels
from actlake.jobs.probe.splits import split_rows
from actlake.platform.cluster import (
    WorkerPlan,
    check_device_of_workers,
    joins_cluster,
    threads_here,
)
from actlake.platform.config import to_dict
from actlake.platform.models.numerics import resolve_device
from actlake.platform.seeds import Seeds
from actlake.storage import ActivationStore, Site


@dataclass
class Opened:
    """What a config refers to, opened and checked."""

    store: ActivationStore
    sites: tuple[Site, ...]
    sets: tuple[Examples, ...]
    """One for each task, pooling and offset."""
    warnings: tuple[str, ...]
    held: bool
    """Whether the rows of a site are gathered once for all sets."""
    streamed: tuple[bool, ...]
    """Of each set, whether its rows are streamed for every pass."""
    at_once: int
    """Sites that are probed side by side in this process."""
    threads: int
    """Compute threads of each."""
    device: torch.device
    """Of this process: the CPU for a driver whose workers are on a cluster."""
    joins: bool
    """Whether the work goes to a running cluster; then no site is probed in this process."""
    chosen: ChosenRows | None
    """The rows of which `RowsConfig.where` is true; None: all."""
    massive: MassiveRows | None
    """Rows that are massive at one of the sites, which are left out; None: `max_norm` is null."""


def open_config(config: ProbeConfig, *, plan: WorkerPlan | None = None) -> Opened:
    """Store, sites and examples of a config, checked against each other.

    Parameters
    ----------
    plan
        What this process computes with, where it is a worker on Ray.

    Raises
    ------
    ActlakeError
        Whatever `train_probes` refuses before it reads activations.
    """
    joins = plan is None and joins_cluster(config.cluster)
    if joins or config.workers > 1:
        check_device_of_workers(config.device)
    decides = what_decides(to_dict(config), NOT_THE_RESULT)
    store = open_as_begun(
        config.store,
        Path(config.out).expanduser(),
        is_same=lambda record: what_decides(record.config, NOT_THE_RESULT) == decides,
    )
    sites = _sites(store, config)
    chosen = choose_rows(
        store, config.rows.where, splits=_named_splits(config), excluded=config.rows.excluded
    )
    massive = find_massive(
        store, sites,
        split=training_split(config), max_norm=config.rows.max_norm, excluded=config.rows.excluded,
    )  # fmt: skip
    sets: list[Examples] = []
    for task in config.tasks:
        labelled = read_labels(store, task, config.rows)
        split = split_rows(store, labelled, config.splits, Seeds(config.seed))
        sets += [
            build_examples(store, labelled, split, config, pooling, offset, chosen, massive)
            for pooling in config.pooling
            for offset in config.offsets
        ]
    _require_probes(config, sets)
    held, streamed, most = _what_fits(store, sites, sets, config.memory_mb * 2**20)
    warnings = dict.fromkeys(warning for one in sets for warning in one.warnings)
    asked = plan.device if plan else config.device
    device = torch.device("cpu" if joins else resolve_device(asked).value)
    threads = plan.threads if plan else threads_here(config.threads, config.workers)
    alone = plan is None and not joins and config.workers == 1
    at_once = min(most, threads, len(sites)) if device.type == "cpu" and alone else 1
    opened = Opened(
        store,
        sites,
        tuple(sets),
        tuple(warnings),
        held,
        streamed,
        at_once,
        threads // at_once,
        device,
        joins,
        chosen,
        massive,
    )
    if config.dictionary is not None:
        from actlake.jobs.probe.dictionary import check_dictionary

        check_dictionary(config, store, sites)
    if config.transfer:
        from actlake.jobs.probe.transfer import check_transfer

        check_transfer(config, opened.sets)
    return opened


def training_split(config: ProbeConfig) -> str | None:
    """The store's split that is trained on; None where splits are drawn anew."""
    return config.splits.train if isinstance(config.splits, StoreSplits) else None


def _named_splits(config: ProbeConfig) -> dict[str, str | None]:
    """The store's splits that are used, by their keys; none where splits are drawn anew."""
    splits = config.splits
    if not isinstance(splits, StoreSplits):
        return {}
    return {
        "splits.train": splits.train,
        "splits.validate": splits.validate,
        "splits.test": splits.test,
    }


def _sites(store: ActivationStore, config: ProbeConfig) -> tuple[Site, ...]:
    if config.sites == "all":
        sites = store.sites
        if not sites:
            raise InvalidProbe(f"{store.url} has no sites yet\nhint: `actlake harvest` fills them")
    else:
        sites = tuple(dict.fromkeys(store.site(name) for name in config.sites))
    for site in sites:
        coverage = store.coverage(site)
        if not coverage.is_readable:
            raise InvalidProbe(
                f"{site} of {store.url} is not whole: {coverage}\n"
                "hint: go on with the harvest first, or name other sites"
            )
    return sites


def _require_probes(config: ProbeConfig, sets: Sequence[Examples]) -> None:
    for one in sets:
        numbers = one.kind == "regression"
        if not any((probe == "ridge") == numbers for probe in config.probes):
            raise InvalidProbe(
                f"None of the probes {', '.join(config.probes)} can be fitted to "
                f"{one.task.called!r}, which is {one.kind}\n"
                f"hint: add {'ridge' if numbers else 'logistic'} to probes"
            )


def _what_fits(
    store: ActivationStore, sites: Sequence[Site], sets: Sequence[Examples], allowed: int
) -> tuple[bool, tuple[bool, ...], int]:
    """Whether all rows of a site fit beside the largest set; if not, which sets are streamed.

    And for how many sites at once that is so; at least one.
    """
    schemas = [store.schema_of(site) for site in sites]
    width = max(schema.dim for schema in schemas)
    element = max(schema.value_dtype.itemsize for schema in schemas)
    # Rows as float32, and as much again for what is made of them on the way.
    sizes = [len(one) * width * 4 * 2 for one in sets]
    every = len(rows_needed(sets)) * width * element + max(sizes)
    if every <= allowed:
        return True, (False,) * len(sets), allowed // max(1, every)
    streamed = tuple(
        len(one) > CHUNK and size > allowed for one, size in zip(sets, sizes, strict=True)
    )
    return False, streamed, 1
