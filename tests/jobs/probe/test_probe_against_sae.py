"""A latent beside a probe: its scores are scikit-learn's, and chosen where they are not tested."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.metrics import f1_score, roc_auc_score

from actlake.jobs.probe import (
    DictionaryConfig,
    Probe,
    ProbeConfig,
    RowsConfig,
    TaskConfig,
    train_probes,
)
from actlake.jobs.probe.dictionary import fired_on
from actlake.jobs.probe.latent_scores import Fired, auroc, latent_auroc, latent_f1, random_cosines
from actlake.jobs.probe.opening import open_config
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.trained import read_sae


def sparse(latents: np.ndarray) -> Fired:
    example, latent = np.nonzero(latents)
    return Fired(example, latent, latents[example, latent], *latents.shape)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, f = draw(st.integers(2, 60)), draw(st.integers(1, 8))
    values = rng.integers(1, draw(st.integers(2, 20)), size=(n, f)).astype(float)  # ties
    latents = np.where(rng.random((n, f)) < draw(st.floats(0, 1)), values, 0)
    members = rng.random(n) < 0.5
    members[:2] = True, False
    return latents, members, rng.permutation(np.count_nonzero(latents))


@settings(deadline=None, max_examples=40)
@given(cases())
def test_auroc_and_f1_of_every_latent_are_scikit_learns(case):
    latents, members, order = case
    fired = sparse(latents)
    shuffled = Fired(
        fired.example_M[order], fired.latent_M[order], fired.value_M[order], *latents.shape
    )

    for given_in_any_order in (fired, shuffled):
        area, f1 = latent_auroc(given_in_any_order, members), latent_f1(given_in_any_order, members)

        for latent, column in enumerate(latents.T):
            assert area[latent] == pytest.approx(roc_auc_score(members, column))
            assert f1[latent] == pytest.approx(f1_score(members, column > 0, zero_division=0))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_area_of_any_scores_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    scores, members = rng.integers(-5, 6, 30) / 3, rng.random(30) < 0.4
    members[:2] = True, False

    assert auroc(scores, members) == pytest.approx(roc_auc_score(members, scores))


def test_a_class_with_no_other_side_has_no_area():
    fired = sparse(np.array([[1.0, 0], [0, 2]]))

    assert np.isnan(latent_auroc(fired, np.array([True, True]))).all()
    assert latent_f1(fired, np.array([False, False])).tolist() == [0, 0]


def test_nothing_fired_is_a_coin_toss():
    fired = sparse(np.zeros((4, 3)))

    assert latent_auroc(fired, np.array([True, False, True, False])).tolist() == [0.5] * 3


def test_random_directions_are_as_near_as_chance_has_it():
    rng = np.random.default_rng(0)
    decoder = rng.normal(size=(300, 64)).astype(np.float32)
    rows = rng.normal(size=(500, 64)).astype(np.float32)

    one, nearest = random_cosines(decoder, rows, draws=400, rng=rng)

    assert np.sqrt((one**2).mean()) == pytest.approx(1 / 8, rel=0.15)  # 1 / sqrt(64)
    assert (nearest >= one).all()
    assert 0.25 < nearest.mean() < 0.5


def test_random_directions_vary_as_the_rows_do():
    # Of variances over four decades only a few dimensions count, and the decoder is along these.
    rng = np.random.default_rng(0)
    scale = np.logspace(2, -2, 64)
    rows = (rng.normal(size=(600, 64)) * scale + 50).astype(np.float32)
    decoder = (rng.normal(size=(200, 64)) * scale).astype(np.float32)
    drawn = rng.multivariate_normal(np.zeros(64), np.cov(rows.T), size=2000)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (drawn, decoder)]
    by_hand = np.abs(unit[0] @ unit[1].T)

    one, nearest = random_cosines(decoder, rows, draws=400, rng=rng)

    assert np.quantile(nearest, 0.95) == pytest.approx(np.quantile(by_hand.max(1), 0.95), rel=0.02)
    assert np.quantile(one, 0.95) == pytest.approx(np.quantile(by_hand, 0.95), rel=0.15)
    # An isotropic direction would have passed for a finding at half of that.
    assert np.quantile(one, 0.95) > 0.5 > 2 * 1.96 / 8


def write_sae(folder: Path, encoder: np.ndarray, bias: np.ndarray, *, hook: str) -> Path:
    """A standard SAE: latent f fires where ``encoder[f] @ x + bias[f]`` is above 0."""
    folder.mkdir(parents=True)
    config = {
        "architecture": "standard", "d_in": encoder.shape[1], "d_sae": len(encoder),
        "apply_b_dec_to_input": False, "metadata": {"hook_name": hook},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    norms = np.linalg.norm(encoder, axis=1, keepdims=True)
    save_file(
        {
            "W_enc": np.ascontiguousarray(encoder.T, np.float32),
            "b_enc": bias.astype(np.float32),
            "W_dec": (encoder / norms).astype(np.float32),
            "b_dec": np.zeros(encoder.shape[1], np.float32),
        },
        folder / "sae_weights.safetensors",
    )
    return folder


HOOK = "blocks.2.hook_resid_post"
FLAG = TaskConfig(labels="words", column="flag")


def quick(make_config: Callable[..., ProbeConfig], **options: Any) -> ProbeConfig:
    given = {"sites": ("resid_post.2",), "probes": ("logistic",), "controls": ()}
    return make_config(FLAG, **given | {"learning_curve": ()} | options)


def test_a_latent_that_is_the_probe_scores_as_the_probe(
    make_config: Callable[..., ProbeConfig], tmp_path: Path
):
    alone = train_probes(quick(make_config, out=str(tmp_path / "alone")))
    probe = Probe.load(alone.probe("flag", "resid_post.2"))
    rng = np.random.default_rng(0)
    scale = np.abs(probe.weight[0]).mean()
    encoder = np.concatenate([scale * rng.normal(size=(7, 10)), probe.weight])
    bias = np.concatenate([np.full(7, -1.0), probe.bias])
    sae = write_sae(tmp_path / "sae", encoder, bias, hook=HOOK)

    result = train_probes(
        quick(make_config, dictionary=DictionaryConfig(path=str(sae), examples=200))
    )

    (found,) = pq.read_table(result.folder / "dictionary.parquet").to_pylist()
    assert (found["latent"], found["f1_latent"], found["nearest_latent"]) == (7, 7, 7)
    assert found["cosine"] == pytest.approx(1)
    assert found["latent_f1"] == pytest.approx(found["probe_f1"], abs=5e-3)  # float32 on the border
    assert 0.5 < found["latent_auroc"] <= found["probe_auroc"]  # ties below 0 cost some
    assert found["train_examples"] == 200
    assert found["class_name"] == probe.classes[1]
    assert found["random_cosine"] < found["random_nearest_cosine"] < 1
    assert "SAE against probe at resid_post.2" in result.report.read_text()


def test_a_multiclass_task_has_a_latent_for_each_class(
    make_config: Callable[..., ProbeConfig], tmp_path: Path
):
    rng = np.random.default_rng(1)
    sae = write_sae(tmp_path / "sae", rng.normal(size=(20, 10)), rng.normal(size=20), hook=HOOK)
    config = make_config(
        sites=("resid_post.2",), probes=("logistic", "lda"), controls=(), learning_curve=(),
        dictionary=DictionaryConfig(path=str(sae)),
    )  # fmt: skip

    result = train_probes(config)

    rows = pq.read_table(result.folder / "dictionary.parquet").to_pylist()
    assert [(row["probe"], row["class_name"]) for row in rows] == [
        (probe, mark) for probe in ("logistic", "lda") for mark in "012"
    ]
    for row in rows:
        assert row["test_examples"] > row["positives"] > 0
        assert 0 <= row["latent_density"] <= 1


def test_an_example_of_several_rows_has_the_mean_of_their_latents(
    make_config: Callable[..., ProbeConfig], tmp_path: Path
):
    rng = np.random.default_rng(2)
    path = write_sae(tmp_path / "sae", rng.normal(size=(6, 10)), rng.normal(size=6), hook=HOOK)
    topic = TaskConfig(column="topic")
    rows = RowsConfig(least_per_class=1)
    config = make_config(topic, pooling=("mean",), sites=("resid_post.2",), rows=rows)
    opened = open_config(config)
    (examples,), site = opened.sets, opened.sites[0]
    sae, which = read_sae(str(path)), np.array([0, 3, len(examples) - 1])

    fired = fired_on(opened.store, site, examples, which, sae)

    dense = np.zeros((3, 6))
    dense[fired.example_M, fired.latent_M] = fired.value_M
    for place, example in enumerate(which):
        rows = examples.rows[examples.bounds[example] : examples.bounds[example + 1]]
        assert len(rows) > 5
        expected = sae.encode(opened.store[site].take(rows)).mean(axis=0)
        np.testing.assert_allclose(dense[place], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "hook", "said"),
    [
        (4, HOOK, "reads rows of width 4, and resid_post.2 has 10"),
        (10, "blocks.7.hook_resid_post", "trained on blocks.7.hook_resid_post, and the probed"),
    ],
)
def test_an_sae_that_does_not_read_the_site_is_refused_before_any_work(
    make_config: Callable[..., ProbeConfig], tmp_path: Path, width: int, hook: str, said: str
):
    sae = write_sae(tmp_path / "sae", np.eye(width), np.zeros(width), hook=hook)

    with pytest.raises(DictionaryMismatch, match=said):
        train_probes(quick(make_config, dictionary=DictionaryConfig(path=str(sae))))

    assert not (tmp_path / "out").exists()
