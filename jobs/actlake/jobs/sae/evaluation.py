"""How well rows are reconstructed, and from how many latents: streamed over held-out rows.

    scores = evaluate_rows(sae, (batch.acts for batch in batches))
    scores.fvu, scores.l0, scores.dead_share     # dead in the rows that were given

All sums are over all rows given, in float64, so that the numbers do not depend on how the rows
are cut into batches:

    FVU                  Σ‖x - x̂‖² / Σ‖x - x̄‖², x̄ the mean of the rows given
    explained variance   1 - FVU, which is what SAELens calls ``explained_variance``
    MSE                  mean of ‖x - x̂‖², summed over dimensions (SAELens' ``mse``)
    L0                   mean number of latents that are not 0
    density              of each latent, the share of rows in which it is not 0
    dead share           share of latents that are 0 in all rows given: many rows, few dead
    cosine               mean of cos(x, x̂)
    relative norm        mean of ‖x̂‖ / ‖x‖ (SAELens' ``l2_ratio``)

A transcoder is held against the rows it predicts, a crosscoder against each of its sites.

Shapes:  N rows   S sites   D width   F latents
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.sae.dead_latents import dead_name
from actlake.jobs.sae.errors import InvalidSAE, NotEnoughRows

Array = np.ndarray[Any, Any]

# 64 MiB of float32 latents; larger blocks were not faster.
_LATENTS_AT_ONCE = 2**24
_DEAD_DECADE = -9.0


class Coder(Protocol):
    """What is evaluated; `TrainedSAE` is one."""

    @property
    def d_sae(self) -> int:
        """Latents."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """(N, D) or (N, S, D) to (N, F)."""
        ...

    def reconstruct(self, x: Tensor, f: Tensor) -> Tensor:
        """The reconstruction from latents, and from the rows where there is a skip connection."""
        ...


@dataclass(frozen=True, kw_only=True)
class SiteScores:
    """How well the rows of one site are reconstructed."""

    fvu: float
    mse: float
    cosine: float
    relative_norm: float
    relative_bias: float
    """``mean ‖x̂‖² / mean x·x̂``: below 1 where reconstructions are too short (arXiv:2404.16014,
    eq. 10)."""
    mean_norm: float
    """Mean of ‖x‖."""

    @property
    def explained_variance(self) -> float:
        """``1 - fvu``."""
        return 1 - self.fvu


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """How an SAE does on some rows."""

    num_rows: int
    sites: tuple[SiteScores, ...]
    """One, or one for each site of a crosscoder, in its order."""
    l0: float
    l0_counts: Array
    """(most + 1,) int64: how many rows have 0, 1, 2, … active latents."""
    density: Array
    """(F,) float64."""
    mean_active: Array
    """(F,) float64, mean of a latent's values that are not 0; NaN for a dead one."""
    max_active: Array
    """(F,) float32, its largest magnitude."""

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; of a crosscoder the mean over its sites."""
        return float(np.mean([site.fvu for site in self.sites]))

    @property
    def explained_variance(self) -> float:
        """``1 - fvu``."""
        return 1 - self.fvu

    @property
    def mse(self) -> float:
        """Mean squared error, summed over dimensions; the mean over sites."""
        return float(np.mean([site.mse for site in self.sites]))

    @property
    def cosine(self) -> float:
        """Mean cosine of rows and reconstructions; the mean over sites."""
        return float(np.mean([site.cosine for site in self.sites]))

    @property
    def relative_norm(self) -> float:
        """Mean of ‖x̂‖ / ‖x‖; the mean over sites."""
        return float(np.mean([site.relative_norm for site in self.sites]))

    @property
    def dead_share(self) -> float:
        """Share of latents that were never active in these rows."""
        return float((self.density == 0).mean())

    @property
    def log_density(self) -> Array:
        """(alive,) log10 of the density, of the latents that were active."""
        alive: Array = np.log10(self.density[self.density > 0])
        return alive

    def density_histogram(self, *, bins: int = 45) -> tuple[Array, Array]:
        """``(counts, edges)`` of log10 density; what is dead counts in the lowest bin."""
        logs = np.full(len(self.density), _DEAD_DECADE)
        alive = self.density > 0
        logs[alive] = np.log10(self.density[alive])
        return np.histogram(np.clip(logs, _DEAD_DECADE, 0), bins=bins, range=(_DEAD_DECADE, 0))

    def l0_quantile(self, share: float) -> int:
        """The number of active latents that `share` of the rows do not exceed."""
        reached = np.cumsum(self.l0_counts) >= share * self.num_rows
        return int(np.argmax(reached))

    def as_metrics(self) -> dict[str, float]:
        """The numbers, by name."""
        found = {
            "fvu": self.fvu,
            "explained_variance": self.explained_variance,
            "mse": self.mse,
            "l0": self.l0,
            dead_name(self.num_rows): self.dead_share,
            "cosine": self.cosine,
            "relative_norm": self.relative_norm,
        }
        if len(self.sites) > 1:
            found |= {f"fvu/{number}": site.fvu for number, site in enumerate(self.sites)}
        return found


def evaluate_rows(
    sae: Coder, batches: Iterable[Tensor | tuple[Tensor, Tensor]], *, rows: int | None = None
) -> RowScores:
    """Encode and decode rows and compare.

    Memory: one batch, and a block of latents of at most 64 MiB.

    Parameters
    ----------
    batches
        Rows as they are stored, (N, D), or (N, S, D) for a crosscoder; for a transcoder the pair
        of what it reads and what it predicts. On the device of `sae`, of any float type.
    rows
        Rows after which to stop; by default all that are given.

    Raises
    ------
    NotEnoughRows
        There are none.
    InvalidSAE
        A reconstruction is of another shape than the rows it is held against.
    """
    at_once = max(1, _LATENTS_AT_ONCE // sae.d_sae)
    sums = _Sums(np.zeros(sae.d_sae), np.zeros(sae.d_sae), np.zeros(sae.d_sae, np.float32))
    left = rows
    with torch.inference_mode():
        for batch in batches:
            x, y = batch if isinstance(batch, tuple) else (batch, batch)
            if left is not None:
                x, y = x[:left], y[:left]
                left -= len(x)
            for start in range(0, len(x), at_once):
                part = slice(start, start + at_once)
                f = sae.encode(x[part].float())
                reconstruction = sae.reconstruct(x[part].float(), f)
                if reconstruction.shape != y[part].shape:
                    raise InvalidSAE(
                        f"Rows of shape {tuple(reconstruction.shape[1:])} were made, to be held "
                        f"against rows of shape {tuple(y.shape[1:])}\n"
                        "hint: give the rows of the site that this SAE reconstructs"
                    )
                sums.add_latents(f)
                sums.add_rows(y[part], reconstruction)
            if left == 0:
                break
    if sums.num_rows == 0:
        raise NotEnoughRows(
            "There are no rows to evaluate on\nhint: name a split that holds documents"
        )
    return sums.scores()


@dataclass
class _Sums:
    """What is added up; everything but `l0_counts` and the widths has a fixed size."""

    fired: Array
    active: Array
    largest: Array
    l0_counts: Array = field(default_factory=lambda: np.zeros(1, np.int64))
    num_rows: int = 0
    origin: Tensor | None = None
    """(S, D) float64: rows are shifted by it, so that a large mean cancels nothing."""
    moved: Any = 0.0
    """(S, D) sum of shifted rows."""
    per_site: Any = 0.0
    """(6, S) sums of: shifted ‖x‖², ‖x - x̂‖², cos, ‖x̂‖/‖x‖, ‖x̂‖², x·x̂."""
    norms: Any = 0.0

    def add_latents(self, f: Tensor) -> None:
        on = f != 0
        self.fired += on.sum(0).cpu().numpy()
        self.active += f.sum(0, dtype=torch.float64).cpu().numpy()
        self.largest = np.maximum(self.largest, f.abs().amax(0).float().cpu().numpy())
        found = torch.bincount(on.sum(1)).cpu().numpy()
        grown = np.zeros(max(len(found), len(self.l0_counts)), np.int64)
        grown[: len(self.l0_counts)] += self.l0_counts
        grown[: len(found)] += found
        self.l0_counts = grown

    def add_rows(self, y: Tensor, reconstruction: Tensor) -> None:
        x_NSD = y.double() if y.ndim == 3 else y.double().unsqueeze(1)
        made_NSD = reconstruction.double().reshape(x_NSD.shape)
        if self.origin is None:
            self.origin = x_NSD.mean(0)
        shifted = x_NSD - self.origin
        norm, made_norm = x_NSD.norm(dim=-1), made_NSD.norm(dim=-1)
        product = (x_NSD * made_NSD).sum(-1)
        tiny = torch.finfo(torch.float64).tiny
        self.moved = self.moved + shifted.sum(0)
        self.norms = self.norms + norm.sum(0)
        self.per_site = self.per_site + torch.stack(
            [
                shifted.square().sum((0, 2)),
                (x_NSD - made_NSD).square().sum((0, 2)),
                (product / (norm * made_norm).clamp_min(tiny)).sum(0),
                (made_norm / norm.clamp_min(tiny)).sum(0),
                made_norm.square().sum(0),
                product.sum(0),
            ]
        )
        self.num_rows += len(x_NSD)

    def scores(self) -> RowScores:
        n = self.num_rows
        squared, error, cosine, ratio, made, product = self.per_site.cpu().numpy()
        moved = self.moved.cpu().numpy()
        spread = squared - (moved**2).sum(-1) / n
        with np.errstate(divide="ignore", invalid="ignore"):
            fvu, bias = error / spread, made / product
            mean_active = self.active / self.fired
        norms = self.norms.cpu().numpy() / n
        return RowScores(
            num_rows=n,
            sites=tuple(
                SiteScores(
                    fvu=float(fvu[s]),
                    mse=float(error[s] / n),
                    cosine=float(cosine[s] / n),
                    relative_norm=float(ratio[s] / n),
                    relative_bias=float(bias[s]),
                    mean_norm=float(norms[s]),
                )
                for s in range(len(fvu))
            ),
            l0=float(self.fired.sum() / n),
            l0_counts=self.l0_counts,
            density=self.fired / n,
            mean_active=mean_active,
            max_active=self.largest,
        )
