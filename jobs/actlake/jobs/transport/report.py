"""The report of a fit: pictures as PNG files, and all of it in one self-contained page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actlake.jobs import pictures
from actlake.jobs.report_page import (
    Html,
    facts,
    figures,
    number,
    paragraph,
    section,
    table,
    warnings,
)
from actlake.jobs.report_page import page as whole_page
from actlake.jobs.transport.causal import CausalScore
from actlake.jobs.transport.features import FeatureScores
from actlake.jobs.transport.fitting import PairFit
from actlake.jobs.transport.pairs import Pair, depth
from actlake.jobs.transport.pictures import heatmap
from actlake.jobs.transport.shortcut import EarlyExit, ShortcutScore

Array = np.ndarray[Any, Any]


@dataclass
class PairSummary:
    """What the report shows of a pair; the maps themselves are not kept."""

    pair: Pair
    alpha: float
    r2: Mapping[str, Mapping[str, float]]
    """Test R² by map and measure."""
    half_width: float
    """Of the interval of the ridge map's uniform R²."""
    train_r2: float
    efficiency: Mapping[str, Array]
    whitened: Mapping[str, Array]
    ceiling: Array | None
    train_ceiling: Array | None
    massive_rows: int
    pillai_trace: float
    """Σρ² of the test rows."""
    permuted_pillai_trace: float
    """The same of permuted rows, on average."""

    @classmethod
    def of(cls, fit: PairFit) -> "PairSummary":
        """Of a fit."""
        interval = fit.ridge.intervals.get("uniform")
        return cls(
            pair=fit.pair,
            alpha=float(fit.ridge.fitted.alpha or 0.0),
            r2={
                kind: {
                    "uniform": one.test.uniform,
                    "variance_weighted": one.test.variance_weighted,
                    "whitened": one.test.whitened,
                }
                for kind, one in fit.maps.items()
            },
            half_width=interval.half_width if interval else float("nan"),
            train_r2=fit.ridge.train.uniform,
            efficiency={kind: fit.efficiency(kind) for kind in fit.curves},
            whitened={kind: curve.whitened for kind, curve in fit.curves.items()},
            ceiling=fit.spectrum.ceiling if fit.spectrum else None,
            train_ceiling=fit.train_spectrum.ceiling if fit.train_spectrum else None,
            massive_rows=fit.massive_rows,
            pillai_trace=fit.spectrum.pillai_trace if fit.spectrum else float("nan"),
            permuted_pillai_trace=fit.spectrum.permuted_pillai_trace
            if fit.spectrum
            else float("nan"),
        )


@dataclass
class Findings:
    """All that a report is made of."""

    title: str
    facts: Mapping[str, str]
    pairs: Sequence[PairSummary]
    warnings: Sequence[str] = ()
    features: Mapping[Pair, FeatureScores] = field(default_factory=dict)
    causal: Sequence[CausalScore] = ()
    shortcuts: Sequence[ShortcutScore] = ()
    exits: Sequence[EarlyExit] = ()


def draw(findings: Findings) -> dict[str, bytes]:
    """The pictures, by name."""
    drawn = dict(_heatmaps(findings.pairs))
    drawn |= dict(_decay(findings.pairs))
    drawn |= dict(_rank_curves(findings.pairs))
    for pair, scores in findings.features.items():
        drawn[f"features_{pair.folder}"] = pictures.histogram(
            scores.r2[scores.judged],
            title=f"{pair}: {scores.share_above_threshold:.0%} of {scores.judged.sum():,} features "
            f"reach {scores.threshold:g}",
            x="R² on active rows",
            y="features",
            span=(-1, 1),
            mark=scores.threshold,
        )
    for pair in dict.fromkeys(score.pair for score in findings.causal):
        mine = [score for score in findings.causal if score.pair == pair]
        drawn[f"causal_{pair.folder}"] = pictures.bars(
            {s.condition: (s.delta_ce.value, s.delta_ce.low, s.delta_ce.high) for s in mine},
            title=f"{pair}: replaced while the model runs",
            y="Δ cross-entropy (nats/token)",
        )
    if findings.shortcuts:
        drawn |= _shortcut_pictures(findings)
    return drawn


def _heatmaps(pairs: Sequence[PairSummary]) -> Iterable[tuple[str, bytes]]:
    for offset in sorted({one.pair.offset for one in pairs}):
        mine = [
            one
            for one in pairs
            if one.pair.offset == offset and one.pair.distance >= 0 and _is_stream(one.pair)
        ]
        layers = sorted({depth(one.pair.source)[0] for one in mine})
        distances = sorted({one.pair.distance for one in mine})
        if len(layers) < 2 or not distances:
            continue
        suffix = f"_offset_{offset}" if offset else ""
        shown: Mapping[str, tuple[str, Callable[[PairSummary], float]]] = {
            "r2": ("R² of the ridge map, uniform", lambda one: one.r2["ridge"]["uniform"]),
            "gain": ("R² of the ridge map less the identity's", _gain),
            "pillai_trace": (
                "Σρ² of the test rows, less that of permuted rows",
                lambda one: one.pillai_trace - one.permuted_pillai_trace,
            ),
        }
        for name, (title, value) in shown.items():
            values = {(depth(one.pair.source)[0], one.pair.distance): value(one) for one in mine}
            finite = [v for v in values.values() if np.isfinite(v)]
            if finite:
                high = max(1.0, max(finite))
                drawn = heatmap(layers, distances, values, title=title, high=high)
                yield f"{name}{suffix}", drawn


def _is_stream(pair: Pair) -> bool:
    return all(
        site.stored.point in ("resid_pre", "resid_post") for site in (pair.source, pair.target)
    )


def _gain(one: PairSummary) -> float:
    identity = one.r2.get("identity", {}).get("uniform", float("nan"))
    return one.r2["ridge"]["uniform"] - identity


def _decay(pairs: Sequence[PairSummary]) -> Iterable[tuple[str, bytes]]:
    same = [one for one in pairs if one.pair.offset == 0 and _is_stream(one.pair)]
    layers = sorted({depth(one.pair.source)[0] for one in same})
    lines = {}
    for layer in layers[:: max(1, len(layers) // 5)]:
        mine = sorted((one for one in same if depth(one.pair.source)[0] == layer), key=_distance)
        if len(mine) > 1:
            lines["embedding" if layer < 0 else f"layer {layer}"] = (
                np.array([one.pair.distance for one in mine]),
                np.array([one.r2["ridge"]["uniform"] for one in mine]),
            )
    if lines:
        yield (
            "decay",
            pictures.curves(
                lines, title="How transport decays with distance", x="distance k (layers)",
                y="test R² (uniform)", low=0, high=1,
            ),
        )  # fmt: skip


def _distance(one: PairSummary) -> int:
    return one.pair.distance


_CEILING = "best in sample, of the test rows (CCA)"
_TRAIN_CEILING = "best in sample, of the training rows (CCA)"
_FAMILIES = {
    "cca": "ridge map cut in the whitened metric",
    "reduced": "ridge map cut by squared error",
    "svd": "ridge map cut by singular values",
}


def _rank_curves(pairs: Sequence[PairSummary]) -> Iterable[tuple[str, bytes]]:
    for one in _examples([one for one in pairs if one.ceiling is not None]):
        assert one.ceiling is not None
        ranks = np.arange(len(one.ceiling))
        lines: dict[str, tuple[Array, Array]] = {_CEILING: (ranks, one.ceiling)}
        if one.train_ceiling is not None:
            lines[_TRAIN_CEILING] = (
                np.arange(len(one.train_ceiling)), one.train_ceiling,
            )  # fmt: skip
        for kind, curve in one.whitened.items():
            lines[_FAMILIES[kind]] = (np.arange(len(curve)), curve)
        yield (
            f"ranks_{one.pair.folder}",
            pictures.curves(
                lines, title=str(one.pair), x="rank r", y="whitened R²", log_x=True, low=-0.25,
                high=1.02, dashed=(_CEILING, _TRAIN_CEILING),
            ),
        )  # fmt: skip
        yield (
            f"efficiency_{one.pair.folder}",
            pictures.curves(
                {_FAMILIES[kind]: (np.arange(len(e)), e) for kind, e in one.efficiency.items()},
                title=f"{one.pair}: efficiency on test rows", x="rank r", y="η(r)", log_x=True,
                low=-0.25, high=1.05,
            ),
        )  # fmt: skip


def _examples(pairs: Sequence[PairSummary], *, number: int = 3) -> Sequence[PairSummary]:
    """The pair that is transported best, the one in the middle, and the one worst."""
    ordered = sorted(pairs, key=lambda one: -one.r2["ridge"]["uniform"])
    if len(ordered) <= number:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (number - 1))] for place in range(number)]


def _shortcut_pictures(findings: Findings) -> dict[str, bytes]:
    lenses = ("mapped", "logit lens")
    drawn = {}
    measures: Mapping[str, tuple[str, Callable[[ShortcutScore], float]]] = {
        "precision": ("precision@1", lambda score: score.precision[1].value),
        "divergence": ("KL(p_N ‖ p̂), nats", lambda score: score.divergence.value),
        "surprisal": ("surprisal, nats", lambda score: score.surprisal.value),
    }
    for name, (y, value) in measures.items():
        lines = {}
        for lens in lenses:
            mine = sorted((s for s in findings.shortcuts if s.lens == lens), key=_source_depth)
            lines[lens] = (
                np.array([depth(s.source)[0] for s in mine]), np.array([value(s) for s in mine]),
            )  # fmt: skip
        drawn[f"shortcut_{name}"] = pictures.curves(
            lines,
            title="Shortcut to the output",
            x="source layer",
            y=y,
            low=0,
            dashed=("logit lens",),
        )
    if findings.exits:
        saved = np.array([exit.layers_saved for exit in findings.exits])
        kept = np.array([exit.kept for exit in findings.exits])
        drawn["early_exit"] = pictures.curves(
            {"early exit": (saved, kept)},
            title="Early exit", x="share of layers saved", y="top token kept", high=1.02,
        )  # fmt: skip
    return drawn


def _source_depth(score: ShortcutScore) -> tuple[int, int]:
    return depth(score.source)


def page(findings: Findings, drawn: Mapping[str, bytes]) -> str:
    """The whole report as one HTML page with the pictures in it."""
    sections = [
        section("Fit", facts(findings.facts), figures(drawn)),
        _pair_table(findings.pairs),
    ]
    if findings.features:
        sections.append(_feature_table(findings.features))
    if findings.causal:
        sections.append(_causal_table(findings.causal))
    if findings.shortcuts:
        sections.append(_shortcut_table(findings))
    sections.append(warnings(findings.warnings))
    return whole_page(findings.title, sections)


def _pair_table(pairs: Sequence[PairSummary]) -> Html:
    head = (
        "source", "target", "k", "offset", "α", "R² ridge", "±", "in-sample", "R² ols",
        "R² identity", "R² weighted", "R² whitened", "Σρ²", "Σρ² of permuted rows",
        "massive rows left out",
    )  # fmt: skip
    body = [
        (
            str(one.pair.source),
            str(one.pair.target),
            str(one.pair.distance),
            f"{one.pair.offset:+d}" if one.pair.offset else "0",
            f"{one.alpha:g}",
            number(one.r2["ridge"]["uniform"]),
            number(one.half_width),
            number(one.train_r2),
            number(one.r2["ols"]["uniform"]),
            number(one.r2.get("identity", {}).get("uniform", float("nan"))),
            number(one.r2["ridge"]["variance_weighted"]),
            number(one.r2["ridge"]["whitened"]),
            number(one.pillai_trace, 1),
            number(one.permuted_pillai_trace, 1),
            f"{one.massive_rows:,}",
        )
        for one in pairs
    ]
    return section("Pairs", table(head, body))


def _feature_table(features: Mapping[Pair, FeatureScores]) -> Html:
    head = (
        "pair", "features", "judged", "threshold", "above", "below",
        "below, but above over all rows", "median R² on active rows", "rescaled", "over all rows",
    )  # fmt: skip
    body = []
    for pair, scores in features.items():
        judged = int(scores.judged.sum())
        above = int(scores.above_threshold.sum())
        medians = [
            number(float(np.nanmedian(values[scores.judged])) if judged else float("nan"))
            for values in (scores.r2, scores.r2_rescaled, scores.r2_all_rows)
        ]
        body.append(
            (
                str(pair), f"{len(scores.r2):,}", f"{judged:,}", f"{scores.threshold:g}",
                f"{above:,}", f"{judged - above:,}", f"{int(scores.below_though_linear.sum()):,}",
                *medians,
            )
        )  # fmt: skip
    words = paragraph(
        "A feature is judged by the rows on which it fires, which restricts the range of what is "
        "predicted: below the threshold does not mean that the feature is not linear in the "
        "source. Rescaled: after the best slope and shift, correlation squared."
    )
    return section("Features, on active rows", words, table(head, body))


def _causal_table(scores: Sequence[CausalScore]) -> Html:
    head = ("pair", "replaced by", "Δ cross-entropy", "±", "KL", "±", "tokens replaced")
    body = [
        (
            str(s.pair), s.condition, number(s.delta_ce.value), number(s.delta_ce.half_width),
            number(s.divergence.value), number(s.divergence.half_width), f"{s.replaced:,}",
        )
        for s in scores
    ]  # fmt: skip
    return section("In the running model, nats a token", table(head, body))


def _shortcut_table(findings: Findings) -> Html:
    head = ("source", "lens", "P@1", "P@5", "P@10", "surprisal", "KL")
    body = [
        (
            str(s.source), s.lens, *(number(s.precision[k].value) for k in (1, 5, 10)),
            number(s.surprisal.value), number(s.divergence.value),
        )
        for s in findings.shortcuts
    ]  # fmt: skip
    exits = [
        (f"{e.threshold:g}", number(e.kept), number(e.layers_saved), number(e.work_saved))
        for e in findings.exits
    ]
    return section(
        "Shortcut to the output",
        table(head, body),
        table(("probability to stop at", "top token kept", "layers saved", "work saved"), exits),
        paragraph(
            "Work saved counts an unembedding for every layer that is looked at, a layer as 12 "
            "times the square of the width."
        ),
    )
