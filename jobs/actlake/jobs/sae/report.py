"""The report of trained SAEs: curves, comparisons, and pages of single latents.

    write_report(folder, title, runs, tracker=tracker)

`RunFacts` is all that is known of one SAE; whatever of it is missing is left out of the page.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actlake.jobs.jackknife import Interval
from actlake.jobs.report_page import (
    EMPTY,
    Html,
    card,
    element,
    facts,
    figures,
    joined,
    number,
    page,
    paragraph,
    publish,
    section,
    table,
    warnings,
)
from actlake.jobs.sae import pictures
from actlake.jobs.sae.contexts import LatentPage
from actlake.jobs.sae.evaluation import RowScores
from actlake.jobs.sae.in_model import ALL_SITES, ModelScores
from actlake.jobs.sae.latent_cards import STYLE, latent_card
from actlake.platform.tracking import Tracker

Array = np.ndarray[Any, Any]
_MOST_PICTURED = 12


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One SAE: what it is, how it was trained, how it does."""

    name: str
    """As in its folder."""
    architecture: str
    sites: str
    """What it reads, and for a transcoder ``→`` what it predicts."""
    written: tuple[str, ...]
    """What it reconstructs or predicts, a name for each of `RowScores.sites`; for a transcoder
    with what it reads in front, since that is another task than reconstruction."""
    d_in: int
    d_sae: int
    options: Mapping[str, object] = field(default_factory=dict)
    """Fields of the architecture, learning rate, …; those that differ between SAEs are columns."""
    seed: int = 0
    rows_trained: int = 0
    dead_after_rows: int | None = None
    """Training rows without a firing after which a latent counted as dead."""
    state: str = "complete"
    """``complete``, or how it ended instead."""
    history: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    """By metric, (rows trained on, values): ``loss``, ``l0``, ``fvu``, ``dead_share``, …"""
    rows: RowScores | None = None
    in_model: Mapping[str, ModelScores] = field(default_factory=dict)
    """By the site that is replaced, or `ALL_SITES`; empty where it was not tested."""
    latents: Sequence[LatentPage] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: store, model, revision, config, commit, folder."""

    @property
    def spliced_alone(self) -> Mapping[str, ModelScores]:
        """The tests in the model that replace one site, by its name."""
        return {site: found for site, found in self.in_model.items() if site != ALL_SITES}


_HISTORIES = {
    "loss": ("Loss", "loss", True),
    "fvu": ("Fraction of variance unexplained", "FVU", False),
    "l0": ("Active latents", "L0", False),
    "dead_share": ("Dead latents", "share of latents", False),
    "learning_rate": ("Learning rate", "learning rate", False),
}


def write_report(
    folder: Path,
    title: str,
    runs: Sequence[RunFacts],
    *,
    tracker: Tracker,
    about: Mapping[str, str] | None = None,
    noted: Sequence[str] = (),
    step: int = 0,
) -> Path:
    """Write ``report.html`` and ``pictures/*.png`` into `folder`; the page's path.

    Parameters
    ----------
    about
        What is true of all of them: store, model, rows, split.
    noted
        Warnings.
    step
        The tracker's.
    """
    drawn = draw(runs)
    content = report_page(title, runs, drawn, about=about or {}, noted=noted)
    return publish(folder, content, drawn, tracker, step=step)


def draw(runs: Sequence[RunFacts]) -> dict[str, bytes]:
    """The pictures, by name."""
    drawn: dict[str, bytes] = {}
    for metric, (title, y, log_y) in _HISTORIES.items():
        lines = {_line(run, metric): run.history[metric] for run in runs if metric in run.history}
        lines = {name: line for name, line in lines.items() if len(line[0])}
        if lines:
            positive = all((np.asarray(ys) > 0).all() for _, ys in lines.values())
            drawn[metric] = pictures.histories(lines, title=title, y=y, log_y=log_y and positive)
    drawn |= _pareto(runs)
    scored = {run.name: run.rows for run in runs if run.rows is not None}
    shown = dict(list(scored.items())[:_MOST_PICTURED])
    if shown:
        drawn["density"] = pictures.densities(shown, title="How often latents fire")
    for name, rows in shown.items():
        if np.count_nonzero(rows.l0_counts) < 2:
            continue  # of topk: all rows have k
        drawn[f"activity_{_UNNAMED.sub('_', name)}"] = pictures.activity(rows, title=name)
    return drawn


def _line(run: RunFacts, metric: str) -> str:
    """What a line of a history is called: of dead latents with the rows that they are dead for."""
    if metric != "dead_share" or run.dead_after_rows is None:
        return run.name
    return f"{run.name}, silent for {run.dead_after_rows:,} rows"


_UNNAMED = re.compile(r"[^A-Za-z0-9_.-]+")
"""What cannot stand in the name of a picture."""


def _pareto(runs: Sequence[RunFacts]) -> dict[str, bytes]:
    """Quality against sparsity, a picture a site: no SAE of one site beats one of another."""
    drawn = {}
    for site in dict.fromkeys(site for run in runs for site in run.written):
        for name, (y, higher, value) in _MEASURES.items():
            groups: dict[str, list[tuple[str, float, float]]] = {}
            for run in runs:
                found = value(run, site) if site in run.written else None
                if run.rows is not None and found is not None and np.isfinite(found):
                    kind = "" if len(run.written) == 1 else f" crosscoder of {run.sites}"
                    point = (f"{run.d_sae:,}", run.rows.l0, found)
                    groups.setdefault(f"{run.architecture}{kind}", []).append(point)
            if sum(map(len, groups.values())) > 1:
                drawn[f"pareto_{name}_{_UNNAMED.sub('_', site)}"] = pictures.pareto(
                    groups, title=f"{site}: {y} against sparsity", y=y, higher_is_better=higher
                )
    return drawn


def _fvu_at(run: RunFacts, site: str) -> float | None:
    return run.rows.sites[run.written.index(site)].fvu if run.rows else None


def _recovered_at(run: RunFacts, site: str) -> float | None:
    """With this site replaced alone."""
    scores = list(run.spliced_alone.values())
    return scores[run.written.index(site)].ce_recovered.value if scores else None


_MEASURES: Mapping[str, tuple[str, bool, Callable[[RunFacts, str], float | None]]] = {
    "fvu": ("FVU", False, _fvu_at),
    "ce_recovered": ("CE recovered", True, _recovered_at),
}


def report_page(
    title: str,
    runs: Sequence[RunFacts],
    drawn: Mapping[str, bytes],
    *,
    about: Mapping[str, str],
    noted: Sequence[str] = (),
) -> str:
    """The whole page."""
    compared = {n: png for n, png in drawn.items() if n.startswith("pareto_")}
    curves = {name: drawn[name] for name in _HISTORIES if name in drawn}
    sparsity = {n: p for n, p in drawn.items() if n == "density" or n.startswith("activity_")}
    sections = [section("Result", facts(about), _result_table(runs), figures(compared))]
    if curves:
        sections.append(section("Training", figures(curves)))
    if sparsity:
        sections.append(section("Sparsity", figures(sparsity), _sparsity_table(runs)))
    if any(run.in_model for run in runs):
        sections.append(_in_model_section(runs))
    sections += [_latents(run, folded=len(runs) > 1) for run in runs if run.latents]
    sections += [_lineage(runs), warnings(noted)]
    lead = f"{len(runs)} SAEs" if len(runs) > 1 else _one_line(runs[0]) if runs else ""
    return page(title, sections, lead=lead, style=STYLE)


def _one_line(run: RunFacts) -> str:
    parts = [f"{run.architecture}, {run.d_sae:,} latents on {run.sites}"]
    if run.rows is not None:
        parts.append(f"FVU {number(run.rows.fvu)} at L0 {number(run.rows.l0, 1)}")
    if run.in_model:
        parts.append(f"CE recovered {_by_site(run, lambda one: number(one.ce_recovered.value))}")
    return " · ".join(parts)


def _differing(runs: Sequence[RunFacts]) -> list[str]:
    """Options that not all SAEs have alike."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    return [name for name in names if len({repr(run.options.get(name)) for run in runs}) > 1]


def _result_table(runs: Sequence[RunFacts]) -> Html:
    options = _differing(runs) if len(runs) > 1 else []
    head = (
        "SAE", "architecture", "sites", "latents", *options, "rows trained", "FVU", "L0",
        "dead in the rows tested", "cosine", "CE recovered", "ΔCE", "KL", "state",
    )  # fmt: skip
    body = [
        (
            run.name, run.architecture, run.sites, f"{run.d_sae:,}",
            *(str(run.options.get(name, "")) for name in options),
            f"{run.rows_trained:,}", *_row_cells(run.rows), *_model_cells(run), run.state,
        )
        for run in runs
    ]  # fmt: skip
    return table(
        head,
        body,
        caption="On held-out documents; ΔCE and KL in nats a token, of a crosscoder with each "
        "site replaced alone, in the order of its sites.",
    )


def _row_cells(rows: RowScores | None) -> Sequence[str]:
    if rows is None:
        return ("–",) * 4
    return (
        number(rows.fvu),
        number(rows.l0, 1),
        f"{100 * rows.dead_share:.1f} % in {rows.num_rows:,} rows",
        number(rows.cosine),
    )


def _model_cells(run: RunFacts) -> Sequence[str]:
    if not run.in_model:
        return ("–",) * 3
    return (
        _by_site(run, lambda one: _interval(one.ce_recovered)),
        _by_site(run, lambda one: _interval(one.delta_ce)),
        _by_site(run, lambda one: _interval(one.kl)),
    )


def _by_site(run: RunFacts, cell: Callable[[ModelScores], str]) -> str:
    return " / ".join(cell(one) for one in run.spliced_alone.values())


def _interval(found: Interval | None) -> str:
    if found is None or not np.isfinite(found.value):
        return "–"
    if not np.isfinite(found.half_width):
        return number(found.value)
    return f"{number(found.value)} ± {number(found.half_width)}"


def _sparsity_table(runs: Sequence[RunFacts]) -> Html:
    head = (
        "SAE", "rows tested", "L0", "median", "99 %", "dead latents", "in > 10 % of rows",
        "relative norm", "explained variance",
    )  # fmt: skip
    body = [
        (
            run.name, f"{rows.num_rows:,}", number(rows.l0, 2), f"{rows.l0_quantile(0.5):,}",
            f"{rows.l0_quantile(0.99):,}", f"{int((rows.density == 0).sum()):,}",
            f"{int((rows.density > 0.1).sum()):,}", number(rows.relative_norm),
            number(rows.explained_variance),
        )
        for run in runs
        if (rows := run.rows) is not None
    ]  # fmt: skip
    note = (
        "A latent counts as dead when it fires in none of the rows tested: of fewer rows, more "
        "are dead. Dead ones are not in the histogram."
    )
    sites = [
        (run.name, str(place), number(one.fvu), number(one.cosine), number(one.mean_norm, 1))
        for run in runs
        if run.rows is not None and len(run.rows.sites) > 1
        for place, one in enumerate(run.rows.sites)
    ]
    by_site = table(("crosscoder", "site", "FVU", "cosine", "mean norm"), sites) if sites else EMPTY
    return joined([table(head, body, caption=note), by_site])


def _in_model_section(runs: Sequence[RunFacts]) -> Html:
    head = (
        "SAE", "replaced", "CE clean", "CE with SAE", "CE zero", "CE mean", "ΔCE", "CE recovered",
        "KL", "KL zero", "positions", "documents",
    )  # fmt: skip
    body = [
        (
            run.name, site.replace("_", " ") if site == ALL_SITES else site,
            _interval(found.ce_clean), _interval(found.ce_sae), _interval(found.ce_zero),
            _interval(found.ce_mean), _interval(found.delta_ce), _interval(found.ce_recovered),
            _interval(found.kl), _interval(found.kl_zero), f"{found.num_spliced:,}",
            f"{found.num_documents:,}",
        )
        for run in runs
        for site, found in run.in_model.items()
    ]  # fmt: skip
    return section(
        "In the running model",
        paragraph(
            "The reconstruction takes the place of the activations while the model runs; nats a "
            "token. CE recovered is (zero − SAE) / (zero − clean): 1 when nothing is lost, 0 when "
            "it is no better than zeros. Intervals: 95 %, over documents. A crosscoder's sites are "
            "replaced one by one; where all are replaced at once, the deepest overwrites what the "
            "others changed, and the numbers are about little else than that site."
        ),
        table(head, body),
    )


def _latents(run: RunFacts, *, folded: bool) -> Html:
    title = f"Latents of {run.name}" if folded else "Latents"
    return section(
        title,
        paragraph(
            "From the rarest to the most frequent. A token is the darker, the more active the "
            "latent is on it. Promoted tokens: the latent's decoder row through the unembedding, "
            "with the final norm's weight folded in; the direct path only."
        ),
        *(
            latent_card(one)
            for one in sorted(run.latents, key=lambda one: (one.density, one.latent))
        ),
        folded=folded,
    )


def _lineage(runs: Sequence[RunFacts]) -> Html:
    cards = [
        card(
            run.name,
            facts(
                {
                    "architecture": run.architecture,
                    "sites": run.sites,
                    "width → latents": f"{run.d_in:,} → {run.d_sae:,}",
                    "options": ", ".join(f"{name} {value}" for name, value in run.options.items()),
                    "seed": str(run.seed),
                    "rows trained on": f"{run.rows_trained:,}",
                    **run.lineage,
                }
            ),
        )
        for run in runs
    ]
    return section("Lineage", element("div", *cards, class_="lineage"), folded=len(runs) > 3)
