"""Probes tested where they were not trained: on other tasks, other stores, other results.

    actlake probe transfer runs/probe-films runs/probe-products --out runs/transfer

A probe may be tested on any examples at the same site, pooled alike, that have the same classes
(or, for numbers, the same column). What it scores there, beside what the probe that was trained
there scores, says whether both read the same thing ("Intermediate Layer Classifiers for OOD
generalization" does so over distributions). Scored are test rows only; where their documents were
among those that the probe was trained on, the share is in ``leaked``.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from actlake.jobs.jackknife import Interval, jackknife_mean
from actlake.jobs.probe.artefact import Probe
from actlake.jobs.probe.config import ProbeConfig
from actlake.jobs.probe.errors import InvalidProbe
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.gathering import read_examples
from actlake.jobs.probe.metrics import ClassTest, NumberTest
from actlake.jobs.probe.opening import Opened, open_config
from actlake.jobs.probe.splits import TEST, TRAIN
from actlake.jobs.saying import say
from actlake.platform.computed_on import computed_on
from actlake.platform.config import from_dict
from actlake.platform.runs import Input, RunRecord, whole_folder
from actlake.storage import Site

Array = np.ndarray[Any, Any]

FILE = "transfer.parquet"
METRICS = ("accuracy", "auroc", "r2")


@dataclass(frozen=True, eq=False)
class Trained:
    """A result: its probes, and the examples they were made of."""

    folder: Path
    opened: Opened
    name: str = ""
    """Put before the names of its tasks, where there are several results."""

    def called(self, examples: Examples) -> str:
        """The name of a task in the table."""
        return f"{self.name}/{examples.task.called}" if self.name else examples.task.called


@dataclass(frozen=True, kw_only=True)
class TransferScore:
    """A cell of the matrix: a probe of one task on the test examples of another."""

    trained: str
    tested: str
    pooling: str
    offset: int
    site: str
    layer: int
    point: str
    probe: str
    metric: str
    value: float
    low: float
    high: float
    baseline: float
    """Of always giving the majority class (the mean) of the tested task's training examples."""
    test_examples: int
    leaked: float
    """Share of the test examples whose document the probe was trained on."""


def check_transfer(config: ProbeConfig, sets: Sequence[Examples]) -> None:
    """Refuse to test transfer where no two sets of examples have the same classes.

    Raises
    ------
    InvalidProbe
        There is nothing to transfer to.
    """
    if any(_alike(a, b) for a in sets for b in sets if a is not b):
        return
    shown = "; ".join(f"{one.name}: {_asked(one)}" for one in sets)
    raise InvalidProbe(
        f"transfer is asked for, and no two tasks predict the same: {shown}\n"
        "hint: give tasks with the same classes, or the same column of numbers; "
        "`actlake probe transfer` compares several results"
    )


def write_transfer(folder: Path, opened: Opened, config: ProbeConfig) -> None:
    """Write ``transfer.parquet``: every probe of a result on the test rows of its other tasks."""
    _write([Trained(folder, opened)], folder)


def transfer_results(results: Sequence[str | Path], out: str | Path) -> Path:
    """Test the probes of several results on each other's test rows.

    Parameters
    ----------
    results
        Folders of `train_probes`; their stores have to be where they were.
    out
        Folder of the table, the pictures and the page; it appears when it is complete.

    Raises
    ------
    InvalidProbe
        No two tasks of the results have the same classes at the same site.
    RunRecordError
        A folder is no result.
    """
    from actlake.jobs.probe.report import write_transfer_report

    trained = [_read_result(Path(result)) for result in results]
    if len({one.name for one in trained}) < len(trained):
        trained = [Trained(t.folder, t.opened, str(t.folder)) for t in trained]
    record = RunRecord.start(
        "probe-transfer",
        {"results": [str(result) for result in results], "out": str(out)},
        inputs={t.name: Input(str(t.folder), t.opened.store.fingerprint) for t in trained},
        computed_on=computed_on("cpu", threads=torch.get_num_threads()),
    )
    with whole_folder(Path(out).expanduser()) as folder:
        count = _write(trained, folder)
        if not count:
            raise InvalidProbe(
                f"The results {', '.join(map(str, results))} have no two tasks that predict the "
                "same at the same site\nhint: same classes, same pooling and offset, same sites"
            )
        write_transfer_report(folder)
        record.finish({"scores": float(count)}).save(folder)
    return Path(out)


def _read_result(folder: Path) -> Trained:
    config = from_dict(ProbeConfig, dict(RunRecord.load(folder).config))
    return Trained(folder, open_config(config), folder.name)


def _write(trained: Sequence[Trained], folder: Path) -> int:
    rows = [asdict(score) for score in transfer_scores(trained)]
    pq.write_table(pa.Table.from_pylist(rows), folder / FILE)
    return len(rows)


def transfer_scores(trained: Sequence[Trained]) -> Iterator[TransferScore]:
    """All cells, the diagonal with them; the test rows of a task are read once a site."""
    for there in trained:
        for site in there.opened.sites:
            for target in there.opened.sets:
                makers = [
                    (one, source)
                    for one in trained
                    for source in one.opened.sets
                    if site in one.opened.sites and _alike(source, target)
                ]
                if len(makers) < 2:  # only itself
                    continue
                rows = read_examples(there.opened.store, site, target, target.where(TEST))
                for one, source in makers:
                    yield from _of_source(one, source, there, target, site, rows)


def _of_source(
    one: Trained, source: Examples, there: Trained, target: Examples, site: Site, rows: Array
) -> Iterator[TransferScore]:
    leaked = _leaked(one, source, there, target)
    for path in _probes(one.folder, source, site):
        probe = Probe.load(path)
        for metric, found, baseline in score_elsewhere(probe, rows, target):
            yield TransferScore(
                trained=one.called(source),
                tested=there.called(target),
                pooling=target.pooling,
                offset=target.offset,
                site=str(site),
                layer=site.layer,
                point=site.point,
                probe=probe.probe,
                metric=metric,
                value=found.value,
                low=found.low,
                high=found.high,
                baseline=baseline,
                test_examples=len(rows),
                leaked=leaked,
            )


def _probes(folder: Path, examples: Examples, site: Site) -> list[Path]:
    table = pq.read_table(
        folder / "probes.parquet", columns=["task", "pooling", "offset", "site", "folder"]
    )
    wanted = (*examples.key[:3], str(site))
    return list(
        dict.fromkeys(
            folder / row["folder"]
            for row in table.to_pylist()
            if (row["task"], row["pooling"], row["offset"], row["site"]) == wanted
        )
    )


def _alike(a: Examples, b: Examples) -> bool:
    """Whether a probe of the one can be tested on the other."""
    same_form = (a.kind, a.pooling, a.offset) == (b.kind, b.pooling, b.offset)
    return same_form and _asked(a) == _asked(b)


def _asked(examples: Examples) -> str:
    """What is predicted, for comparison and for people."""
    if examples.kind == "regression":
        return f"numbers, {examples.task.column or examples.task.called}"
    return ", ".join(sorted(examples.classes))


def _leaked(one: Trained, source: Examples, there: Trained, target: Examples) -> float:
    """Share of test examples whose document, by its id, is among the training documents."""
    seen = _document_ids(one, source, TRAIN)
    tested = _document_ids(there, target, TEST)
    return float(np.isin(tested, seen).mean()) if len(tested) else 0.0


def _document_ids(trained: Trained, examples: Examples, split: int) -> Array:
    ids: Array = trained.opened.store.lookup.document_ids[examples.document[examples.where(split)]]
    return ids.astype(str)


def score_elsewhere(
    probe: Probe, rows: Array, target: Examples
) -> Iterator[tuple[str, Interval, float]]:
    """Scores of a probe on the test examples of a task that it may not know.

    Classes are compared by name, so that their order may differ.

    Yields
    ------
    Metric (of classes accuracy and auroc, of several labels their mean
    accuracy, of numbers r2), its interval over groups of documents, and the baseline.
    """
    true = target.targets[target.where(TEST)]
    training = target.targets[target.where(TRAIN)]
    group = np.unique(target.group[target.where(TEST)], return_inverse=True)[1]
    if target.kind == "multilabel":
        order = [probe.classes.index(name) for name in target.classes]
        right = (probe.predict(rows)[:, order] == true).mean(axis=1)
        base = float((true == (training.mean(axis=0) > 0.5)).mean())
        yield "accuracy", jackknife_mean(np.bincount(group, right), np.bincount(group)), base
        return
    test: ClassTest | NumberTest
    if target.kind == "regression":
        spread = float(training.var())
        test = NumberTest(probe.predict(rows), true, group, float(training.mean()), spread, spread)
    else:
        order = [probe.classes.index(name) for name in target.classes]
        prior = np.bincount(training, minlength=len(order)) / len(training)
        test = ClassTest(probe.predict_proba(rows)[:, order], true, group, prior)
    found, baseline = test.intervals(), test.baseline()
    for metric in METRICS:
        if metric in found:
            yield metric, found[metric], baseline[metric]


def main(arguments: Sequence[str]) -> int:
    """Run ``actlake probe transfer``; its exit status."""
    parser = argparse.ArgumentParser(
        prog="actlake probe transfer",
        description="Test the probes of some results on the test rows of the others, at all sites "
        "that they share.",
        epilog="examples:\n"
        "  actlake probe transfer runs/probe-films runs/probe-products --out runs/transfer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", help="folders of `actlake probe`")
    parser.add_argument("--out", required=True, help="folder of the matrix")
    options = parser.parse_args(arguments)
    folder = transfer_results(options.results, options.out)
    say(f"The report is {folder / 'report.html'}")
    return 0
