"""What SAEs are fed: rows of several sites, read once for all of them, and scaled.

Shapes:  B rows   D width   S sites of a crosscoder
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.chosen_rows import ChosenRows, moments_of_rows
from actlake.jobs.massive_rows import less
from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.scaling import Scaling
from actlake.platform.torch_batches import TorchBatch, TorchBatches
from actlake.storage import ActivationStore, Site
from actlake.storage.moments import Moments, is_excluded
from actlake.storage.reading.batches import Batches

Example = tuple[Tensor, Tensor | None]
"""What an SAE reads, (B, D) or (B, S, D), and the target of a transcoder, (B, D)."""


@dataclass(frozen=True, eq=False)
class SiteFacts:
    """What is known of a site's training rows before the training."""

    scale: float
    """By which rows are multiplied: sqrt(D) / mean norm, or 1."""
    variance: float
    """Sum over dimensions of the variance of the unscaled rows."""
    mean: np.ndarray[Any, Any]
    """(D,) mean of the unscaled rows, float64."""


def site_facts(
    batches: Batches, *, normalise: bool, chosen: ChosenRows | None = None
) -> dict[Site, SiteFacts]:
    """Of every site that `batches` reads, over the rows of an epoch.

    The scale is SAELens' ``expected_average_only_in`` with the mean norm of all training rows
    in place of an estimate; after it the mean norm is sqrt(D). No row is read for it, unless rows
    are chosen by a predicate, for which no statistics are kept: see `moments_of_rows`. Where few
    are left out by name, these are read, and taken out of the stored statistics.
    """
    facts = {}
    for name in batches.order.sites:
        site = Site.parse(name)
        if batches.order.where is None:
            moments = batches.moments(site)
        elif chosen is not None and chosen.removed is not None:
            moments = _less_removed(batches, site, chosen.store, chosen.removed)
        else:
            (store,) = batches.stores.stores
            moments = moments_of_rows(store, site, batches.selected)
        usable = normalise and moments.mean_norm > 0
        scale = len(moments.mean) ** 0.5 / moments.mean_norm if usable else 1.0
        facts[site] = SiteFacts(scale, float(moments.variance.sum()), moments.mean)
    return facts


def _less_removed(
    batches: Batches, site: Site, store: ActivationStore, removed: np.ndarray[Any, Any]
) -> Moments:
    """Of the rows of an epoch: the stored moments, less those of the rows that are left out."""
    order, units = batches.order, store.readable(batches.order.sites)
    counts = np.isin(removed // store.schema.geometry.unit_rows, list(units))
    if order.exclude is not None:
        ids, positions = (store.tokens[name].take(removed) for name in ("id", "position"))
        counts &= ~is_excluded(positions, ids, special_ids=store.schema.special_ids)
    if order.split is not None:
        counts &= store.lookup.splits(removed) == store.split_code(order.split)
    whole = store.moments(
        site, split=order.split, excluded=None if order.exclude is None else False, units=units
    )
    return less(whole, Moments.of(store[site].take(removed[counts]).astype(np.float64)))


def sites_of(specs: Sequence[SAESpec]) -> list[Site]:
    """All sites that are read, each once, in order."""
    return sorted({site for spec in specs for site in spec.all_sites})


def training_batches(
    store: ActivationStore,
    specs: Sequence[SAESpec],
    config: SAEConfig,
    *,
    rows_per_batch: int | None = None,
    state: Mapping[str, Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
    chosen: ChosenRows | None = None,
) -> Batches:
    """The stream of the training: endless, shuffled, this rank's share of each batch."""
    return store.batches(
        sites_of(specs),
        rows_per_batch or config.batch_rows,
        split=config.split,
        exclude=None if config.excluded else "default",
        where=None if chosen is None else chosen.predicate,
        shuffle=config.shuffle,
        seed=config.seed,
        epochs=None,
        rank=rank,
        world_size=world_size,
        state=state,
    )


def held_out_batches(
    store: ActivationStore,
    specs: Sequence[SAESpec],
    config: SAEConfig,
    *,
    state: Mapping[str, Any] | None = None,
    chosen: ChosenRows | None = None,
) -> Batches:
    """Held-out rows, all of them, in an order of their own."""
    return store.batches(
        sites_of(specs),
        config.batch_rows,
        split=config.evaluation.split,
        exclude=None if config.excluded else "default",
        where=None if chosen is None else chosen.predicate,
        shuffle=config.shuffle,
        seed=config.seed,
        epochs=1,
        last="ragged",
        state=state,
    )


def first_rows(batches: Batches, rows: int, device: torch.device) -> Iterator[TorchBatch]:
    """The first `rows` rows of `batches`, of the last batch only what is needed."""
    with TorchBatches(batches, device=device) as stream:
        left = rows
        for batch in stream:
            if len(batch) > left:
                acts = {site: values[:left] for site, values in batch.acts.items()}
                batch = TorchBatch(batch.rows[:left], acts, batch.epoch, batch.step)
            yield batch
            left -= len(batch)
            if left <= 0:
                return


@dataclass(frozen=True)
class Feeder:
    """Makes what each SAE is fed of a batch; each product is made once for all SAEs.

    ``scales`` of 1 give rows as they are stored.
    """

    scales: Mapping[Site, float]

    def __call__(self, batch: TorchBatch, specs: Sequence[SAESpec]) -> list[Example]:
        """An example for each SAE."""
        scaled: dict[Site, Tensor] = {}
        stacked: dict[tuple[Site, ...], Tensor] = {}

        def of(site: Site) -> Tensor:
            if site not in scaled:
                factor = self.scales.get(site, 1.0)
                scaled[site] = batch[site] if factor == 1.0 else batch[site] * factor
            return scaled[site]

        def read(spec: SAESpec) -> Tensor:
            if len(spec.inputs) == 1:
                return of(spec.inputs[0])
            if spec.inputs not in stacked:
                stacked[spec.inputs] = torch.stack([of(site) for site in spec.inputs], dim=1)
            return stacked[spec.inputs]

        return [(read(spec), None if spec.target is None else of(spec.target)) for spec in specs]


def examples(
    batches: Callable[[], Batches],
    spec: SAESpec,
    *,
    rows: int,
    device: torch.device,
    scales: Mapping[Site, float] | None = None,
) -> Iterator[Example]:
    """What one SAE is fed of the first `rows` rows; unscaled without `scales`."""
    feeder = Feeder(scales or {})
    with _without_announcement():
        opened = batches()
    for batch in first_rows(opened, rows, device):
        yield feeder(batch, [spec])[0]


@contextmanager
def _without_announcement() -> Iterator[None]:
    """Of rows that are read again and again, how they are read was said at the beginning."""
    reading = logging.getLogger("actlake.storage.reading.batches")
    level = reading.level
    reading.setLevel(logging.WARNING)
    try:
        yield
    finally:
        reading.setLevel(level)


def parts_of(example: Example, parts: int) -> list[Example]:
    """An example in equal parts."""
    read, target = example
    targets: Sequence[Tensor | None] = [None] * parts if target is None else target.chunk(parts)
    return list(itertools.zip_longest(read.chunk(parts), targets))


def scaling_of(spec: SAESpec, facts: Mapping[Site, SiteFacts]) -> Scaling:
    """By what an SAE's rows are multiplied before it sees them."""
    factors = tuple(facts[site].scale for site in spec.inputs)
    return Scaling(
        input=factors if len(factors) > 1 else factors[0],
        output=None if spec.target is None else facts[spec.target].scale,
    )
