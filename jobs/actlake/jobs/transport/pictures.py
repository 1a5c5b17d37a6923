"""The pictures of a fit, as PNG: heatmaps over (L, k), rank curves, efficiency, features.

A pure function from numbers to bytes each; matplotlib is imported when the first is drawn.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actlake.storage.errors import missing_extra

Array = np.ndarray[Any, Any]

_COLOURS = ("#2f5d8a", "#c8553d", "#5b8c5a", "#8a5a83", "#b08d2e", "#4a4a4a")


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
    figure, axes = _figure(1.6 + 0.32 * len(layers), 1.3 + 0.28 * len(distances))
    image = axes.imshow(table, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="viridis")
    axes.set_xticks(range(len(layers)), ["in" if layer < 0 else layer for layer in layers])
    axes.set_yticks(range(len(distances)), distances)
    axes.set(xlabel="source layer L", ylabel="distance k", title=title)
    if table.size <= 120:
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                colour = "white" if value < (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, c=colour)
    figure.colorbar(image, ax=axes)
    return _png(figure)


def curves(
    lines: Mapping[str, tuple[Array, Array]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    low: float | None = None,
    high: float | None = None,
    dashed: Sequence[str] = (),
) -> bytes:
    """Lines by name; those in `dashed` are drawn so."""
    figure, axes = _figure(5.2, 3.4)
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        axes.plot(
            xs, ys, label=name, color=_COLOURS[number % len(_COLOURS)],
            linestyle="--" if name in dashed else "-", linewidth=1.5,
            marker="o" if len(xs) < 40 else None, markersize=3,
        )  # fmt: skip
    if log_x:
        axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel=x, ylabel=y, title=title)
    if low is not None or high is not None:
        axes.set_ylim(low, high)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def histogram(values: Array, *, title: str, x: str, mark: float | None = None) -> bytes:
    """How often each value; a line at `mark`."""
    figure, axes = _figure(5.2, 3.0)
    shown = np.clip(values[np.isfinite(values)], -1, 1)
    axes.hist(shown, bins=60, range=(-1, 1), color=_COLOURS[0])
    if mark is not None:
        axes.axvline(mark, color=_COLOURS[1], linestyle="--", linewidth=1)
    axes.set(xlabel=x, ylabel="features", title=title)
    return _png(figure)


def bars(values: Mapping[str, tuple[float, float, float]], *, title: str, y: str) -> bytes:
    """Bars by name, each (value, low, high)."""
    figure, axes = _figure(5.2, 3.0)
    heights = np.array([value for value, _, _ in values.values()])
    reach = np.array([[v - low, high - v] for v, low, high in values.values()]).T
    axes.bar(
        range(len(values)), heights, yerr=np.nan_to_num(np.abs(reach)),
        color=[_COLOURS[n % len(_COLOURS)] for n in range(len(values))], capsize=3,
    )  # fmt: skip
    axes.set_xticks(range(len(values)), list(values))
    axes.set(ylabel=y, title=title)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own: nothing of a notebook's matplotlib is touched."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("Drawing pictures", package="matplotlib", extra="jobs") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
