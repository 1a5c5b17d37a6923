"""The pictures that only probes have: lines over depth with intervals, confusion, calibration.

A pure function from numbers to the bytes of a PNG each, as in `actlake.jobs.pictures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.jobs.pictures import COLOURS, colour, new_figure, to_png

Array = np.ndarray[Any, Any]

_CONTROL_STYLES = ("--", ":", "-.", "-")
DEPTH = "layer (−1: the embedding)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """A score over the layers."""

    layers: Array
    value: Array
    low: Array | None = None
    """Lower end of the interval, drawn as a band; NaN where there is none."""
    high: Array | None = None
    control: bool = False
    """Drawn thin and grey, each control in another pattern."""


def over_depth(
    lines: Mapping[str, Line],
    *,
    title: str,
    y: str,
    marks: Mapping[str, int] | None = None,
    zero: bool = False,
) -> bytes:
    """Scores against depth, each with its interval as a band.

    Parameters
    ----------
    marks
        Layers to mark with a vertical line, by name.
    zero
        Draw the line at 0, where a score of 0 means that nothing was learned.
    """
    figure, axes = new_figure(6.0, 3.8)
    coloured = controls = 0
    for name, line in lines.items():
        if line.control:
            shade, style = "#7a8087", _CONTROL_STYLES[controls % len(_CONTROL_STYLES)]
            dot = "_" if len(line.layers) == 1 else None  # a line of one layer would not be seen
            axes.plot(
                line.layers, line.value, style, label=name, color=shade, linewidth=1.0, marker=dot
            )
            controls += 1
        else:
            shade = colour(coloured)
            axes.plot(
                line.layers, line.value, "o-", label=name, color=shade, linewidth=1.6, markersize=3
            )
            coloured += 1
        if line.low is not None and line.high is not None:
            axes.fill_between(line.layers, line.low, line.high, color=shade, alpha=0.15, lw=0)
    if zero:
        axes.axhline(0, color="#8a8f96", linewidth=0.8)
    for name, layer in (marks or {}).items():
        axes.axvline(layer, color=COLOURS[5], linestyle=":", linewidth=1)
        axes.annotate(
            name, (layer, 1), xycoords=("data", "axes fraction"), xytext=(2, -9),
            textcoords="offset points", size=7,
        )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=DEPTH, ylabel=y, title=title)
    axes.grid(alpha=0.25)
    if lines:
        axes.legend(fontsize=7 if len(lines) > 6 else 8, frameon=False)
    return to_png(figure)


def confusion(counts: Array, classes: Sequence[str], *, title: str) -> bytes:
    """How often each class (rows) was taken for which (columns): shares of a row, and counts."""
    size = len(classes)
    figure, axes = new_figure(2.2 + 0.5 * size, 1.8 + 0.45 * size)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    names = [name if len(name) <= 16 else name[:15] + "…" for name in classes]
    axes.set_xticks(range(size), names, rotation=45, ha="right")
    axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if size <= 12:
        for (row, column), value in np.ndenumerate(share):
            ink = "white" if value > 0.55 else "black"
            axes.text(
                column,
                row,
                f"{int(counts[row, column]):,}",
                ha="center",
                va="center",
                size=7,
                c=ink,
            )
    figure.colorbar(image, ax=axes, label="share of the true class")
    return to_png(figure)


def calibration(
    confidence: Array, accuracy: Array, count: Array, *, title: str, ece: float
) -> bytes:
    """Accuracy against confidence, bin by bin; a dot's size says how many examples are in it."""
    figure, axes = new_figure(4.4, 4.0)
    axes.plot([0, 1], [0, 1], color="#8a8f96", linewidth=0.8, linestyle="--")
    filled = count > 0
    size = 20 + 260 * count[filled] / max(1, int(count.max(initial=0)))
    axes.plot(confidence[filled], accuracy[filled], color=COLOURS[0], linewidth=1)
    axes.scatter(confidence[filled], accuracy[filled], s=size, color=COLOURS[0], alpha=0.7)
    axes.set(
        xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy",
        title=f"{title}: ECE {ece:.3f}" if np.isfinite(ece) else title,
    )  # fmt: skip
    axes.grid(alpha=0.25)
    return to_png(figure)
