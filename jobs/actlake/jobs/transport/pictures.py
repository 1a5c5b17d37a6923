"""The pictures that only fits of maps have: heatmaps over (L, k)."""

from collections.abc import Mapping, Sequence

import numpy as np

from actlake.jobs.pictures import matrix


def heatmap(
    layers: Sequence[int],
    distances: Sequence[int],
    values: Mapping[tuple[int, int], float],
    *,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
) -> bytes:
    """A value for each source layer L and distance k; white where there is none."""
    table = np.full((len(distances), len(layers)), np.nan)
    for (layer, k), value in values.items():
        table[list(distances).index(k), list(layers).index(layer)] = value
    return matrix(
        table,
        distances,
        ["in" if layer < 0 else layer for layer in layers],
        title=title, x="source layer L", y="distance k", low=low, high=high,
    )  # fmt: skip
