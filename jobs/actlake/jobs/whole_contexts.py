"""Whole contexts of a split: what the model is run on when something is tested in it.

Shapes:  L tokens in a context
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.chosen_rows import ChosenRows
from actlake.storage import ActivationStore, Extent

Exclude = Literal["default", "special", "nothing"]
"""Positions that are left as they are and not counted: ``default``, position 0 of each context
and special token ids, as in training; ``special``, special ids only, which is what SAELens calls
``exclude_special_tokens``; or ``nothing``."""


@dataclass(frozen=True, slots=True)
class WholeContext:
    """What the model saw at once, and which of its positions count."""

    ids: Tensor
    """(L,) int64."""
    allowed: Tensor
    """(L,) bool: chosen, and not excluded."""
    documents: Tensor
    """(L,) int64, the document of each token; several where documents were packed."""


def contexts_of_split(
    store: ActivationStore,
    split: str,
    number: int,
    *,
    exclude: Exclude = "default",
    chosen: ChosenRows | None = None,
) -> list[WholeContext]:
    """Whole contexts, spread evenly over a split, at most `number`.

    Of `chosen` rows only those with one of them are taken, and no other row of them counts.

    Raises
    ------
    UnknownSplit
        The store has no such split.
    """
    found = store.lookup.contexts_of_split(split)
    if chosen is not None:
        below_start, below_stop = map(chosen.rows.rank, found.T)
        found = found[below_stop > below_start]
    if not len(found):
        return []
    spread = found[np.unique(np.linspace(0, len(found) - 1, number).astype(int))]
    contexts = []
    for start, stop in spread.tolist():
        if stop - start > 1:
            contexts.append(_read(store, Extent(start, stop), exclude, chosen))
    return contexts


def _read(
    store: ActivationStore, rows: Extent, exclude: Exclude, chosen: ChosenRows | None
) -> WholeContext:
    ids = store.tokens["id"][rows.slice()]
    if exclude == "default":
        excluded = store.excluded(rows)
    else:
        excluded = np.isin(ids, store.schema.special_ids if exclude == "special" else ())
    if chosen is not None:
        excluded |= ~chosen.mask(rows)
    return WholeContext(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(~excluded),
        torch.from_numpy(store.tokens["document"][rows.slice()].astype(np.int64)),
    )
