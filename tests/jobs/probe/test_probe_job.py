"""The whole job on a store whose rows are known, against scikit-learn on the same rows."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from actlake.jobs.probe import (
    Probe,
    ProbeConfig,
    ProbeResult,
    RowsConfig,
    StoreSplits,
    TaskConfig,
    plan_probes,
    train_probes,
)
from actlake.jobs.probe.errors import InvalidProbe, ProbeNotFound
from actlake.jobs.probe.gathering import read_examples
from actlake.jobs.probe.opening import open_config
from actlake.platform.cluster import (
    ClusterConfig,
    NotEnoughResources,
    ResourcesConfig,
    WorkStopped,
    session,
)
from actlake.storage import Site, open_store
from actlake.storage.location import locate

Make = Callable[..., ProbeConfig]
STORE_SPLITS = StoreSplits(validate="validation")
DEEP = Site(2)


@pytest.fixture(scope="module")
def outcome(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    """One run of five tasks at two sites, with its report left out."""
    from actlake.platform.tracking import TrackingConfig

    columns = ("mark", "flag", "height", "names")
    config = ProbeConfig(
        store=str(made_folder),
        out=str(tmp_path_factory.mktemp("outcome") / "out"),
        tasks=tuple(TaskConfig(labels="words", column=name) for name in columns),
        sites=("resid_post.0", "resid_post.2"),
        penalties=(1.0, 100.0),
        alphas=(1.0, 100.0),
        learning_curve=(0.3,),
        rank=1,
        splits=STORE_SPLITS,
        threads=1,
        tracking=TrackingConfig(wandb="disabled"),
    )
    return train_probes(config)


def table(result: ProbeResult, name: str, **where: object) -> list[dict[str, object]]:
    rows = pq.read_table(result.folder / f"{name}.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def score(result: ProbeResult, metric: str, **where: object) -> dict[str, object]:
    where = {"site": str(DEEP), "label": None, "metric": metric, **where}
    (row,) = table(result, "scores", **where)
    return row


def test_a_logistic_probe_is_scikit_learns_on_standardised_rows(outcome, made) -> None:
    probe = Probe.load(outcome.probe("mark", DEEP))
    train, test = made.rows("train"), made.rows("test")
    x = made.acts[DEEP].astype(np.float64)
    scaler = StandardScaler().fit(x[train])

    (about,) = table(outcome, "probes", task="mark", site=str(DEEP), probe="logistic")
    theirs = LogisticRegression(C=1 / about["penalty"], tol=1e-10, max_iter=10_000).fit(
        scaler.transform(x[train]), made.mark[train]
    )

    raw = theirs.coef_ / scaler.scale_
    assert np.linalg.norm(probe.weight - raw) < 1e-3 * np.linalg.norm(raw)
    wrong = theirs.predict_proba(scaler.transform(x[test])) - probe.predict_proba(x[test])
    assert np.abs(wrong).max() < 1e-3
    accuracy = theirs.score(scaler.transform(x[test]), made.mark[test])
    assert score(outcome, "accuracy", task="mark", probe="logistic")["value"] == pytest.approx(
        accuracy, abs=0.002
    )


def test_a_ridge_probe_is_scikit_learns_on_standardised_rows(outcome, made) -> None:
    probe = Probe.load(outcome.probe("height", DEEP))
    train, test = made.rows("train"), made.rows("test")
    x = made.acts[DEEP].astype(np.float64)
    scaler = StandardScaler().fit(x[train])

    (about,) = table(outcome, "probes", task="height", site=str(DEEP), probe="ridge")
    theirs = Ridge(alpha=about["penalty"]).fit(scaler.transform(x[train]), made.height[train])

    assert np.abs(probe.predict(x[test]) - theirs.predict(scaler.transform(x[test]))).max() < 1e-3
    r2 = theirs.score(scaler.transform(x[test]), made.height[test])
    assert score(outcome, "r2", task="height")["value"] == pytest.approx(r2, abs=1e-3)


def test_class_metrics_are_scikit_learns(outcome, made) -> None:
    probe = Probe.load(outcome.probe("mark", DEEP))
    test = made.rows("test")
    probability = probe.predict_proba(made.acts[DEEP][test])
    said = probability.argmax(axis=1)

    found = {
        name: score(outcome, name, task="mark", probe="logistic")["value"]
        for name in ("macro_f1", "auroc", "log_loss_bits")
    }

    true = made.mark[test]
    assert found["macro_f1"] == pytest.approx(f1_score(true, said, average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(
        roc_auc_score(true, probability, multi_class="ovr"), abs=1e-4
    )
    bits = -np.log2(probability[np.arange(len(test)), true]).mean()
    assert found["log_loss_bits"] == pytest.approx(bits, abs=1e-4)


def test_deeper_layers_and_true_labels_score_higher(outcome) -> None:
    for metric, task in (("accuracy", "mark"), ("v_information_bits", "flag"), ("r2", "height")):
        probe = "ridge" if task == "height" else "logistic"
        deep = score(outcome, metric, task=task, probe=probe)
        shallow = score(outcome, metric, task=task, probe=probe, site="resid_post.0")

        assert deep["value"] > shallow["value"]
        assert deep["low"] < deep["value"] < deep["high"]
        assert deep["shuffled"] < deep["value"] - 0.2


def test_shuffled_labels_hold_no_information(outcome) -> None:
    for task in ("mark", "flag"):
        row = score(outcome, "v_information_bits", task=task, probe="logistic")
        assert row["shuffled"] == pytest.approx(0, abs=0.05)
        accuracy = score(outcome, "accuracy", task=task, probe="logistic")
        assert accuracy["shuffled"] == pytest.approx(accuracy["baseline"], abs=0.12)


def test_selectivity_is_the_score_less_the_control_tasks(outcome) -> None:
    row = score(outcome, "accuracy", task="mark", probe="logistic")

    assert row["selectivity"] == pytest.approx(row["value"] - row["control"])
    assert row["selectivity"] > 0.2


def test_multilabel_has_a_row_a_label_and_their_mean(outcome, made) -> None:
    rows = table(outcome, "scores", task="names", probe="logistic", site=str(DEEP))
    accuracy = {row["label"]: row["value"] for row in rows if row["metric"] == "accuracy"}

    assert set(accuracy) == {"flag", "m0", "m1", "m2", None}
    each = [accuracy[name] for name in ("flag", "m0", "m1", "m2")]
    assert accuracy[None] == pytest.approx(np.mean(each))
    probe = Probe.load(outcome.probe("names", DEEP))
    test = made.rows("test")
    said = probe.predict(made.acts[DEEP][test])
    assert (said[:, 0] == (made.flag[test] == 1)).mean() == pytest.approx(accuracy["flag"])


def test_confusion_and_calibration_count_every_test_row(outcome, made) -> None:
    for name in ("confusion", "calibration"):
        rows = table(outcome, name, task="mark", probe="lda", site=str(DEEP))
        assert sum(row["count"] for row in rows) == len(made.rows("test"))


def test_a_learning_curve_grows_to_the_whole(outcome) -> None:
    where = {"task": "mark", "probe": "logistic", "site": str(DEEP), "metric": "log_loss_bits"}
    less, whole = sorted(table(outcome, "learning_curve", **where), key=lambda row: row["share"])

    assert (less["share"], whole["share"]) == (0.3, 1.0)
    assert less["train_rows"] < 0.5 * whole["train_rows"]
    assert less["value"] > whole["value"]
    assert whole["value"] == score(outcome, "log_loss_bits", task="mark", probe="logistic")["value"]


def test_a_probe_of_rank_one_has_weights_on_one_line(outcome) -> None:
    probe = Probe.load(outcome.probe("mark", DEEP, "logistic_rank1"))

    values = np.linalg.svd(probe.weight, compute_uv=False)
    assert values[1] < 1e-4 * values[0]
    assert not list(outcome.folder.glob("probes/flag/*/*/logistic_rank1"))


def test_a_difference_of_means_points_from_one_mean_to_the_other(outcome, made) -> None:
    probe = Probe.load(outcome.probe("flag", DEEP, "mean_difference"))
    train = made.rows("train")
    x, flag = made.acts[DEEP][train], made.flag[train]
    way = x[flag == 1].mean(axis=0) - x[flag == 0].mean(axis=0)

    assert probe.classes == ("False", "True")
    assert float(probe.direction("True") @ way / np.linalg.norm(way)) == pytest.approx(1, abs=1e-5)
    assert np.allclose(probe.direction("False"), -probe.direction("True"))


def test_torch_says_what_numpy_says(outcome, made) -> None:
    rows = made.acts[DEEP][made.rows("test")[:40]]
    for task in ("mark", "flag", "names", "height"):
        probe = Probe.load(outcome.probe(task, DEEP))
        ours, theirs = probe.predict(rows), probe.predict(torch.from_numpy(rows)).numpy()
        if task in ("mark", "flag"):
            theirs = np.array(probe.classes)[theirs]
            chances = probe.predict_proba(torch.from_numpy(rows)).numpy()
            assert np.allclose(chances, probe.predict_proba(rows), atol=1e-3)
        assert np.allclose(ours, theirs, atol=1e-3) if task == "height" else (ours == theirs).all()


def test_a_probe_refuses_rows_of_another_width(outcome) -> None:
    probe = Probe.load(outcome.probe("mark", DEEP))

    with pytest.raises(InvalidProbe, match="reads rows of 10 dimensions, and these have 3"):
        probe.predict(np.zeros((2, 3)))
    with pytest.raises(InvalidProbe, match="has no class 'red'"):
        probe.direction("red")


def test_a_damaged_probe_is_named(outcome, tmp_path: Path) -> None:
    with pytest.raises(ProbeNotFound, match="no probe"):
        Probe.load(tmp_path)
    (tmp_path / "probe.json").write_text("{}")
    with pytest.raises(ProbeNotFound, match="damaged"):
        Probe.load(tmp_path)
    with pytest.raises(ProbeNotFound, match="There are 0 probes"):
        outcome.probe("mark", "resid_post.1")


def test_a_task_with_brackets_in_its_name_is_not_its_neighbour(outcome, tmp_path: Path) -> None:
    for task in ("mark[1]", "mark1"):
        (tmp_path / "probes" / task / "rows" / "resid_post.2" / "ridge").mkdir(parents=True)
    result = replace(outcome, folder=tmp_path)

    assert result.probe("mark[1]", "resid_post.2").parents[2].name == "mark[1]"


def test_the_score_that_chooses_a_layer_is_that_of_the_validation_rows(outcome, made) -> None:
    probe = Probe.load(outcome.probe("mark", DEEP))
    rows = made.rows("validation")

    right = probe.predict(made.acts[DEEP][rows]) == made.mark[rows].astype(str)

    row = score(outcome, "accuracy", task="mark", probe="logistic")
    assert row["validation"] == pytest.approx(right.mean())
    assert row["validation"] != row["value"]


def test_the_record_says_what_was_done(outcome) -> None:
    record = json.loads((outcome.folder / "run.json").read_text())

    assert record["job"] == "probe"
    best = record["metrics"]["mark/token/logistic/best_accuracy"]
    lines = table(outcome, "scores", task="mark", probe="logistic", metric="accuracy")
    chosen = max(lines, key=lambda row: row["validation"])
    assert best == chosen["value"]
    assert record["metrics"]["mark/token/logistic/best_accuracy_layer"] == chosen["layer"]
    assert (outcome.folder / "report.html").is_file()
    assert not list(outcome.folder.parent.glob(".out.sites/*"))


# Streaming, workers, resuming.


def quick(make_config: Make, **options: object) -> ProbeConfig:
    given = {
        "sites": ("resid_post.1", "resid_post.2"), "learning_curve": (), "splits": STORE_SPLITS,
        "probes": ("logistic", "lda", "mean_difference"), **options,
    }  # fmt: skip
    return make_config(**given)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has tests of its own, and takes seconds."""
    monkeypatch.setattr("actlake.jobs.probe.report.write_report", lambda folder, **_: None)


def scores_of(result: ProbeResult) -> np.ndarray:
    return np.array([row["value"] for row in table(result, "scores")])


def test_streamed_rows_give_the_probes_of_rows_in_memory(
    make_config, tmp_path, no_report, monkeypatch
) -> None:
    plain = quick(make_config, learning_curve=(0.5,))
    held = train_probes(plain)
    monkeypatch.setattr("actlake.jobs.probe.opening.CHUNK", 100)
    monkeypatch.setattr(
        "actlake.jobs.probe.opening._what_fits",
        lambda store, sites, sets, allowed: (False, (True,), 1),
    )

    streamed = train_probes(replace(plain, out=str(tmp_path / "streamed")))

    assert {row["streamed"] for row in table(streamed, "probes")} == {True}
    assert np.allclose(scores_of(streamed), scores_of(held), atol=2e-3)
    one, other = (Probe.load(r.probe("mark", DEEP)).weight for r in (held, streamed))
    assert np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(one)


def test_rows_that_do_not_fit_are_streamed(make_config, monkeypatch) -> None:
    from actlake.jobs.probe import opening

    opened = open_config(quick(make_config))
    monkeypatch.setattr(opening, "CHUNK", 100)
    row_bytes = opened.store.schema_of(opened.sites[0]).dim * 4
    (examples,) = opened.sets
    needed = len(examples) * row_bytes * 3

    assert opening._what_fits(opened.store, opened.sites, opened.sets, needed * 2)[0::2] == (
        True,
        2,
    )
    assert opening._what_fits(opened.store, opened.sites, opened.sets, needed - 1)[:2] == (
        False,
        (False,),
    )
    assert opening._what_fits(opened.store, opened.sites, opened.sets, row_bytes)[:2] == (
        False,
        (True,),
    )


@pytest.mark.parametrize("sites", [("resid_post.1",), ("resid_post.1", "resid_post.2")])
def test_probes_are_fitted_in_the_threads_that_are_asked_for(
    make_config, no_report, monkeypatch, pools, sites
) -> None:
    from actlake.jobs.probe import site_work

    real, seen, before = site_work.fit_examples, [], pools()

    def noting(*arguments, **options):
        seen.append(set(pools().values()))
        return real(*arguments, **options)

    monkeypatch.setattr(site_work, "fit_examples", noting)

    train_probes(quick(make_config, sites=sites, threads=6))

    assert seen == [{6 // len(sites)}] * len(sites)
    assert pools() == before


def test_a_finished_run_is_not_made_again(make_config, no_report) -> None:
    config = quick(make_config, sites=("resid_post.1",))
    first = train_probes(config)

    again = train_probes(replace(config, threads=2))

    assert not first.was_there
    assert again.was_there
    assert again.metrics == pytest.approx(first.metrics)


def test_a_killed_run_goes_on_with_the_sites_that_are_left(
    make_config, no_report, monkeypatch
) -> None:
    from actlake.jobs.probe import job

    config = quick(make_config)
    real, made_parts = job.make_part, []

    class KilledError(Exception):
        pass

    def dies(parts, config, opened, heads, site) -> None:
        if site == DEEP:
            raise KilledError
        real(parts, config, opened, heads, site)

    monkeypatch.setattr(job, "make_part", dies)
    with pytest.raises(KilledError):
        train_probes(config)
    assert plan_probes(config).done == 1
    assert not Path(config.out).exists()

    def counts(parts, config, opened, heads, site) -> None:
        made_parts.append(site)
        real(parts, config, opened, heads, site)

    monkeypatch.setattr(job, "make_part", counts)
    result = train_probes(config)

    assert made_parts == [DEEP]
    assert {row["site"] for row in table(result, "scores")} == {"resid_post.1", "resid_post.2"}


@pytest.mark.ray
def test_two_workers_of_which_one_is_killed_find_what_one_finds(
    make_config, tmp_path, no_report, kills_one
) -> None:
    cluster = ClusterConfig(address="local", num_cpus=2, object_store_mb=100)
    alone = train_probes(quick(make_config))

    with kills_one("ray::compute_part"):
        both = train_probes(
            quick(make_config, out=str(tmp_path / "two"), workers=2, cluster=cluster)
        )

    assert np.array_equal(scores_of(both), scores_of(alone))


@pytest.mark.ray
def test_one_worker_on_a_joined_cluster_probes_there_with_what_it_reserves(
    make_config, tmp_path, no_report, monkeypatch
) -> None:
    alone = train_probes(quick(make_config))
    with session(ClusterConfig(address="local", num_cpus=3, object_store_mb=100)) as cluster:
        joined = ClusterConfig(address=cluster.address)
        monkeypatch.setattr("actlake.jobs.probe.job.make_part", in_the_driver)

        there = train_probes(quick(make_config, out=str(tmp_path / "there"), cluster=joined))
        with pytest.raises(NotEnoughResources, match=r"asked: 1 x \(1 CPU \+ 1 GPU\)"):
            train_probes(
                quick(make_config, out=str(tmp_path / "gpu"), cluster=joined, device="cuda")
            )

    assert np.array_equal(scores_of(there), scores_of(alone))


def in_the_driver(*arguments: object) -> None:
    raise AssertionError("a site is probed in the driver")


def test_a_result_is_found_whatever_its_workers_reserve(make_config, no_report) -> None:
    first = train_probes(quick(make_config))

    again = train_probes(quick(make_config, resources=ResourcesConfig(cpus=3, memory_mb=9)))

    assert not first.was_there
    assert again.was_there


def test_sigterm_stops_what_comes_after_the_sites_and_they_are_kept(
    make_config, no_report, monkeypatch
) -> None:
    def is_stopped(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    config = quick(make_config)
    monkeypatch.setattr("actlake.jobs.probe.markers.write_markers", is_stopped)

    with pytest.raises(WorkStopped, match="the same command goes on"):
        train_probes(config)

    assert not Path(config.out).exists()
    assert plan_probes(config).done == 2


def test_a_store_in_a_bucket_gives_the_scores_of_a_folder(
    make_config, made_folder, tmp_path, no_report, bucket
) -> None:
    copy = locate(f"{bucket.url}/store")
    for path in sorted(made_folder.rglob("*")):
        if path.is_file():
            copy.write(str(path.relative_to(made_folder)), [path.read_bytes()])
    options = {"sites": ("resid_post.2",), "probes": ("logistic",)}

    local = train_probes(quick(make_config, **options))
    remote = train_probes(
        quick(make_config, store=copy.url, out=str(tmp_path / "remote"), **options)
    )

    assert np.array_equal(scores_of(remote), scores_of(local))


def test_a_plan_reads_no_activations_and_says_what_is_there(make_config, made) -> None:
    plan = plan_probes(quick(make_config))

    assert plan.sets[0].rows == {
        name: len(made.rows(split))
        for name, split in (("train", "train"), ("validate", "validation"), ("test", "test"))
    }
    assert "mark/token: multiclass of 3 classes" in str(plan)


# Pooling, offsets, splits.


def test_pooling_takes_the_last_row_or_the_mean_of_a_document(make_config, made, made_folder):
    task = TaskConfig(column="topic")
    config = make_config(task, pooling=("last", "mean"), rows=RowsConfig(least_per_class=1))
    last, mean = open_config(config).sets
    store = open_store(made_folder)

    for one in (last, mean):
        found = read_examples(store, DEEP, one)
        for place in (0, len(one) - 1):
            rows = np.flatnonzero((made.document == one.document[place]) & made.kept)
            own = made.acts[DEEP][rows]
            expected = own[-1] if one is last else own.mean(axis=0)
            assert found[place] == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert (
                one.classes[one.targets[place]]
                == made.documents[one.document[place]].columns["topic"]
            )


def test_an_offset_predicts_the_label_of_a_later_token(make_config, made) -> None:
    (ahead,) = open_config(make_config(offsets=(2,))).sets

    assert (made.mark[ahead.rows + 2] == ahead.targets).all()
    assert (made.document[ahead.rows + 2] == made.document[ahead.rows]).all()
    assert made.kept[ahead.rows].all()


def test_no_document_is_in_two_splits(make_config) -> None:
    (one,) = open_config(make_config()).sets

    homes = {document: set() for document in one.document.tolist()}
    for document, split in zip(one.document.tolist(), one.split.tolist(), strict=True):
        homes[document].add(split)
    assert {len(splits) for splits in homes.values()} == {1}
    assert set(one.split.tolist()) == {0, 1, 2}


def test_splits_by_entity_leak_nothing_and_others_are_reported(make_config) -> None:
    from actlake.jobs.probe import DrawnSplits

    task = TaskConfig(column="topic", entity="town")
    rare = RowsConfig(least_per_class=1)
    by_document = DrawnSplits(by="document", stratify=True)
    (apart,) = open_config(make_config(task, rows=rare, splits=DrawnSplits(by="entity"))).sets
    leaky = open_config(make_config(task, rows=rare, splits=by_document))

    assert apart.leaked == 0
    assert leaky.sets[0].leaked > 0.2
    assert "have a town that is in training" in " ".join(leaky.warnings)


def test_stratified_splits_have_every_class_in_its_share(make_config) -> None:
    from actlake.jobs.probe import DrawnSplits

    splits = DrawnSplits(by="document", stratify=True, test=0.3)
    task = TaskConfig(column="topic")
    config = make_config(task, pooling=("last",), splits=splits, rows=RowsConfig(least_per_class=1))
    (one,) = open_config(config).sets

    for code in range(3):
        mine = one.targets == code
        assert (one.split[mine] == 2).mean() == pytest.approx(0.3, abs=0.05)


def test_tasks_on_the_same_documents_are_split_alike(make_config) -> None:
    from actlake.jobs.probe import DrawnSplits

    config = make_config(
        tasks=(TaskConfig(column="topic"), TaskConfig(column="topic", name="again")),
        rows=RowsConfig(least_per_class=1),
        splits=DrawnSplits(by="document"),
    )
    one, other = open_config(config).sets

    np.testing.assert_array_equal(one.document, other.document)
    np.testing.assert_array_equal(one.split, other.split)
    assert set(one.split.tolist()) == {0, 1, 2}


def test_groups_of_a_sorted_corpus_differ_no_more_than_drawn_ones() -> None:
    from actlake.jobs.probe.splits import cluster_groups
    from actlake.platform.seeds import Seeds

    document = np.repeat(np.arange(400), 5)
    label = document >= 200  # the first half is of one class, the second of the other

    group = cluster_groups(document, 20, Seeds(0))

    assert np.bincount(group).tolist() == [100] * 20
    assert len(np.unique(np.stack([document, group]), axis=1).T) == 400  # none is divided
    shares = np.array([label[group == one].mean() for one in range(20)])
    assert shares.std() == pytest.approx(0.5 / 20**0.5, rel=0.5)


def test_a_control_task_gives_a_word_type_one_label(make_config) -> None:
    from actlake.jobs.probe.controls import heads_of
    from actlake.platform.seeds import Seeds

    (one,) = open_config(make_config()).sets
    heads = heads_of(one, ("word_type", "shuffled"), Seeds(0))

    control = heads.targets[:, heads.column("word_type")]
    for word in np.unique(one.word_type)[:20]:
        assert len(set(control[one.word_type == word].tolist())) == 1
    shuffled = heads.targets[:, heads.column("shuffled")]
    for split in range(3):
        part = one.where(split)
        assert (np.bincount(shuffled[part]) == np.bincount(one.targets[part])).all()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("pooling", ["token", "last"])
def test_a_word_type_is_the_token_that_is_read(make_config, made, pooling, offset) -> None:
    task = (
        TaskConfig(labels="words", column="mark")
        if pooling == "token"
        else TaskConfig(column="topic")
    )
    rows = RowsConfig(least_per_class=1)

    config = make_config(task, pooling=(pooling,), offsets=(offset,), rows=rows)
    (one,) = open_config(config).sets

    assert (one.word_type == made.ids[one.rows]).all()
    train, test = (set(made.ids[one.rows[one.where(split)]]) for split in (0, 2))
    known = np.isin(made.ids[one.rows[one.where(2)]], list(train))
    assert one.types_seen == pytest.approx(known.mean())
    assert test


def test_there_is_no_selectivity_where_test_words_were_never_trained_on(make_config) -> None:
    # The mean over a document reads all of its tokens, and no two documents have the same.
    config = make_config(
        TaskConfig(column="topic"), pooling=("mean", "last"), sites=("resid_post.2",),
        probes=("logistic",), learning_curve=(), rows=RowsConfig(least_per_class=1),
    )  # fmt: skip

    result = train_probes(config)

    scores = pq.read_table(result.folder / "scores.parquet").to_pylist()
    seen = {
        row["pooling"]: row["types_seen"]
        for row in pq.read_table(result.folder / "probes.parquet").to_pylist()
    }
    assert seen["mean"] == 0
    for row in scores:
        if row["metric"] == "accuracy":
            assert row["control"] is not None
            assert (row["selectivity"] is None) == (seen[row["pooling"]] < 0.5)


def test_examples_are_built_the_same_from_the_same_seed(make_config) -> None:
    rows = RowsConfig(per_split=50)
    one, other = (open_config(make_config(rows=rows)).sets[0] for _ in range(2))

    assert len(one) == 150
    assert (one.rows == other.rows).all()
