"""Everything about one site: read its rows once, fit all sets of examples, write a part.

A part is a folder with the site's rows of all tables and its probes. It appears whole; one that
is there is not made again.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch

from actlake.jobs.probe.artefact import save_probe
from actlake.jobs.probe.config import ProbeConfig
from actlake.jobs.probe.controls import TRUE, Heads, heads_of
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.fitting import Fit, Fitted, fit_examples
from actlake.jobs.probe.gathering import Held, Take
from actlake.jobs.probe.opening import Opened, open_config
from actlake.jobs.probe.scoring import Scoring
from actlake.jobs.probe.tables import Rows, empty_rows, write_tables
from actlake.platform.cluster import WorkerPlan
from actlake.platform.config import from_dict
from actlake.platform.runs import whole_folder
from actlake.platform.seeds import Seeds
from actlake.storage import Site

CONFIG = "config.json"


def part_of(folder: Path, site: Site) -> Path:
    """Where the part of a site is kept."""
    return folder / str(site)


def probe_site(folder: str, plan: WorkerPlan, site: str) -> list[str]:
    """Make the part of one site, in any process that sees the store and the folder of parts."""
    config, opened, heads = _opened(folder, plan)
    make_part(Path(folder), config, opened, heads, Site.parse(site))
    return [site]


def make_part(
    folder: Path, config: ProbeConfig, opened: Opened, heads: list[Heads], site: Site
) -> None:
    """Fit and score all sets at a site, unless that is done already."""
    part = part_of(folder, site)
    if part.is_dir():
        return
    take: Take = opened.store[site].take
    if opened.held:
        take = Held.of(opened.store, site, opened.sets).take
    rows = empty_rows()
    with whole_folder(part) as unfinished:
        for examples, own, stream in zip(opened.sets, heads, opened.streamed, strict=True):
            fitted = fit_examples(
                take, opened.store.schema_of(site).dim, examples, own, config,
                stream=stream, device=opened.device,
            )  # fmt: skip
            scoring = Scoring(site, examples, own, fitted)
            for name, found in scoring.run().items():
                rows[name] += found
            _save(unfinished, opened, scoring, fitted, own, rows)
        write_tables(rows, unfinished)


def heads_of_all(config: ProbeConfig, opened: Opened) -> list[Heads]:
    """Labels and controls of every set; the same at all sites."""
    return [heads_of(one, config.controls, Seeds(config.seed)) for one in opened.sets]


def _save(
    folder: Path, opened: Opened, scoring: Scoring, fitted: Fitted, heads: Heads, rows: Rows
) -> None:
    examples, site = scoring.examples, scoring.site
    for fit in fitted.fits:
        if fit.share == 1:
            weights, biases = zip(
                *(fitted.raw(fit, heads.column(TRUE, label)) for label in range(heads.labels)),
                strict=True,
            )
            save_probe(
                torch.cat([torch.from_numpy(one) for one in weights]).numpy(),
                torch.cat([torch.from_numpy(one) for one in biases]).numpy(),
                site=site,
                probe=fit.probe,
                kind=examples.kind,
                classes=examples.classes,
                about=_about(opened, examples, site, fit, rows),
                to=folder / scoring.folder(fit),
            )


def _about(
    opened: Opened, examples: Examples, site: Site, fit: Fit, rows: Rows
) -> dict[str, object]:
    key = (*examples.key, str(site), fit.probe)
    names = ("task", "pooling", "offset", "site", "probe")
    scores = [row for row in rows["scores"] if tuple(row[name] for name in names) == key]
    return {
        "task": examples.task.called,
        "pooling": examples.pooling,
        "offset": examples.offset,
        "store": {"fingerprint": opened.store.fingerprint},
        "rows_where": None if opened.chosen is None else opened.chosen.where,
        "model": dict(opened.store.provenance.model),
        "penalty": None
        if fit.chosen is None
        else [fit.penalties[place] for place in fit.chosen[: max(1, _labels(examples))]],
        "train_rows": fit.train_rows,
        "test": {row["metric"]: row["value"] for row in scores if row["label"] is None},
    }


def _labels(examples: Examples) -> int:
    return len(examples.classes) if examples.kind == "multilabel" else 1


@lru_cache(maxsize=2)
def _opened(folder: str, plan: WorkerPlan) -> tuple[ProbeConfig, Opened, list[Heads]]:
    config = from_dict(ProbeConfig, json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")))
    opened = open_config(config, plan=plan)
    return config, opened, heads_of_all(config, opened)
