"""A unit's rows while they are being computed, on the model's device.

Batches write where their rows belong, in the store's dtype; what is stored as int8, as the model
computes it, and it is turned into codes where it is written. On a GPU nothing goes to the host
until the unit is complete; then one copy a site runs on a stream of its own into pinned
memory, while the model is busy with the next unit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.harvest.batches import Batch
from actlake.storage import Site, SiteSchema
from actlake.storage.dtypes import numpy_dtype

Array = np.ndarray[Any, Any]


def buffer_dtype(schema: SiteSchema, computed: torch.dtype) -> torch.dtype:
    """Of rows in flight: the store's, or what the model computes in where they become codes."""
    if schema.has_scales:
        return computed
    dtype: torch.dtype = getattr(torch, schema.dtype)
    return dtype


class UnitBuffers:
    """One (rows, dim) tensor a site. Not for two threads at once.

    Parameters
    ----------
    computed
        What the model computes in.
    """

    def __init__(
        self,
        sites: Mapping[Site, SiteSchema],
        *,
        num_rows: int,
        computed: torch.dtype,
        device: torch.device,
    ) -> None:
        self._device = device
        self._rows_ND: dict[Site, Tensor] = {
            site: torch.empty(
                (num_rows, schema.dim),
                dtype=buffer_dtype(schema, computed),
                device=device,
            )
            for site, schema in sites.items()
        }
        self._places: tuple[Tensor, Tensor] | None = None
        self._computed: torch.cuda.Event | None = None

    def begin(self, batch: Batch) -> None:
        """Say which batch the next calls of `put` are about."""
        taken, rows = (torch.from_numpy(index) for index in (batch.taken, batch.rows))
        if self._device.type == "cuda":
            taken, rows = (
                t.pin_memory().to(self._device, non_blocking=True) for t in (taken, rows)
            )
        self._places = taken, rows

    def put(self, site: Site, acts_BLD: Tensor) -> None:
        """Keep what belongs to the unit, (B, L, D) in any float dtype, rounded to the store's."""
        assert self._places is not None
        taken, rows = self._places
        flat_TD = acts_BLD.reshape(-1, acts_BLD.shape[-1])
        kept_ND = flat_TD if len(taken) == len(flat_TD) else flat_TD.index_select(0, taken)
        target_ND = self._rows_ND[site]
        target_ND.index_copy_(0, rows, kept_ND.to(target_ND.dtype))

    def complete(self) -> None:
        """Say that the last batch was put; in the thread that computes."""
        if self._device.type == "cuda":
            self._computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._computed.record(torch.cuda.current_stream(self._device))

    def to_host(self) -> dict[Site, Array]:
        """All rows as NumPy arrays, once `complete`; in any thread."""
        if self._computed is None:
            return {site: _as_numpy(rows_ND) for site, rows_ND in self._rows_ND.items()}
        copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        copies.wait_event(self._computed)
        hosts = {
            site: torch.empty(rows_ND.shape, dtype=rows_ND.dtype, pin_memory=True)
            for site, rows_ND in self._rows_ND.items()
        }
        with torch.cuda.stream(copies):
            for site, rows_ND in self._rows_ND.items():
                hosts[site].copy_(rows_ND, non_blocking=True)
                rows_ND.record_stream(copies)
        copies.synchronize()
        return {site: _as_numpy(host_ND) for site, host_ND in hosts.items()}


def _as_numpy(rows_ND: Tensor) -> Array:
    if rows_ND.dtype == torch.bfloat16:  # NumPy's bfloat16 is not torch's
        bits: Array = rows_ND.view(torch.int16).numpy()
        return bits.view(numpy_dtype("bfloat16"))
    values: Array = rows_ND.numpy()
    return values
