"""The report of a run, made of its tables: pictures as PNG files and one self-contained page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actlake.jobs import pictures as common
from actlake.jobs.probe import pictures
from actlake.jobs.probe.pictures import Line
from actlake.jobs.probe.report_tables import ResultTables, Row, ScoreLine
from actlake.jobs.report_page import (
    EMPTY,
    Html,
    figures,
    number,
    page,
    paragraph,
    publish,
    section,
    table,
)
from actlake.jobs.report_page import facts as facts_table
from actlake.jobs.report_page import warnings as warning_list
from actlake.platform.tracking import Tracker

Array = np.ndarray[Any, Any]

_NAMES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC", "r2": "R²", "mae": "MAE",
    "log_loss_bits": "log-loss (bits)", "ece": "ECE", "v_information_bits": "V-information (bits)",
}  # fmt: skip
_OVERVIEW = ("accuracy", "r2", "v_information_bits", "auroc")
_MARKED = ("task", "label", "pooling", "offset", "point", "probe", "metric")
_MOST_LINES = 8
_MOST_CLASSES = 30


def write_report(
    folder: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    tracker: Tracker,
    step: int,
) -> Path:
    """Write ``report.html`` and ``pictures/*.png`` from the tables in `folder`; the page's path.

    Both go to the tracker as well.
    """
    tables = ResultTables(folder)
    drawn = dict(draw(tables))
    content = page(
        title,
        [
            section("Run", facts_table(facts)),
            section("Over depth", _shown(drawn, "depth_"), _depth_words(tables)),
            section("Best layers", _best_table(tables)),
            section("Each task and its controls", _shown(drawn, "task_")),
            _optional("Where probes are wrong", drawn, "confusion_"),
            _optional("Calibration", drawn, "calibration_"),
            _optional("More training rows", drawn, "learning_"),
            _transfer_section(tables, drawn),
            _dictionary_section(tables),
            warning_list(warnings),
            section("All probes", _probe_table(tables), folded=True),
        ],
        lead="Each probe is linear, chosen on validation rows and scored on test rows of other "
        "documents; bands are 95 % intervals over documents.",
    )
    return publish(folder, content, drawn, tracker, step=step)


def write_transfer_report(folder: Path) -> Path:
    """Write the page and the pictures of ``transfer.parquet`` alone."""
    tables = ResultTables(folder)
    drawn = dict(_transfer_pictures(tables))
    (folder / "pictures").mkdir()
    for name, png in drawn.items():
        (folder / "pictures" / f"{name}.png").write_bytes(png)
    path = folder / "report.html"
    content = page("Transfer of probes", [_transfer_section(tables, drawn)])
    path.write_text(content, encoding="utf-8")
    return path


# Pictures.


def draw(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    """All pictures of a result, by name."""
    yield from _overviews(tables)
    yield from _task_pictures(tables)
    yield from _confusions(tables)
    yield from _calibrations(tables)
    yield from _learning_curves(tables)
    yield from _transfer_pictures(tables)


def _overviews(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    """All labels in one picture for each metric, and selectivity."""
    for metric in _OVERVIEW:
        lines = tables.main_lines(metric)
        for suffix, some in _in_parts(lines):
            shown = {_name(line, lines): _line(line, "value", band=True) for line in some}
            yield (
                f"depth_{metric}{suffix}",
                pictures.over_depth(
                    shown, title=f"{_NAMES[metric]} over depth", y=_NAMES[metric],
                    zero=metric not in ("accuracy", "auroc"),
                ),
            )  # fmt: skip
    lines = [line for line in tables.headlines if np.isfinite(line.columns["selectivity"]).any()]
    for suffix, some in _in_parts(lines):
        yield (
            f"depth_selectivity{suffix}",
            pictures.over_depth(
                {_name(line, lines): _line(line, "selectivity") for line in some},
                title="Selectivity: score less that of random labels a word", y="selectivity",
                zero=True,
            ),
        )  # fmt: skip


def _task_pictures(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    """One picture for each series: its probes, and the controls of the main one."""
    markers = {tuple(marked[name] for name in _MARKED): marked for marked in tables.rows("markers")}
    for main in tables.headlines:
        lines = {
            line.probe.replace("_", " "): _line(line, "value", band=line is main)
            for line in [main, *_other_probes(tables, main)]
        }
        controls = {
            "majority class": "baseline", "shuffled labels": "shuffled",
            "random label a word": "control",
        }  # fmt: skip
        if main.metric == "r2":
            controls["baseline"] = controls.pop("majority class")
        for name, column in controls.items():
            if np.isfinite(main.columns[column]).any():
                lines[name] = _line(main, column, control=True)
        series = main.series
        found = markers.get(
            (series.task, series.label, series.pooling, series.offset, series.point, main.probe,
             main.metric)
        )  # fmt: skip
        marks = {
            name: found[name]
            for name in ("jump", "settled")
            if found is not None and found[name] is not None
        }
        name = _name(main, tables.headlines)
        yield (
            f"task_{_file(name)}",
            pictures.over_depth(lines, title=name, y=_NAMES[main.metric], marks=marks),
        )


def _other_probes(tables: ResultTables, main: ScoreLine) -> list[ScoreLine]:
    return [
        line
        for line in tables.lines
        if (line.series, line.metric) == (main.series, main.metric) and line.probe != main.probe
    ]


def _confusions(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    for (series, site), rows in tables.at_the_best_layer("confusion").items():
        classes = list(dict.fromkeys(name for row in rows for name in (row["true"],)))
        classes += [r["predicted"] for r in rows if r["predicted"] not in classes]
        classes = sorted(dict.fromkeys(classes))
        if len(classes) > _MOST_CLASSES:
            continue  # the table has all of it
        counts = np.zeros((len(classes), len(classes)))
        for row in rows:
            counts[classes.index(row["true"]), classes.index(row["predicted"])] += row["count"]
        name = f"{series.named(line.series for line in tables.headlines)}, {site}"
        yield f"confusion_{_file(name)}", pictures.confusion(counts, classes, title=name)


def _calibrations(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    errors = {
        (line.series, layer): value
        for line in tables.main_lines("ece")
        for layer, value in zip(
            line.columns["layer"].tolist(), line.columns["value"].tolist(), strict=True
        )
    }
    for (series, site), rows in tables.at_the_best_layer("calibration").items():
        rows = sorted(rows, key=lambda row: int(row["bin"]))
        line = next(line for line in tables.headlines if line.series == series)
        ece = errors.get((series, int(line.columns["layer"][line.best])), float("nan"))
        name = f"{series.named(line.series for line in tables.headlines)}, {site}"
        yield (
            f"calibration_{_file(name)}",
            pictures.calibration(
                _column(rows, "confidence"), _column(rows, "accuracy"), _column(rows, "count"),
                title=name, ece=ece,
            ),
        )  # fmt: skip


def _learning_curves(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    for metric in ("accuracy", "r2"):
        lines = {}
        for (series, site), rows in tables.at_the_best_layer("learning_curve").items():
            mine = sorted(
                (row for row in rows if row["metric"] == metric), key=lambda r: int(r["train_rows"])
            )
            if len(mine) > 1:
                name = f"{series.named(line.series for line in tables.headlines)}, {site}"
                lines[name] = (_column(mine, "train_rows"), _column(mine, "value"))
        for suffix, some in _in_parts(list(lines)):
            yield (
                f"learning_{metric}{suffix}",
                common.curves(
                    {name: lines[name] for name in some}, title="More training rows",
                    x="training examples", y=_NAMES[metric],
                ),
            )  # fmt: skip


def _transfer_pictures(tables: ResultTables) -> Iterator[tuple[str, bytes]]:
    rows = tables.rows("transfer")
    for metric in dict.fromkeys(row["metric"] for row in rows):
        for probe in _main_of(rows, metric):
            mine = [row for row in rows if (row["metric"], row["probe"]) == (metric, probe)]
            site = _best_site(mine)
            here = [row for row in mine if row["site"] == site]
            trained = list(dict.fromkeys(row["trained"] for row in here))
            tested = list(dict.fromkeys(row["tested"] for row in here))
            values = np.full((len(trained), len(tested)), np.nan)
            for row in here:
                values[trained.index(row["trained"]), tested.index(row["tested"])] = row["value"]
            low = 0.0 if metric == "r2" else 0.5 * float(np.nanmin(values) >= 0.5)
            yield (
                f"transfer_{metric}",
                common.matrix(
                    values, trained, tested, title=f"{_NAMES[metric]} at {site}", x="tested on",
                    y="trained on", low=low,
                ),
            )  # fmt: skip


def _main_of(rows: Sequence[Row], metric: str) -> list[str]:
    probes = list(dict.fromkeys(row["probe"] for row in rows if row["metric"] == metric))
    return [next((p for p in ("logistic", "ridge") if p in probes), probes[0])]


def _best_site(rows: Sequence[Row]) -> str:
    """Where probes are best on their own task, on average."""
    own: dict[str, list[float]] = {}
    for row in rows:
        if row["trained"] == row["tested"]:
            own.setdefault(row["site"], []).append(row["value"])
    own = own or {row["site"]: [row["value"]] for row in rows}
    return max(own, key=lambda site: float(np.mean(own[site])))


# Parts of the page.


def _shown(drawn: Mapping[str, bytes], prefix: str) -> Html:
    return figures({name: png for name, png in drawn.items() if name.startswith(prefix)})


def _optional(title: str, drawn: Mapping[str, bytes], prefix: str) -> Html:
    shown = _shown(drawn, prefix)
    return section(title, shown) if shown else EMPTY


def _depth_words(tables: ResultTables) -> Html:
    said = (
        "V-information is how many bits a probe saves on a held-out label by reading the "
        "activations; 0 is what the labels' frequencies alone give. Layer −1 is the embedding."
    )
    return paragraph(said) if tables.main_lines("v_information_bits") else EMPTY


def _best_table(tables: ResultTables) -> Html:
    head = (
        "label", "probe", "metric", "best", "±", "layer", "majority", "shuffled", "random labels",
        "selectivity", "V-information", "jump", "converge", "settled",
    )  # fmt: skip
    markers = {tuple(marked[name] for name in _MARKED): marked for marked in tables.rows("markers")}
    information = {line.series: line for line in tables.main_lines("v_information_bits")}
    body = []
    for line in tables.headlines:
        at, columns, s = line.best, line.columns, line.series
        found = markers.get(
            (s.task, s.label, s.pooling, s.offset, s.point, line.probe, line.metric), {}
        )
        bits = information.get(s)
        body.append(
            (
                _name(line, tables.headlines),
                line.probe,
                _NAMES[line.metric],
                number(columns["value"][at]),
                number((columns["high"][at] - columns["low"][at]) / 2),
                str(int(columns["layer"][at])),
                *(number(columns[n][at]) for n in ("baseline", "shuffled", "control")),
                number(columns["selectivity"][at]),
                number(bits.columns["value"][at] if bits else float("nan"), 3),
                *(_layer(found.get(name)) for name in ("jump", "converge", "settled")),
            )
        )
    return table(
        head,
        body,
        caption="At the layer with the highest score on validation rows; scores are on test "
        "rows. Selectivity only where half "
        "of the test examples or more read a token that training examples read too.",
    )


def _layer(found: int | None) -> str:
    return "–" if found is None else str(found)


def _probe_table(tables: ResultTables) -> Html:
    head = (
        "task", "pooling", "offset", "site", "probe", "penalty", "iterations", "converged",
        "train", "validate", "test", "leaked", "words seen",
    )  # fmt: skip
    body = [
        (
            row["task"],
            row["pooling"],
            str(row["offset"]),
            row["site"],
            row["probe"],
            "–" if row["penalty"] is None else f"{row['penalty']:g}",
            "–" if row["iterations"] is None else str(row["iterations"]),
            {True: "yes", False: "no", None: "–"}[row["converged"]],
            *(f"{row[f'{part}_rows']:,}" for part in ("train", "validate", "test")),
            "–" if row["leaked"] is None else f"{row['leaked']:.2%}",
            f"{row['types_seen']:.0%}",
        )
        for row in tables.rows("probes")
    ]
    return table(head, body)


def _transfer_section(tables: ResultTables, drawn: Mapping[str, bytes]) -> Html:
    rows = tables.rows("transfer")
    if not rows:
        return EMPTY
    head = (
        "trained on",
        "tested on",
        "site",
        "probe",
        "metric",
        "score",
        "±",
        "baseline",
        "leaked",
    )
    body = [
        (
            row["trained"],
            row["tested"],
            row["site"],
            row["probe"],
            _NAMES[row["metric"]],
            number(row["value"]),
            number((row["high"] - row["low"]) / 2),
            number(row["baseline"]),
            f"{row['leaked']:.2%}",
        )
        for row in rows
    ]
    return section(
        "Transfer",
        _shown(drawn, "transfer_"),
        table(head, body, caption="Leaked: test examples whose document was trained on."),
    )


def _dictionary_section(tables: ResultTables) -> Html:
    rows = tables.rows("dictionary")
    if not rows:
        return EMPTY
    head = (
        "task", "class", "probe", "probe AUROC", "probe F1", "latent", "AUROC", "F1", "cosine",
        "latent by F1", "F1", "cosine", "nearest latent", "cosine", "random", "random nearest",
    )  # fmt: skip
    body = [
        (
            row["task"], row["class_name"], row["probe"], number(row["probe_auroc"]),
            number(row["probe_f1"]), str(row["latent"]), number(row["latent_auroc"]),
            number(row["latent_f1"]), number(row["cosine"], 3), str(row["f1_latent"]),
            number(row["f1_latent_f1"]), number(row["f1_latent_cosine"], 3),
            str(row["nearest_latent"]), number(row["nearest_cosine"], 3),
            number(row["random_cosine"], 3), number(row["random_nearest_cosine"], 3),
        )
        for row in rows
    ]  # fmt: skip
    return section(
        f"SAE against probe at {rows[0]['site']}",
        table(
            head,
            body,
            caption="Latents are chosen on training examples and scored on test examples. Random: "
            "95 % of the differences between random halves of the training examples have a "
            "smaller |cosine| with one latent, and with the nearest of all.",
        ),
    )


# Small things.


def _line(line: ScoreLine, column: str, *, band: bool = False, control: bool = False) -> Line:
    columns = line.columns
    return Line(
        layers=columns["layer"],
        value=columns[column],
        low=columns["low"] if band else None,
        high=columns["high"] if band else None,
        control=control,
    )


def _name(line: ScoreLine, among: Sequence[ScoreLine]) -> str:
    return line.series.named(other.series for other in among)


def _column(rows: Sequence[Row], name: str) -> Array:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)


def _in_parts(lines: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """As many as a picture holds at a time, and what its name ends in."""
    for start in range(0, len(lines), _MOST_LINES):
        yield f"_{start // _MOST_LINES + 1}" if start else "", lines[start : start + _MOST_LINES]


def _file(name: str) -> str:
    """A name that a picture and a tracker take."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_") or "it"
