"""SAEs of rows for which a predicate is true: trained, tested and shown on those alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actlake.jobs.chosen_rows import choose_rows, moments_of_rows
from actlake.jobs.sae.config import (
    CheckpointConfig,
    EvaluationConfig,
    InModelConfig,
    ReportConfig,
    SAEConfig,
    SAESpec,
)
from actlake.jobs.sae.contexts import latent_pages
from actlake.jobs.sae.data import held_out_batches, site_facts, training_batches
from actlake.jobs.sae.errors import ConfigChanged
from actlake.jobs.sae.job import plan_saes, train_saes
from actlake.jobs.sae.trained import read_sae
from actlake.jobs.whole_contexts import contexts_of_split
from actlake.platform.cluster import ClusterConfig
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Extent, Site, open_store
from actlake.storage.errors import EmptySelection, InvalidQuery

POST = Site(1)
# Half of the words, and some contexts have none of them: a context is of two documents.
WHERE = "id % 2 = 0 and document_number % 8 < 5"


@pytest.fixture
def config(spoken, tmp_path) -> SAEConfig:
    return SAEConfig(
        store=str(spoken.folder),
        out=str(tmp_path / "out"),
        sae=SAESpec(site=POST, d_sae=32, options={"k": 4}, dead_after_rows=200),
        where=WHERE,
        batch_rows=32,
        epochs=2,
        log_every=5,
        threads=1,
        device="cpu",
        checkpoint=CheckpointConfig(every_steps=5),
        evaluation=EvaluationConfig(rows=10_000, every_steps=5),
        report=ReportConfig(latents=0),
        tracking=TrackingConfig(wandb="disabled"),
    )


def is_true(spoken) -> np.ndarray:
    """(contexts, LENGTH) bool, of `WHERE`, without a line of ours."""
    return (spoken.ids % 2 == 0) & (spoken.documents % 8 < 5)


def wanted_rows(spoken, split: str) -> np.ndarray:
    rows = np.zeros_like(spoken.allowed)
    contexts = spoken.contexts(split)
    rows[contexts] = (spoken.allowed & is_true(spoken))[contexts]
    return np.flatnonzero(rows)


def test_training_and_held_out_rows_are_those_that_are_chosen(config, spoken) -> None:
    store = spoken.store()
    chosen = choose_rows(store, WHERE)

    for split, opened in (
        ("train", training_batches(store, [config.sae], config, rows_per_batch=1, chosen=chosen)),
        ("test", held_out_batches(store, [config.sae], config, chosen=chosen)),
    ):
        rows = np.concatenate([next(opened).rows for _ in range(opened.steps_per_epoch)])
        assert sorted(rows) == wanted_rows(spoken, split).tolist()


def test_scale_mean_and_variance_are_those_of_the_chosen_training_rows(config, spoken) -> None:
    store = spoken.store()
    rows = spoken.acts[POST][wanted_rows(spoken, "train")].astype(np.float64)

    batches = training_batches(store, [config.sae], config, chosen=choose_rows(store, WHERE))
    facts = site_facts(batches, normalise=True)[POST]

    np.testing.assert_allclose(facts.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(facts.variance, rows.var(0).sum(), rtol=1e-12)
    np.testing.assert_allclose(facts.scale, 4 / np.linalg.norm(rows, axis=1).mean(), rtol=1e-12)


def test_statistics_of_very_many_rows_are_of_some_that_lie_evenly_among_them(spoken) -> None:
    store = spoken.store()
    chosen = choose_rows(store, WHERE)

    found = moments_of_rows(store, POST, chosen.rows, most=50)

    rows = np.flatnonzero(is_true(spoken))
    some = rows[np.linspace(0, len(rows) - 1, 50).round().astype(int)]
    assert found.count == 50 < len(rows)
    np.testing.assert_allclose(found.mean, spoken.acts[POST][some].mean(0, dtype=float), rtol=1e-6)


def test_scores_are_of_the_chosen_held_out_rows(config, spoken) -> None:
    result = train_saes(config)

    sae = read_sae(str(result.folder(config.sae)))
    x = torch.from_numpy(spoken.acts[POST][wanted_rows(spoken, "test")]).double()
    made = sae(x.float()).double()
    fvu = float((x - made).square().sum() / (x - x.mean(0)).square().sum())
    (name,) = (spec.name for spec in result.specs)
    assert result.metrics[f"{name}/held_out/fvu"] == pytest.approx(fvu, rel=1e-5)
    assert sae.metadata["rows_where"] == WHERE


def test_the_report_and_the_plan_say_how_many_rows_of_each_split_are_left(config, spoken) -> None:
    counts = {split: len(wanted_rows(spoken, split)) for split in ("test", "train")}
    words = f"test {counts['test']:,} of "

    plan = plan_saes(config)
    page = train_saes(config).report.read_text(encoding="utf-8")

    assert f"where     {WHERE}: {words}" in str(plan)
    assert f"train {counts['train']:,} of " in str(plan)
    assert plan.rows_of_epoch == counts["train"]
    assert plan.held_out_rows == counts["test"]
    assert "rows where" in page
    assert words in page


def test_a_training_goes_on_only_with_the_same_rows(config) -> None:
    train_saes(config)

    assert train_saes(config).was_there
    with pytest.raises(ConfigChanged, match=r"where: stored .*asked .*id % 2 = 1"):
        train_saes(replace(config, where=WHERE.replace("= 0", "= 1")))
    with pytest.raises(ConfigChanged, match=r"where: stored .*asked null"):
        train_saes(replace(config, where=None))


def test_labels_that_are_others_now_are_another_training(config, spoken, tmp_path) -> None:
    folder, rows = tmp_path / "store", np.arange(spoken.ids.size)
    shutil.copytree(spoken.folder, folder)
    store = open_store(folder)
    store.attach_labels("mine", {"row": rows, "side": rows % 2}, key="row")
    labelled = replace(config, store=str(folder), where="side = 1")
    train_saes(labelled)

    store.attach_labels("mine", {"row": rows, "side": rows % 3}, key="row", replace=True)

    with pytest.raises(ConfigChanged, match="chosen_rows: stored"):
        train_saes(labelled)


def test_in_the_model_only_chosen_positions_are_replaced(spoken, config) -> None:
    store = spoken.store()

    contexts = contexts_of_split(store, "test", 100, chosen=choose_rows(store, WHERE))

    rows = spoken.allowed & is_true(spoken)
    of_test = [c for c in spoken.contexts("test") if is_true(spoken)[c].any()]
    assert len(of_test) < len(spoken.contexts("test"))
    assert [context.ids.tolist() for context in contexts] == spoken.ids[of_test].tolist()
    np.testing.assert_array_equal([context.allowed.numpy() for context in contexts], rows[of_test])


def test_the_score_in_the_model_is_of_chosen_positions(config, spoken) -> None:
    asked = replace(config.evaluation, in_model=InModelConfig(contexts=100))

    result = train_saes(replace(config, evaluation=asked))

    (name,) = (spec.name for spec in result.specs)
    assert result.metrics[f"{name}/in_model/num_spliced"] == len(wanted_rows(spoken, "test"))


class EvenAndOdd:
    """One latent that is as active in every row."""

    d_sae = 1

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 1)

    def reconstruct(self, x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        return x


def test_latents_are_shown_in_chosen_rows_and_counted_over_them(spoken) -> None:
    store = spoken.store()

    (page,) = latent_pages(
        EvenAndOdd(), store, [POST], [0], rows=10**6, contexts=99, chosen=choose_rows(store, WHERE)
    )

    wanted = wanted_rows(spoken, "test")
    assert page.density == 1
    assert page.counts.sum() == len(wanted)
    assert {shown.row for shown in page.contexts} <= set(wanted.tolist())
    assert len(page.contexts) == len({store.contexts_of(Extent(r, r + 1)) for r in wanted.tolist()})


@pytest.mark.parametrize(
    ("where", "kind", "words"),
    [
        ("id > 100000", EmptySelection, r"true of none of .*: test 0 of [\d,]+ rows, train 0 of"),
        ("split = 'train'", EmptySelection, r"'test' \(evaluation.split\) is left .*: test 0 of"),
        ("split = 'test'", EmptySelection, r"'train' \(split\) is left .*train 0 of"),
        ("colour = 'red'", InvalidQuery, "hint"),
    ],
)
def test_a_predicate_that_leaves_nothing_is_refused_before_any_work(
    config, where, kind, words
) -> None:
    for deed in (plan_saes, train_saes):
        with pytest.raises(kind, match=words):
            deed(replace(config, where=where))

    assert not Path(config.out).exists()


@pytest.mark.ray
def test_two_workers_train_on_the_chosen_rows_as_one_does(config, tmp_path) -> None:
    one = train_saes(replace(config, out=str(tmp_path / "one")))

    two = train_saes(
        replace(
            config,
            out=str(tmp_path / "two"),
            workers=2,
            spread="saes",
            saes=({"seed": 0}, {"seed": 1}),
            cluster=ClusterConfig(address="local", num_cpus=2, object_store_mb=100),
        )
    )

    (name,) = (spec.name for spec in one.specs)
    first = two.specs[0].name
    ours, theirs = (
        load_file(folder / "sae_weights.safetensors")
        for folder in (one.folder(str(name)), two.folder(str(first)))
    )
    assert all(torch.equal(ours[part], theirs[part]) for part in ours)
