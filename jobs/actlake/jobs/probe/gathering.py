"""Rows of a site as solvers want them: gathered once where they fit, else streamed in chunks.

The rows that all sets of examples of a site need are read once, in the store's own type, and
every set is pooled from them. Where they do not fit in the memory that is allowed, a set is read
from the store again for every pass of a solver; numbers are the same.

Shapes:  N examples   D width
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.probe.examples import Examples
from actlake.storage import ActivationStore, Site

Array = np.ndarray[Any, Any]
Take = Callable[[Array], Array]
CHUNK = 8192
"""Rows that are streamed at a time."""
CACHED = 1024
"""Rows in memory that are worked on at a time: 2.4 MB of 576 dimensions, which the second of two
products still finds in the cache. A fifth faster than 16,384."""
ON_GPU = 65_536
"""The same on a GPU, which wants large products."""
_ROWS_AT_ONCE = 16_384


def read_examples(
    store: ActivationStore, site: Site | str, examples: Examples, which: slice | None = None
) -> Array:
    """Activations of examples at a site, pooled: (n, D) float32."""
    return pooled(store[site].take, examples, which or slice(0, len(examples)))


def pooled(take: Take, examples: Examples, which: slice) -> Array:
    """The same from anything that gives rows; at most some 16,384 rows are held at a time."""
    start, stop, _ = which.indices(len(examples))
    bounds = examples.bounds[start : stop + 1]
    if bounds[-1] - bounds[0] == stop - start:
        return np.asarray(take(examples.rows[bounds[0] : bounds[-1]]), np.float32)
    parts = []
    while start < stop:
        last = int(np.searchsorted(bounds, bounds[0] + _ROWS_AT_ONCE, side="right")) - 1
        last = max(last, 1)
        rows = np.asarray(take(examples.rows[bounds[0] : bounds[last]]), np.float32)
        sums = np.add.reduceat(rows, bounds[:last] - bounds[0], axis=0)
        parts.append(sums / np.diff(bounds[: last + 1])[:, None].astype(np.float32))
        start, bounds = start + last, bounds[last:]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Held:
    """Rows of several sets at one site, read once."""

    rows: Array
    """(n,) int64, ascending."""
    acts: Array
    """(n, D) in the store's type."""

    @classmethod
    def of(cls, store: ActivationStore, site: Site, sets: Sequence[Examples]) -> "Held":
        """Read what all sets need."""
        rows = rows_needed(sets)
        return cls(rows, store[site].take(rows))

    def take(self, rows: Array) -> Array:
        """Some of them."""
        found: Array = self.acts[np.searchsorted(self.rows, rows)]
        return found


def rows_needed(sets: Sequence[Examples]) -> Array:
    """Each row that any of the sets is pooled from, once, ascending."""
    return np.unique(np.concatenate([one.rows for one in sets]))


@dataclass
class Gathered:
    """Rows in memory. A `RowSource`."""

    acts: Tensor
    """(N, D) float32."""
    chunk: int | None = None
    """Rows at a time; None: what suits the device."""

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self.acts)

    @property
    def width(self) -> int:
        """Dimensions of a row."""
        return int(self.acts.shape[1])

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time."""
        chunk = self.chunk or (CACHED if self.acts.device.type == "cpu" else ON_GPU)
        for start in range(0, len(self.acts), chunk):
            where = slice(start, min(start + chunk, len(self.acts)))
            yield where, self.acts[where]


@dataclass
class Streamed:
    """Rows read again for every pass, never held. A `RowSource`."""

    take: Take
    examples: Examples
    which: slice
    width: int
    device: torch.device
    chunk: int = CHUNK

    @property
    def num_rows(self) -> int:
        """How many."""
        return int(self.which.stop) - int(self.which.start)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time."""
        for start in range(0, self.num_rows, self.chunk):
            where = slice(start, min(start + self.chunk, self.num_rows))
            place = slice(self.which.start + where.start, self.which.start + where.stop)
            acts = torch.from_numpy(pooled(self.take, self.examples, place))
            yield where, acts.to(self.device)


Source = Gathered | Streamed


@dataclass
class Framed:
    """Rows of another source, centred and scaled as they come. A `RowSource`."""

    source: Source
    mean: Tensor
    """(D,) float32."""
    scale: Tensor
    """(D,) float32."""

    @property
    def num_rows(self) -> int:
        """How many."""
        return self.source.num_rows

    @property
    def width(self) -> int:
        """Dimensions of a row."""
        return self.source.width

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time."""
        for where, acts in self.source.chunks():
            yield where, (acts - self.mean) / self.scale


@dataclass
class Chosen:
    """Some of the rows of another source. A `RowSource`."""

    source: "Gathered | Framed"
    mask: Tensor
    """(N,) bool."""

    @property
    def num_rows(self) -> int:
        """How many."""
        return int(self.mask.sum())

    @property
    def width(self) -> int:
        """Dimensions of a row."""
        return self.source.width

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The chosen rows, some at a time."""
        start = 0
        for where, acts in self.source.chunks():
            chosen = acts[self.mask[where]]
            if len(chosen):
                yield slice(start, start + len(chosen)), chosen
                start += len(chosen)
