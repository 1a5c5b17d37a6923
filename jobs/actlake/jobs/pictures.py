"""The pictures of reports, as PNG: curves, points, bars, histograms, tables in colour.

A pure function from numbers to bytes each; matplotlib is imported when the first is drawn.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actlake.storage.errors import missing_extra

Array = np.ndarray[Any, Any]

COLOURS = ("#2f5d8a", "#c8553d", "#5b8c5a", "#8a5a83", "#b08d2e", "#4a4a4a", "#3a9ea5", "#d4849b")


def colour(number: int) -> str:
    """The colour of the `number`-th thing in a picture."""
    return COLOURS[number % len(COLOURS)]


def curves(
    lines: Mapping[str, tuple[Array, Array]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    low: float | None = None,
    high: float | None = None,
    dashed: Sequence[str] = (),
) -> bytes:
    """Lines by name; those in `dashed` are drawn so. `log_x` is linear up to 1."""
    figure, axes = new_figure(5.2, 3.4)
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        axes.plot(
            xs, ys, label=name, color=colour(number),
            linestyle="--" if name in dashed else "-", linewidth=1.5,
            marker="o" if len(xs) < 40 else None, markersize=3,
        )  # fmt: skip
    if log_x:
        axes.set_xscale("symlog", linthresh=1)
    elif max((float(np.max(xs)) for xs, _ in lines.values() if len(xs)), default=0) >= 10_000:
        axes.xaxis.set_major_formatter(_thousands)
    if log_y:
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y, title=title)
    if low is not None or high is not None:
        axes.set_ylim(low, high)
    axes.grid(alpha=0.25)
    if len(lines) > 1 or any(lines):
        axes.legend(fontsize=8 if len(lines) <= 8 else 6, frameon=False)
    return to_png(figure)


def points(
    groups: Mapping[str, tuple[Array, Array]],
    *,
    title: str,
    x: str,
    y: str,
    labels: Mapping[str, Sequence[str]] | None = None,
    log_x: bool = False,
    front: tuple[Array, Array] | None = None,
) -> bytes:
    """Points by group, each with its label beside it; `front` is a dashed line through some."""
    figure, axes = new_figure(5.8, 4.0)
    if front is not None:
        axes.plot(*front, "--", color="#999999", linewidth=1, zorder=1)
    for number, (name, (xs, ys)) in enumerate(groups.items()):
        axes.scatter(xs, ys, s=34, color=colour(number), label=name or None, zorder=2)
        for place, text in enumerate((labels or {}).get(name, ())):
            axes.annotate(
                text, (xs[place], ys[place]), xytext=(4, 4), textcoords="offset points", size=7
            )
    if log_x:
        axes.set_xscale("log")
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.margins(0.12)  # room for the labels
    axes.grid(alpha=0.25)
    if any(groups):
        axes.legend(fontsize=8, frameon=False)
    return to_png(figure)


def histogram(
    values: Array | Mapping[str, Array],
    *,
    title: str,
    x: str,
    y: str,
    span: tuple[float, float] | None = None,
    bins: int = 60,
    log_y: bool = False,
    mark: float | None = None,
    weights: Array | None = None,
) -> bytes:
    """How often each value; of several by name, as outlines.

    Parameters
    ----------
    span
        Lowest and highest value shown; what is outside counts at the edge.
    mark
        Where to draw a line.
    weights
        How often each of the values counts; for one array of finite values.
    """
    figure, axes = new_figure(5.2, 3.0)
    named = values if isinstance(values, Mapping) else {"": values}
    finite = {name: part[np.isfinite(part)] for name, part in named.items()}
    if span is None:
        every = np.concatenate([*finite.values(), np.zeros(0)])
        span = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    if span[0] == span[1]:
        span = (span[0] - 0.5, span[1] + 0.5)
    for number, (name, part) in enumerate(finite.items()):
        axes.hist(
            np.clip(part, *span), bins=bins, range=span, color=colour(number), label=name or None,
            histtype="bar" if len(finite) == 1 else "step", linewidth=1.4, log=log_y,
            weights=weights,
        )  # fmt: skip
    if mark is not None:
        axes.axvline(mark, color=COLOURS[1], linestyle="--", linewidth=1)
    axes.set(xlabel=x, ylabel=y, title=title)
    if any(finite):
        axes.legend(fontsize=8, frameon=False)
    return to_png(figure)


def bars(values: Mapping[str, tuple[float, float, float]], *, title: str, y: str) -> bytes:
    """Bars by name, each (value, low, high)."""
    figure, axes = new_figure(max(5.2, 0.5 * len(values)), 3.0)
    heights = np.array([value for value, _, _ in values.values()])
    reach = np.array([[v - low, high - v] for v, low, high in values.values()]).T
    axes.bar(
        range(len(values)), heights, yerr=np.nan_to_num(np.abs(reach)),
        color=[colour(n) for n in range(len(values))], capsize=3,
    )  # fmt: skip
    long = max(map(len, values), default=0) * len(values) > 60
    axes.set_xticks(range(len(values)), list(values), rotation=30 if long else 0,
                    ha="right" if long else "center")  # fmt: skip
    axes.set(ylabel=y, title=title)
    return to_png(figure)


def matrix(
    values: Array,
    rows: Sequence[object],
    columns: Sequence[object],
    *,
    title: str,
    x: str,
    y: str,
    low: float = 0.0,
    high: float = 1.0,
) -> bytes:
    """A table in colour, row 0 at the bottom; white where there is no number."""
    figure, axes = new_figure(1.6 + 0.32 * len(columns), 1.3 + 0.28 * len(rows))
    image = axes.imshow(values, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="viridis")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=x, ylabel=y, title=title)
    if values.size <= 120:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if value < (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, c=ink)
    figure.colorbar(image, ax=axes)
    return to_png(figure)


def _thousands(value: float, place: object = None) -> str:
    """``250k``, ``1.5M``: what fits under an axis."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure (inches) and its axes: nothing of a notebook's matplotlib is touched.

    Raises
    ------
    MissingExtra
        The extra ``jobs`` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("Drawing pictures", package="matplotlib", extra="jobs") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def to_png(figure: Any) -> bytes:
    """The bytes of a figure; the same numbers give the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
