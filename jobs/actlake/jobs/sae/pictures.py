"""The pictures of trained SAEs: curves, densities, and what sparsity costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actlake.jobs import pictures
from actlake.jobs.sae.evaluation import RowScores

Array = np.ndarray[Any, Any]
_MOST_LINES = 12


def histories(
    lines: Mapping[str, tuple[Array, Array]], *, title: str, y: str, log_y: bool = False
) -> bytes:
    """A metric of every SAE over the rows trained on; of many SAEs, evenly chosen ones."""
    names = list(lines)
    if len(names) > _MOST_LINES:
        places = np.linspace(0, len(names) - 1, _MOST_LINES).round().astype(int)
        names = [names[place] for place in places]
        title = f"{title} ({_MOST_LINES} of {len(lines)} SAEs)"
    return pictures.curves(
        {name: lines[name] for name in names},
        title=title, x="rows trained on", y=y, log_y=log_y,
    )  # fmt: skip


def densities(scores: Mapping[str, RowScores], *, title: str) -> bytes:
    """How often latents fire, as log10 of the share of rows; dead ones are not in it."""
    return pictures.histogram(
        {name: one.log_density for name, one in scores.items()}
        if len(scores) > 1
        else next(iter(scores.values())).log_density,
        title=title, x="log10 density (share of held-out rows)", y="latents", span=(-6, 0), bins=48,
    )  # fmt: skip


def activity(scores: RowScores, *, title: str) -> bytes:
    """How many latents are active in a row."""
    most = max(1, scores.l0_quantile(0.999))
    return pictures.histogram(
        np.arange(len(scores.l0_counts), dtype=np.float64), weights=scores.l0_counts, title=title,
        x="active latents in a row (L0)", y="rows", span=(-0.5, most + 0.5),
        bins=min(60, most + 1), mark=scores.l0,
    )  # fmt: skip


def pareto(
    groups: Mapping[str, Sequence[tuple[str, float, float]]],
    *,
    title: str,
    y: str,
    higher_is_better: bool,
) -> bytes:
    """A measure against L0, a point an SAE; the front is dashed.

    Parameters
    ----------
    groups
        By group the SAEs' ``(label, L0, value)``.
    """
    every = [(l0, value) for found in groups.values() for _, l0, value in found]
    few = len(every) <= 16
    return pictures.points(
        {
            name: (np.array([l0 for _, l0, _ in found]), np.array([v for _, _, v in found]))
            for name, found in groups.items()
        },
        title=title, x="L0", y=y, log_x=_wide([l0 for l0, _ in every]),
        labels={name: [label for label, _, _ in found] for name, found in groups.items()}
        if few
        else None,
        front=front(every, higher_is_better=higher_is_better),
    )  # fmt: skip


def front(
    points: Sequence[tuple[float, float]], *, higher_is_better: bool
) -> tuple[Array, Array] | None:
    """The points than which none is both sparser and better; None for fewer than two."""
    sign = 1 if higher_is_better else -1
    kept: list[tuple[float, float]] = []
    for l0, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not kept or sign * value > sign * kept[-1][1]:
            kept.append((l0, value))
    if len(kept) < 2:
        return None
    return np.array([l0 for l0, _ in kept]), np.array([value for _, value in kept])


def _wide(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return len(positive) == len(values) and bool(values) and max(values) > 8 * min(values)
