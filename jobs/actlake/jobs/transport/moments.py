"""First and second moments of the rows of a pair, and what a linear map makes of them.

    sums = PairSums(...)                  # about a fixed origin: add and subtract freely
    moments = sums.centred()              # about the rows' own means
    error = moments.error(T, b)           # mean outer product of y - T x - b

Everything here is float64.

Shapes:  X width of the source   Y width of the target
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from actlake.jobs.transport.errors import NotEnoughRows

Array = np.ndarray[Any, Any]

RELATIVE_NOISE = {"float32": 2e-7, "float64": 1e-12}
"""Below this share of the largest, an eigenvalue of a correlation matrix is rounding error of
the products that were summed."""


@dataclass(frozen=True)
class PairSums:
    """Sums over rows about a fixed origin, so that moments of parts of the rows add up.

    With the origin near the mean nothing is lost to cancellation when the mean is taken out.
    """

    count: int
    origin_x: Array
    origin_y: Array
    x: Array
    """(X,) sum of x - origin."""
    y: Array
    xx: Array
    """(X, X) sum of products of x - origin."""
    yx: Array
    """(Y, X)."""
    yy: Array

    @classmethod
    def of_rows(cls, x: Array, y: Array, origin_x: Array, origin_y: Array) -> "PairSums":
        """Of rows themselves, (n, X) and (n, Y), about an origin."""
        dx, dy = x.astype(np.float64) - origin_x, y.astype(np.float64) - origin_y
        return cls(
            len(x), origin_x, origin_y, dx.sum(axis=0), dy.sum(axis=0), dx.T @ dx, dy.T @ dx,
            dy.T @ dy,
        )  # fmt: skip

    def __add__(self, other: "PairSums") -> "PairSums":
        return self._combined(other, 1)

    def __sub__(self, other: "PairSums") -> "PairSums":
        """Of the rows of self that are not among those of other."""
        return self._combined(other, -1)

    def _combined(self, other: "PairSums", sign: int) -> "PairSums":
        assert np.array_equal(self.origin_x, other.origin_x)
        assert np.array_equal(self.origin_y, other.origin_y)
        return PairSums(
            self.count + sign * other.count,
            self.origin_x,
            self.origin_y,
            self.x + sign * other.x,
            self.y + sign * other.y,
            self.xx + sign * other.xx,
            self.yx + sign * other.yx,
            self.yy + sign * other.yy,
        )

    def centred(self, noise: float = RELATIVE_NOISE["float32"]) -> "PairMoments":
        """About the rows' own means.

        Raises
        ------
        NotEnoughRows
            There are fewer than two.
        """
        n = self.count
        if n < 2:
            raise NotEnoughRows(
                f"Moments need at least 2 rows, and there are {n}\n"
                "hint: use more text, or fewer groups"
            )
        x, y = self.x / n, self.y / n
        return PairMoments(
            count=n,
            mean_x=self.origin_x + x,
            mean_y=self.origin_y + y,
            xx=self.xx / n - np.outer(x, x),
            yx=self.yx / n - np.outer(y, x),
            yy=self.yy / n - np.outer(y, y),
            noise=noise,
        )


@dataclass(frozen=True)
class PairMoments:
    """Means and covariances (divided by the count) of the rows of a pair."""

    count: int
    mean_x: Array
    mean_y: Array
    xx: Array
    """(X, X) covariance of the source."""
    yx: Array
    """(Y, X) covariance of target and source."""
    yy: Array
    noise: float = RELATIVE_NOISE["float32"]
    """Relative size of rounding errors in the covariances, for the rank."""
    known_x: "Whitening | None" = None
    """The source's whitening, where another pair has computed it."""
    known_y: "Whitening | None" = None

    @cached_property
    def whiten_x(self) -> "Whitening":
        """Of the source."""
        return self.known_x or Whitening.of(self.xx, self.noise)

    @cached_property
    def whiten_y(self) -> "Whitening":
        """Of the target."""
        return self.known_y or Whitening.of(self.yy, self.noise)

    @property
    def variance_y(self) -> Array:
        """(Y,) variance of each dimension of the target."""
        variance: Array = np.diagonal(self.yy)
        return variance

    def about(self, mean_x: Array, mean_y: Array) -> tuple[Array, Array, Array]:
        """Second moments (xx, yx, yy) about other points than the means."""
        dx, dy = self.mean_x - mean_x, self.mean_y - mean_y
        return (
            self.xx + np.outer(dx, dx),
            self.yx + np.outer(dy, dx),
            self.yy + np.outer(dy, dy),
        )

    def error(self, weight: Array, bias: Array) -> Array:
        """E, (Y, Y): the mean of (y - T x - b)(y - T x - b)ᵀ over these rows."""
        shift = self.mean_y - weight @ self.mean_x - bias
        through = weight @ self.yx.T
        error: Array = self.yy - through - through.T + weight @ self.xx @ weight.T
        return error + np.outer(shift, shift)

    def squared_error(self, weight: Array, bias: Array) -> Array:
        """(Y,) the diagonal of `error`, at a quarter of its cost."""
        shift = self.mean_y - weight @ self.mean_x - bias
        product = weight @ self.xx - 2 * self.yx
        squared: Array = self.variance_y + np.einsum("yx,yx->y", product, weight) + shift**2
        return squared


@dataclass(frozen=True)
class Whitening:
    """A linear map that makes a covariance the identity, and the map back.

    Taken from the *correlation* matrix: dimensions of a residual stream differ in variance by
    many orders of magnitude, and rounding errors are relative to each dimension's own scale.
    """

    whiten: Array
    """(R, D): ``whiten @ covariance @ whiten.T`` is the identity."""
    colour: Array
    """(D, R): the pseudo-inverse of `whiten`."""
    condition: float
    """Largest over smallest eigenvalue of the correlation matrix, of those that are kept."""

    @property
    def rank(self) -> int:
        """R, the number of directions with variance above rounding error."""
        return len(self.whiten)

    @classmethod
    def of(cls, covariance: Array, noise: float) -> "Whitening":
        """Of a covariance, which may be singular; the rank says how far."""
        scale = np.sqrt(np.clip(np.diagonal(covariance), 0, None))
        alive = scale > 0
        safe = np.where(alive, scale, 1.0)
        values, vectors = np.linalg.eigh(covariance / np.outer(safe, safe))
        kept = values > max(noise, 1e-15) * values[-1] if values[-1] > 0 else values > 0
        values, vectors = values[kept], vectors[:, kept]
        whiten = (vectors / np.sqrt(values)).T / safe * alive
        colour = vectors * np.sqrt(values) * scale[:, None]
        condition = float(values[-1] / values[0]) if len(values) else float("nan")
        return cls(whiten, colour, condition)

    @cached_property
    def precision(self) -> Array:
        """(D, D) the pseudo-inverse of the covariance."""
        precision: Array = self.whiten.T @ self.whiten
        return precision
