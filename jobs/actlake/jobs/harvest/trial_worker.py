"""One stage's part of a trial: a small unit, run in one batching and with every context alone.

A plain class like `HarvestWorker`, and driven like it; but it opens no store and writes nothing.
The unit it is asked for stands for a batching, its place in `BATCHINGS`; or, `LOSS`, for some texts
in several forms, of which the last stage gives the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.harvest.batches import BATCHINGS, Batch, Batching, run_to, unit_batches
from actlake.jobs.harvest.buffers import UnitBuffers
from actlake.jobs.harvest.predicting import NotPredicted, Predictor
from actlake.jobs.harvest.readings import Reading
from actlake.jobs.harvest.worker import numerics_here
from actlake.platform.cluster import Send
from actlake.platform.models import ModelStage, ResolvedModel, load_stage
from actlake.storage import Extent, Site, SiteSchema
from actlake.storage.dtypes import ActivationDtype

Array = np.ndarray[Any, Any]
_NewBuffers: TypeAlias = Callable[[], UnitBuffers]

LOSS = len(BATCHINGS)

LONGEST = 256
"""Tokens of a context of the trial, but for the last one's, which is as long as any of the store:
the cost shall not grow with the context length."""


@dataclass(frozen=True, slots=True, eq=False)
class TrialUnit:
    """A few contexts as a unit has them: long and short ones, and one that goes on beyond it."""

    starts: Array
    """(contexts + 1,) int64 first rows, and the end of the last context."""
    ids: Array
    """(rows,) int32 token ids, up to the end of the last context."""
    unit: Extent
    batch_tokens: int
    """The batch budget."""

    @classmethod
    def of(cls, sample: Sequence[Array], *, context_length: int, batch_tokens: int) -> "TrialUnit":
        """Cut four contexts out of those of a corpus, repeated where they are too short.

        Parameters
        ----------
        sample
            Token ids of contexts, at least one.
        context_length
            The longest context of the store. Some models are others from a certain length on.
        batch_tokens
            The batch budget; at least two of the contexts fit into it.
        """
        long = min(LONGEST, context_length, max(2, batch_tokens // 3))
        lengths = [long, max(1, long // 3), long, context_length]
        starts = np.cumsum([0, *lengths], dtype=np.int64)
        contexts = [
            np.resize(sample[place % len(sample)], length) for place, length in enumerate(lengths)
        ]
        cut = max(1, 2 * long // 3)
        unit = Extent(0, int(starts[-2]) + cut)
        return cls(starts, np.concatenate(contexts), unit, batch_tokens)

    def batches(self, batching: Batching) -> list[Batch]:
        """What goes through the model together."""
        ids = self.ids[: run_to(self.starts, self.unit, batching)]
        return list(
            unit_batches(
                self.starts, ids, self.unit, batch_tokens=self.batch_tokens, batching=batching
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReceipt:
    """What one stage saw."""

    errors: dict[Site, float]
    """Of each site the largest ‖row - row alone‖ / ‖row alone‖."""
    largest: dict[Site, float]
    """Of each site the largest absolute value of the contexts alone."""
    numerics: dict[str, Any]
    """What the bits depend on, read where they were made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReceipt:
    """What the texts cost in each form; of the last stage."""

    losses: tuple[float, ...]
    """Nats, over all tokens that are predicted; empty where they could not be had."""
    why_not: str = ""


class _Comparison:
    """One batching on its way through a stage: first every context alone, then together."""

    def __init__(self, trial: TrialUnit, batching: Batching, new: _NewBuffers) -> None:
        self._alone, self._together = new(), new()
        self._passes = [(batch, self._alone) for batch in trial.batches("alone")]
        self._passes += [(batch, self._together) for batch in trial.batches(batching)]
        self.inputs = [torch.from_numpy(batch.ids) for batch, _ in self._passes]

    def compute(self, stage: ModelStage, number: int, inputs: Tensor) -> Tensor | None:
        batch, buffers = self._passes[number]
        buffers.begin(batch)
        leaving_BLD = stage.run(inputs, buffers.put)
        buffers.complete()
        return leaving_BLD

    def receipt(self, sites: tuple[Site, ...], numerics: dict[str, Any]) -> TrialReceipt:
        alone, together = self._alone.to_host(), self._together.to_host()
        return TrialReceipt(
            errors={site: row_error(together[site], alone[site]) for site in sites},
            largest={site: largest_value(alone[site]) for site in sites},
            numerics=numerics,
        )


class _Prediction:
    """Texts in several forms on their way through a stage, a context at a time."""

    def __init__(self, readings: tuple[Reading, ...]) -> None:
        self._places = [
            (form, ids, num)
            for form, reading in enumerate(readings)
            for ids, num in zip(reading.contexts, reading.num_before, strict=True)
        ]
        self._losses = [0.0] * len(readings)
        self._predictor: Predictor | None = None
        self._why_not = ""
        self.inputs = [torch.from_numpy(ids)[None] for _, ids, _ in self._places]

    def compute(
        self, stage: ModelStage, number: int, inputs: Tensor, *, is_last: bool
    ) -> Tensor | None:
        seen: list[Tensor] = []
        last = Site(stage.layers.stop - 1)

        def keep(site: Site, acts_BLD: Tensor) -> None:
            if site == last:
                seen.append(acts_BLD.clone())

        leaving_BLD = stage.run(inputs, keep)
        if is_last and not self._why_not:
            hidden_BLD = seen[0] if leaving_BLD is None else leaving_BLD
            self._predict(stage, number, hidden_BLD)
        return leaving_BLD

    def _predict(self, stage: ModelStage, number: int, hidden_BLD: Tensor) -> None:
        form, _, num_before = self._places[number]
        try:
            if self._predictor is None:
                longest = max(len(ids) for _, ids, _ in self._places)
                self._predictor = Predictor.load(stage.model, stage.layers.stop, tokens=longest)
            self._losses[form] += self._predictor.loss(
                hidden_BLD, self.inputs[number], num_before=num_before
            )
        except NotPredicted as error:
            self._why_not = str(error)

    def receipt(self) -> LossReceipt:
        return LossReceipt(
            losses=() if self._why_not else tuple(self._losses), why_not=self._why_not
        )


class TrialWorker:
    """One stage of a trial; see `actlake.platform.cluster.StageWorker`."""

    def __init__(
        self,
        *,
        model: ResolvedModel,
        layers: range,
        sites: tuple[Site, ...],
        trial: TrialUnit,
        threads: int,
        readings: tuple[Reading, ...] = (),
    ) -> None:
        self._model = model
        self._trial = trial
        self._readings = readings
        self._threads = threads
        top = (Site(model.num_layers - 1),) if readings else ()  # so that the last stage sends, too
        self._stage = load_stage(model, layers, {*sites, *top}, threads=threads)
        self._sites = tuple(site for site in self._stage.sites if site in sites)
        self._open: dict[int, _Comparison | _Prediction] = {}

    def run(self, unit: int, send: Send | None) -> TrialReceipt | LossReceipt:
        """First stage: all passes through the layers, then on to the next stage."""
        self._open[unit] = self._begin(unit)
        for number, ids_BL in enumerate(self._open[unit].inputs):
            leaving_BLD = self._compute(unit, number, ids_BL, is_last=send is None)
            if send is not None:
                send((number, leaving_BLD))
        return self.finish(unit)

    def receive(self, unit: int, message: tuple[int, Tensor], send: Send | None) -> None:
        """Later stages: one pass's hidden state, (B, L, D)."""
        number, hidden_BLD = message
        if unit not in self._open:
            self._open[unit] = self._begin(unit)
        leaving_BLD = self._compute(unit, number, hidden_BLD, is_last=send is None)
        if send is not None:
            send((number, leaving_BLD))

    def finish(self, unit: int) -> TrialReceipt | LossReceipt:
        """What was seen of a batching, or of the loss."""
        work = self._open.pop(unit)
        if isinstance(work, _Prediction):
            return work.receipt()
        numerics = numerics_here(
            self._model,
            threads=self._threads,
            batch_tokens=self._trial.batch_tokens,
            batching=BATCHINGS[unit],
        )
        return work.receipt(self._sites, numerics)

    def _begin(self, unit: int) -> _Comparison | _Prediction:
        if unit == LOSS:
            return _Prediction(self._readings)
        return _Comparison(self._trial, BATCHINGS[unit], self._new_buffers)

    def _compute(self, unit: int, number: int, inputs: Tensor, *, is_last: bool) -> Tensor | None:
        work = self._open[unit]
        if isinstance(work, _Prediction):
            return work.compute(self._stage, number, inputs, is_last=is_last)
        return work.compute(self._stage, number, inputs)

    def _new_buffers(self) -> UnitBuffers:
        dtype = cast(ActivationDtype, self._model.dtype_name)
        rows = SiteSchema(dim=self._model.dim, dtype=dtype)
        return UnitBuffers(
            dict.fromkeys(self._stage.sites, rows),
            num_rows=len(self._trial.unit),
            computed=self._model.dtype.value,
            device=self._stage.device,
        )


def row_error(rows_ND: Array, alone_ND: Array) -> float:
    """The largest ‖row - row alone‖ / ‖row alone‖; infinite where only one of them is finite."""
    rows_ND, alone_ND = rows_ND.astype(np.float64), alone_ND.astype(np.float64)
    same = (rows_ND == alone_ND) | (np.isnan(rows_ND) & np.isnan(alone_ND))
    differences_ND = np.subtract(rows_ND, alone_ND, out=np.zeros_like(alone_ND), where=~same)
    if not np.isfinite(differences_ND).all():
        return float("inf")
    changed = differences_ND.any(axis=1)
    if not changed.any():
        return 0.0
    off = np.linalg.norm(differences_ND[changed], axis=1)
    size = np.linalg.norm(alone_ND[changed], axis=1)
    with np.errstate(divide="ignore"):
        return float((off / size).max())


def largest_value(rows_ND: Array) -> float:
    """The largest absolute value; infinite or NaN where there is one."""
    return float(np.abs(rows_ND.astype(np.float64)).max())
