"""The job from config to report: what it writes, finds again, and refuses, in which words."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from actlake.jobs.cli import run
from actlake.jobs.transport import (
    Grid,
    Listed,
    MomentsConfig,
    RowsConfig,
    TransportConfig,
    TransportOperator,
    fit_transport,
    plan_transport,
)
from actlake.jobs.transport.errors import (
    InvalidPair,
    InvalidRank,
    InvalidTransport,
    NotEnoughRows,
    OperatorNotFound,
    StoresDiffer,
)
from actlake.platform.cluster import (
    ClusterConfig,
    NotEnoughResources,
    ResourcesConfig,
    WorkStopped,
    session,
)
from actlake.platform.runs import ResultExists, RunRecord
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site, open_store

QUIET = Console(quiet=True)
UNTRACKED = TrackingConfig(wandb="disabled")
NEAR = "resid_post.0->resid_post.1"


def config(store: Path, out: Path, **options) -> TransportConfig:
    given = {"rows": RowsConfig(groups=6), "tracking": UNTRACKED} | options
    return TransportConfig(store=str(store), out=str(out), **given)


@pytest.fixture(scope="module")
def result(layers_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("fits") / "result"
    wanted = config(
        layers_folder, out, offsets=(0, 1), save=("ridge", "cca", "procrustes"),
        moments=MomentsConfig(threads=1),
    )  # fmt: skip
    return fit_transport(wanted, console=QUIET)


def test_a_fit_writes_tables_operators_and_a_page_that_need_nothing_else(
    result, layers_folder
) -> None:
    folder = result.folder
    maps = pq.read_table(folder / "maps.parquet").to_pylist()
    ranks = pq.read_table(folder / "ranks.parquet")
    pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
    page = result.report.read_text()

    assert len(pairs) == len(result.pairs) == 2 * 6
    assert len(maps) == 12 * 5 * 3
    assert len(ranks) == 12 * 3 * 2 * 13
    assert (
        RunRecord.load(folder).inputs["store"].fingerprint == open_store(layers_folder).fingerprint
    )
    assert len(list((folder / "pictures").glob("*.png"))) >= 8
    assert page.count("data:image/png;base64,") == len(list((folder / "pictures").glob("*.png")))
    assert "http" not in page.replace("http-equiv", "")
    assert {row["map"] for row in maps} == {"ridge", "ols", "procrustes", "identity", "mean"}
    ridge = [row for row in maps if row["map"] == "ridge" and row["measure"] == "uniform"]
    assert all(row["r2_low"] < row["r2"] < row["r2_high"] for row in ridge)


def test_the_numbers_of_a_fit_are_those_of_scikit_learn_on_the_rows(result, layers) -> None:
    rows = {
        (row["source"], row["target"]): row
        for row in pq.read_table(result.folder / "maps.parquet").to_pylist()
        if row["offset"] == 0 and row["map"] == "ridge" and row["measure"] == "uniform"
    }
    train, test = layers.rows("train"), layers.rows("test")
    for (source, target), row in rows.items():
        x, y = (layers.acts[Site.parse(name)].astype(np.float64) for name in (source, target))
        # Scales over four decades, means a thousand deviations away: Ridge's own solver needs
        # the means taken out first to keep its digits.
        centre = x[train].mean(axis=0)
        theirs = Ridge(alpha=row["alpha"], solver="svd").fit(x[train] - centre, y[train])
        assert row["r2"] == pytest.approx(
            r2_score(y[test], theirs.predict(x[test] - centre)), abs=1e-5
        )


def test_a_saved_operator_maps_numpy_and_torch_alike(result, layers, layers_folder) -> None:
    operator = TransportOperator.load(result.operator(NEAR))
    x, y = layers.acts[Site(0)][layers.rows("test")], layers.acts[Site(1)][layers.rows("test")]

    in_numpy = operator(x)
    in_torch = operator(torch.from_numpy(x))

    assert in_numpy.dtype == np.float32
    spread = np.abs(in_numpy - in_torch.numpy()) / y.std(axis=0)
    assert spread.max() < 0.02  # float32, with means a thousand deviations away
    assert r2_score(y, in_numpy) == pytest.approx(operator.about["test_r2"]["uniform"], abs=1e-3)
    assert operator.about["store"]["fingerprint"] == open_store(layers_folder).fingerprint
    assert (operator.pair.source, operator.pair.target) == (Site(0), Site(1))


def test_a_family_of_ranks_is_loaded_at_any_rank(result) -> None:
    place = result.operator("resid_post.0->resid_post.1@+1", "cca")

    full, low = TransportOperator.load(place), TransportOperator.load(place, rank=3)

    assert full.weight.shape == low.weight.shape == (12, 12)
    scale = np.abs(full.weight).max(axis=1, keepdims=True)
    assert np.linalg.matrix_rank((low.weight / scale).astype(np.float64), tol=1e-5) == 3
    with pytest.raises(InvalidRank, match="ranks go from 0 to 12"):
        TransportOperator.load(place, rank=13)
    with pytest.raises(InvalidTransport, match="is a ridge map and has no other ranks"):
        TransportOperator.load(result.operator(NEAR), rank=3)


def test_a_finished_fit_is_found_and_another_one_is_not_overwritten(result, layers_folder) -> None:
    same = config(layers_folder, result.folder, offsets=(0, 1), save=("ridge", "cca", "procrustes"))

    again = fit_transport(same, console=QUIET)

    assert again.was_there
    assert again.metrics == pytest.approx(result.metrics)
    with pytest.raises(ResultExists, match="never overwritten"):
        fit_transport(config(layers_folder, result.folder), console=QUIET)


def test_a_second_fit_reads_no_rows(result, layers_folder, monkeypatch) -> None:
    monkeypatch.setattr("actlake.jobs.transport.moments_pass.sum_part", None)
    out = result.folder.with_name("second")

    second = config(
        layers_folder, out, pairs=Grid(layers=(0, 1), k=(1,)), offsets=(0, 1), alphas=(5.0,)
    )

    assert plan_transport(second).found is not None
    assert len(fit_transport(second, console=QUIET).pairs) == 4


def test_a_map_between_two_models_is_fitted_on_the_same_tokens(
    make_layers, layers_folder, layers, tmp_path
) -> None:
    other = make_layers(dim=7, seed=3)
    for name in ("ids", "contexts", "documents", "split", "kept"):
        setattr(other, name, getattr(layers, name))
    mixing = np.random.default_rng(0).normal(size=(12, 7))
    mixed = layers.acts[Site(1)] / layers.acts[Site(1)].std(0) @ mixing
    other.acts = {Site(2): mixed.astype(np.float32)}
    theirs = other.build(tmp_path / "theirs", sites=(Site(2),), name="another")

    found = fit_transport(
        config(layers_folder, tmp_path / "out", target_store=str(theirs), save=("ols",)),
        console=QUIET,
    )

    assert [str(pair.source) for pair in found.pairs] == [f"resid_post.{n}" for n in range(4)]
    maps = pq.read_table(found.folder / "maps.parquet").to_pylist()
    ols = [row["r2"] for row in maps if row["map"] == "ols" and row["measure"] == "uniform"]
    assert ols[1] > 0.9999 > max(ols[0], ols[2], ols[3])  # from the layer it was made of
    assert TransportOperator.load(
        found.operator("resid_post.1->resid_post.2", "ols")
    ).weight.shape == (7, 12)


def test_the_command_prints_a_plan_and_where_the_report_is(layers_folder, tmp_path, capsys) -> None:
    arguments = [
        "transport", "--store", str(layers_folder), "--out", str(tmp_path / "out"),
        "--pairs.layers", "0,1", "--pairs.k", "1,2", "--tracking.wandb", "disabled",
    ]  # fmt: skip

    assert run([*arguments, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert run(arguments) == 0
    done = capsys.readouterr().out

    assert "pairs     4: resid_post.0->resid_post.1, resid_post.0->resid_post.2" in plan
    assert "blocks of" in plan
    assert "to test (in" in plan
    assert not (tmp_path / "nothing").exists()
    assert "4 pairs: test R²" in done
    assert json.loads((tmp_path / "out" / "run.json").read_text())["job"] == "transport"


REFUSALS = [
    ({"pairs": Grid(layers=(2,), k=(1, 2))}, InvalidPair, r"Layer 2 \+ 2 is above the last layer"),
    (
        {"pairs": Listed(listed=("mlp_out.1->resid_post.2",))},
        InvalidPair,
        r"mlp_out\.1.* not stored",
    ),
    ({"rows": RowsConfig(test="valid")}, NotEnoughRows, "no split 'valid'"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSALS)
def test_what_a_store_cannot_give_is_refused_before_rows_are_read(
    layers_folder, tmp_path, options, error, words
) -> None:
    with pytest.raises(error, match=words):
        plan_transport(config(layers_folder, tmp_path / "out", **options))


def test_configs_that_cannot_be_are_refused_by_name(layers_folder, tmp_path) -> None:
    with pytest.raises(InvalidTransport, match=r"must be above 0, and alphas is \[1.0, 0.0\]"):
        config(layers_folder, tmp_path, alphas=(1.0, 0.0))
    with pytest.raises(InvalidTransport, match="given twice"):
        config(layers_folder, tmp_path, offsets=(1, 1))
    with pytest.raises(InvalidTransport, match=r"moments.workers must be at least 1"):
        config(layers_folder, tmp_path, moments=MomentsConfig(workers=0))
    with pytest.raises(OperatorNotFound, match="There is no operator in"):
        TransportOperator.load(tmp_path)


def test_stores_of_other_tokens_are_refused_with_the_first_difference(
    make_layers, layers_folder, tmp_path
) -> None:
    other = make_layers()
    other.contexts[1].ids[3] += 1
    theirs = other.build(tmp_path / "theirs")

    with pytest.raises(StoresDiffer, match=r"row 35 has id \d+ in .* and \d+ in"):
        plan_transport(config(layers_folder, tmp_path / "out", target_store=str(theirs)))


def test_few_rows_for_the_width_are_told_with_numbers(make_layers, tmp_path) -> None:
    few = make_layers(dim=40, documents=4).build(tmp_path / "few")

    plan = plan_transport(config(few, tmp_path / "out"))

    assert "fewer than 10 a dimension" in str(plan)


def test_rows_are_summed_and_maps_fitted_in_the_threads_that_are_asked_for(
    layers_folder, tmp_path, monkeypatch, pools
) -> None:
    from actlake.jobs.transport import moments_pass, result

    seen = {}

    def noting(real, what):
        def note(*arguments, **options):
            seen[what] = set(pools().values())
            return real(*arguments, **options)

        return note

    monkeypatch.setattr(moments_pass, "sum_part", noting(moments_pass.sum_part, "sum"))
    monkeypatch.setattr(result, "save_operator", noting(result.save_operator, "fit"))
    before = pools()

    fit_transport(
        config(
            layers_folder, tmp_path / "fits" / "result", pairs="to_last",
            moments=MomentsConfig(threads=3),
        ),
        console=QUIET,
    )  # fmt: skip

    assert seen == {"sum": {3}, "fit": {3}}
    assert pools() == before


@pytest.mark.ray
def test_a_pass_of_two_workers_of_which_one_is_killed_ends_with_the_same_maps(
    result, layers_folder, tmp_path, kills_one
) -> None:
    cluster = ClusterConfig(address="local", num_cpus=2, object_store_mb=100)
    wanted = config(
        layers_folder, tmp_path / "fits" / "result", offsets=(0, 1), cluster=cluster,
        moments=MomentsConfig(workers=2, threads=1),
    )  # fmt: skip

    with kills_one("ray::compute_part"):
        both = fit_transport(wanted, console=QUIET)

    assert both.metrics == result.metrics


@pytest.mark.ray
def test_one_worker_on_a_joined_cluster_sums_there_with_what_it_reserves(
    result, layers_folder, tmp_path, monkeypatch
) -> None:
    def in_the_driver(*arguments: object, **options: object) -> None:
        raise AssertionError("rows are summed in the driver")

    monkeypatch.setattr("actlake.jobs.transport.moments_pass.sum_part", in_the_driver)
    with session(ClusterConfig(address="local", num_cpus=2, object_store_mb=100)) as cluster:
        wanted = config(
            layers_folder, tmp_path / "fits" / "result", offsets=(0, 1),
            cluster=ClusterConfig(address=cluster.address), moments=MomentsConfig(threads=1),
        )  # fmt: skip
        with pytest.raises(NotEnoughResources, match=r"asked: 1 x \(1 CPU \+ 1 GPU\)"):
            fit_transport(replace(wanted, resources=ResourcesConfig(gpus=1)), console=QUIET)

        there = fit_transport(wanted, console=QUIET)

    assert there.metrics == result.metrics


def test_a_fit_is_found_whatever_its_workers_reserve(result, layers_folder) -> None:
    wanted = config(
        layers_folder, result.folder, offsets=(0, 1), save=("ridge", "cca", "procrustes"),
        resources=ResourcesConfig(cpus=3, memory_mb=9),
    )  # fmt: skip

    assert fit_transport(wanted, console=QUIET).was_there


def test_sigterm_stops_what_comes_after_the_pass_and_the_moments_are_kept(
    layers_folder, tmp_path, monkeypatch
) -> None:
    def is_stopped(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    wanted = config(layers_folder, tmp_path / "fits" / "result", pairs="to_last")
    monkeypatch.setattr("actlake.jobs.transport.result.save_operator", is_stopped)

    with pytest.raises(WorkStopped, match="the same command goes on"):
        fit_transport(wanted, console=QUIET)

    assert not Path(wanted.out).exists()
    assert plan_transport(wanted).found is not None
