"""Rows of huge norm are left out of SAEs and probes, and counted; of maps see their own tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlake.jobs.cli import run
from actlake.jobs.massive_rows import find_massive, less, variance_of_top, without_massive
from actlake.jobs.probe import ProbeConfig, TaskConfig, train_probes
from actlake.jobs.probe.opening import open_config as open_probes
from actlake.jobs.sae.config import EvaluationConfig, ReportConfig, SAEConfig, SAESpec
from actlake.jobs.sae.data import held_out_batches, site_facts, training_batches
from actlake.jobs.sae.job import plan_saes, train_saes
from actlake.jobs.sae.opening import open_config as open_saes
from actlake.jobs.whole_contexts import contexts_of_split
from actlake.platform.tracking import TrackingConfig
from actlake.storage import (
    ActivationStore,
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    open_store,
    write_store,
)
from actlake.storage.moments import Moments

DIM, DOCUMENTS, LENGTH = 8, 60, 32
POST, NEXT = Site(0), Site(1)
UNTRACKED = TrackingConfig(wandb="disabled")


class Uneven:
    """1,920 rows of two sites, of which a few are a hundred times as long at one of the two."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.split = np.repeat([("train", "test")[d % 3 == 2] for d in range(DOCUMENTS)], LENGTH)
        position = np.tile(np.arange(LENGTH, dtype=np.int32), DOCUMENTS)
        ids = rng.integers(1, 50, DOCUMENTS * LENGTH).astype(np.int32)
        self.kept = position > 0
        self.mark = rng.integers(0, 2, len(ids))
        self.acts = {
            site: (rng.normal(size=(len(ids), DIM)) + 2 + self.mark[:, None]).astype(np.float32)
            for site in (POST, NEXT)
        }
        drawn = rng.permutation(np.flatnonzero(self.kept))
        self.massive = {POST: np.sort(drawn[:9]), NEXT: np.sort(drawn[9:14])}
        for site, rows in self.massive.items():
            self.acts[site][rows] *= 100
        documents = [
            Document(f"d{d}", "made", str(self.split[d * LENGTH]), f"text {d}", {})
            for d in range(DOCUMENTS)
        ]
        contexts = [
            Context(ids[d * LENGTH :][:LENGTH], np.full(LENGTH, d), position[:LENGTH],
                    documents[d].split)
            for d in range(DOCUMENTS)
        ]  # fmt: skip
        write_store(
            folder, [*documents, *contexts], self.acts,
            provenance=Provenance(model={"name": "made", "revision": "0"}),
            splits=("test", "train"), context_length=LENGTH,
            geometry=Geometry(unit_rows=256, chunk_bytes=64 * 4 * DIM),
        )  # fmt: skip
        self.folder = folder
        self.store.attach_labels(
            "words", {"row": np.arange(len(ids)), "mark": self.mark}, key="row"
        )

    @property
    def store(self) -> ActivationStore:
        return open_store(self.folder)

    def rows(self, split: str, *sites: Site) -> np.ndarray:
        """Rows of a split that are massive at none of some sites."""
        kept = self.kept & (self.split == split)
        for site in sites:
            kept[self.massive[site]] = False
        return np.flatnonzero(kept)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Uneven:
    return Uneven(tmp_path_factory.mktemp("uneven") / "store")


@pytest.fixture
def config(uneven: Uneven, tmp_path: Path) -> SAEConfig:
    return SAEConfig(
        store=str(uneven.folder), out=str(tmp_path / "out"),
        sae=SAESpec(site=POST, d_sae=16, options={"k": 4}), batch_rows=32, threads=1, device="cpu",
        evaluation=EvaluationConfig(rows=10_000, every_steps=None),
        report=ReportConfig(latents=0), tracking=UNTRACKED,
    )  # fmt: skip


def test_saes_are_trained_and_tested_without_massive_rows_of_the_sites_they_read(
    config: SAEConfig, uneven: Uneven
) -> None:
    for sites, given in (
        ((POST,), config),
        ((POST, NEXT), replace(config, sae=SAESpec(sites=(POST, NEXT), options={"k": 4}))),
        ((), replace(config, max_norm=None)),
    ):
        opened = open_saes(given)
        for split, make in (("train", training_batches), ("test", held_out_batches)):
            options: dict[str, Any] = {"rows_per_batch": 1} if split == "train" else {}
            batches = make(uneven.store, opened.specs, given, chosen=opened.rows, **options)
            rows = np.concatenate([next(batches).rows for _ in range(batches.steps_per_epoch)])
            assert sorted(rows) == uneven.rows(split, *sites).tolist()


def test_scale_mean_and_variance_are_of_the_rows_that_are_left(
    config: SAEConfig, uneven: Uneven, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the stored statistics less the few rows: not from all rows read again.
    monkeypatch.setattr("actlake.jobs.sae.data.moments_of_rows", None)
    opened = open_saes(config)
    batches = training_batches(uneven.store, opened.specs, config, chosen=opened.rows)

    facts = site_facts(batches, normalise=True, chosen=opened.rows)[POST]

    rows = uneven.acts[POST][uneven.rows("train", POST)].astype(np.float64)
    np.testing.assert_allclose(facts.mean, rows.mean(0), rtol=1e-9)
    assert facts.variance == pytest.approx(rows.var(0).sum(), rel=1e-9)
    expected = DIM**0.5 / np.linalg.norm(rows, axis=1).mean()
    assert facts.scale == pytest.approx(expected, rel=1e-9)


def test_the_plan_and_the_report_of_an_sae_say_how_many_rows_were_left_out(
    config: SAEConfig, uneven: Uneven
) -> None:
    plan = str(plan_saes(config))
    result = train_saes(config)

    assert "massive   9 of 1,860 rows left out, with norms above 10 times the median" in plan
    page = result.report.read_text()
    assert "9 of 1,860 rows left out" in page
    share = variance_of_top(uneven.store, POST, split="train")
    assert f"hold {share:.0%} of the variance at {POST}" in page


def test_the_share_of_variance_is_that_of_the_rows_with_the_largest_norms(uneven: Uneven) -> None:
    rows = np.flatnonzero(uneven.kept)
    acts = uneven.acts[NEXT][rows].astype(np.float64)
    squares = np.square(acts - acts.mean(0)).sum(1)
    top = np.argsort(-np.linalg.norm(acts, axis=1))[: round(0.001 * len(rows))]

    found = variance_of_top(uneven.store, NEXT)

    assert found == pytest.approx(squares[top].sum() / squares.sum(), rel=1e-6)
    assert found > 0.3


def test_info_shows_of_each_site_how_unevenly_its_variance_is_held(
    uneven: Uneven, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(uneven.folder)]) == 0

    said = capsys.readouterr().out
    for site in (POST, NEXT):
        assert f"{variance_of_top(uneven.store, site):.0%} at {site}" in said


def test_positions_of_massive_rows_keep_what_the_model_computes(uneven: Uneven) -> None:
    massive = find_massive(uneven.store, [POST], split="train", max_norm=10)
    chosen = without_massive(uneven.store, None, massive)

    contexts = contexts_of_split(uneven.store, "train", 1000, chosen=chosen)

    assert sum(int(one.allowed.sum()) for one in contexts) == len(uneven.rows("train", POST))


def test_probes_are_fitted_and_tested_on_rows_that_are_massive_at_none_of_their_sites(
    uneven: Uneven, tmp_path: Path
) -> None:
    config = ProbeConfig(
        store=str(uneven.folder), out=str(tmp_path / "out"),
        tasks=(TaskConfig(labels="words", column="mark"),), probes=("logistic",), controls=(),
        learning_curve=(), penalties=(10.0,), threads=1, tracking=UNTRACKED,
    )  # fmt: skip

    result = train_probes(config)

    (examples,) = open_probes(config).sets
    left = [*uneven.rows("train", POST, NEXT), *uneven.rows("test", POST, NEXT)]
    assert sorted(examples.rows) == sorted(left)
    (everything,) = open_probes(replace(config, rows=replace(config.rows, max_norm=None))).sets
    assert len(everything) == uneven.kept.sum()
    page = result.report.read_text()
    assert "14 of 1,860 rows left out" in page
    assert "14 with a norm above 10 times the median" in page


def test_moments_less_a_part_are_those_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 6)) + 5
    rows[:7] *= 300

    found = less(Moments.of(rows), Moments.of(rows[:7]))

    exact = Moments.of(rows[7:])
    assert found.count == 493
    np.testing.assert_allclose(found.mean, exact.mean, rtol=1e-10)
    np.testing.assert_allclose(found.m2, exact.m2, rtol=1e-8)
    assert found.mean_norm == pytest.approx(exact.mean_norm, rel=1e-10)
