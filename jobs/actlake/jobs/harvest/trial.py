"""What a few contexts have shown of a model before the first unit of a store.

A row is what the model computes on its context, whole and alone. That it stays so among other
contexts, padded on the right and cut off at a unit's end, follows where attention looks back
only; but attention may look both ways, rotary frequencies may depend on the longest context of
a batch, and experts may take so many tokens and no more. So it is not assumed but measured
(`actlake.jobs.harvest.trying`). What is found is part of the store's numerics, and no later
harvest decides it again.

From the same contexts it is seen whether the store's dtype holds what the model computes, and
whether the model predicts such texts as one that was trained on them does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actlake.jobs.harvest.batches import Batching
from actlake.jobs.harvest.config import StorageConfig
from actlake.jobs.harvest.readings import Losses
from actlake.platform.models import ResolvedModel
from actlake.storage import ActlakeError, Site
from actlake.storage.dtypes import LARGEST_FINITE, ActivationDtype
from actlake.storage.errors import NonFiniteActivations

BOUNDS: Mapping[str, float] = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.3}
"""By the dtype of the computation, the largest ‖row - row alone‖ / ‖row alone‖ that is rounding.

In every site of two models of 30 and 18 layers it was at most 8e-6, 0.013 and 0.12, as much as
between two implementations of attention. Of a row that depends on others it is about 1."""

_WORDS: Mapping[Batching, str] = {
    "padded": "together, padded, and cut at the end of a unit",
    "equal_length": "together with those of equal length, and whole",
    "alone": "each alone, and whole",
}


def batching_words(batching: Batching) -> str:
    """How contexts are run, for a person."""
    return _WORDS[batching]


class RowsNotIndependent(ActlakeError, ValueError):
    """A model's rows depend on more than their context, however the contexts are run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What was found."""

    batching: Batching
    """How the contexts of the store are run."""
    errors: Mapping[Batching, tuple[Site, float]]
    """Of each batching that was tried the worst row, as ``‖row - row alone‖ / ‖row alone‖``."""
    largest: tuple[Site, float]
    """The largest absolute value, and where."""
    dtype: ActivationDtype
    """What it is to be stored as."""
    losses: Losses | None
    """The model's own loss; None where it was not measured."""
    why_no_loss: str
    numerics: Mapping[str, Any]
    """What the bits depend on where it was tried."""

    def lines(self) -> dict[str, str]:
        """For a person, by their subject."""
        site, value = self.largest
        holds = f"{self.dtype} holds {_value(LARGEST_FINITE[self.dtype])}"
        loss = f"not measured: {self.why_no_loss}" if self.losses is None else str(self.losses)
        lines = {
            "contexts": self._how_contexts_are_run(),
            "values": f"up to {_value(value)}, at {site}; {holds}",
            "loss": loss,
        }
        warnings = " ".join(self.warnings()).replace("\n", " ")
        return lines | ({"warning": warnings} if warnings else {})

    def warnings(self) -> list[str]:
        """What is not as it should be, with what to do."""
        found = [] if self.losses is None else self.losses.warnings()
        site, value = self.largest
        if not value <= LARGEST_FINITE[self.dtype] / 2:
            found.append(
                f"Values reach {_value(value)} at {site}, near or beyond the "
                f"{_value(LARGEST_FINITE[self.dtype])} that {self.dtype} holds\n"
                "hint: storage.dtype: bfloat16 has float32's range"
            )
        return found

    def as_metrics(self) -> dict[str, float]:
        """By name, for a tracker."""
        losses = {} if self.losses is None else self.losses.as_metrics()
        return losses | {
            "trial/largest_value": self.largest[1],
            "trial/row_error": self.errors[self.batching][1],
        }

    def _how_contexts_are_run(self) -> str:
        _, error = self.errors[self.batching]
        refused = [
            f"{_WORDS[how]}, rows of {site} would be off by {off:.2g} of their size"
            for how, (site, off) in self.errors.items()
            if how != self.batching
        ]
        why = f"; {refused[0]}" if refused else ""
        return f"run {_WORDS[self.batching]} (rows are what they are alone, to {error:.1g}{why})"


def check_range(largest: tuple[Site, float], storage: StorageConfig, model: ResolvedModel) -> None:
    """Refuse a dtype that does not hold the values, before the text is laid out.

    Raises
    ------
    NonFiniteActivations
        The largest is larger than the dtype's, or none, and infinities are refused.
    """
    site, value = largest
    if storage.nonfinite == "count" or value <= LARGEST_FINITE[storage.dtype]:
        return
    if not math.isfinite(value):
        raise NonFiniteActivations(
            f"{model.name} computes infinities or NaNs at {site} in {model.dtype_name}, on the "
            "first contexts of the corpus already\n"
            "hint: model.dtype: float32 (or bfloat16) has the range; where that does not help, "
            "look at the weights. storage.nonfinite: count stores them as they are"
        )
    raise NonFiniteActivations(
        f"Values of {model.name} reach {_value(value)} at {site}, on the first contexts of the "
        f"corpus already, and {storage.dtype} holds {_value(LARGEST_FINITE[storage.dtype])}\n"
        "hint: --storage.dtype bfloat16 (float32's range, three digits, two bytes) or "
        "float32; a store that is there keeps its dtype, so at another path"
    )


def not_independent(
    model: ResolvedModel,
    errors: Mapping[Batching, tuple[Site, float]],
    fixed: Batching | None,
) -> RowsNotIndependent:
    """The refusal of a model for which nothing that was tried holds."""
    tried = "\n".join(
        f"  contexts {_WORDS[how]}: {site} is off by {error:.2g} of its size"
        for how, (site, error) in errors.items()
    )
    what = (
        "does not give the same rows for the same context twice"
        if fixed is None
        else "gives other rows than for the context alone as this store's contexts are run"
    )
    hint = (
        "it draws random numbers or keeps something from one context to the next; a setting of "
        "its configuration may turn that off"
        if fixed is None
        else "give another path for these sites or numerics; there they are run as they need"
    )
    return RowsNotIndependent(
        f"{model.name} (family {model.family}) {what}\n{tried}\n"
        f"In {model.dtype_name} up to {BOUNDS[model.dtype_name]:g} is rounding\nhint: {hint}"
    )


def _value(value: float) -> str:
    return f"{value:,.0f}" if 10 <= value < 1e9 else f"{value:.3g}"
