"""Features of an SAE on their active rows, against the same by hand on materialised rows."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from actlake.jobs.sae import read_sae
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.transport import (
    DictionaryConfig,
    Listed,
    RowsConfig,
    TransportConfig,
    TransportOperator,
    fit_transport,
)
from actlake.jobs.transport.features import FeatureSums, scores_of
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site

DIM, FEATURES = 12, 40


@pytest.fixture
def save_sae(tmp_path, layers):
    """Write an SAE of an architecture, with weights to the scale of the target's rows."""
    rng = np.random.default_rng(5)
    rows = layers.acts[Site(2)]
    scale, centre = rows.std(0), rows.mean(0)

    def save(architecture: str, name: str = "sae", **config) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        encoder = rng.normal(size=(DIM, FEATURES)) / scale[:, None]
        tensors = {
            "W_enc": encoder,
            "W_dec": rng.normal(size=(FEATURES, DIM)) * scale,
            "b_dec": centre,
            "b_enc": rng.normal(size=FEATURES),
        }
        if architecture == "jumprelu":
            tensors["threshold"] = rng.uniform(0, 2, FEATURES)
        if architecture == "gated":
            del tensors["b_enc"]
            tensors |= {n: rng.normal(size=FEATURES) for n in ("b_gate", "b_mag", "r_mag")}
        whole = {name: value.astype(np.float32) for name, value in tensors.items()}
        save_file(whole, folder / "sae_weights.safetensors")
        about = {
            "architecture": architecture, "d_in": DIM, "d_sae": FEATURES,
            "apply_b_dec_to_input": True, "normalize_activations": "none",
            "metadata": {"hook_name": "blocks.2.hook_resid_post"}, **config,
        }  # fmt: skip
        (folder / "cfg.json").write_text(json.dumps(about))
        return folder

    return save


def by_hand(architecture: str, config: dict, t: dict, rows: np.ndarray) -> np.ndarray:
    """The features, straight from the definition of each architecture."""
    x = rows.astype(np.float64) - t["b_dec"]
    if architecture == "gated":
        gate = x @ t["W_enc"] + t["b_gate"] > 0
        return gate * np.maximum(x @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0)
    before = x @ t["W_enc"] + t["b_enc"]
    if architecture == "jumprelu":
        return np.where(before > t["threshold"], np.maximum(before, 0), 0)
    if architecture == "topk":
        if config.get("rescale_acts_by_decoder_norm"):
            before = before * np.linalg.norm(t["W_dec"], axis=1)
        least = np.sort(before, axis=1)[:, -config["k"]][:, None]
        return np.where(before >= least, np.maximum(before, 0), 0)
    return np.maximum(before, 0)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("standard", {}),
        ("topk", {"k": 5}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {}),
        ("gated", {}),
    ],
)
def test_every_architecture_is_computed_by_its_definition(
    save_sae, layers, architecture, config
) -> None:
    sae = read_sae(str(save_sae(architecture, **config)))
    rows = layers.acts[Site(2)][:200]

    found = sae.encode(rows)

    expected = by_hand(
        architecture, config, {name: part.numpy() for name, part in sae.tensors.items()}, rows
    )
    assert found.shape == (200, FEATURES)
    assert (found > 0).any()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-3 * scale  # float32, means far from zero


def test_features_are_scored_on_the_rows_on_which_they_fire(
    save_sae, layers, layers_folder, tmp_path
) -> None:
    sae_folder = save_sae("jumprelu")
    result = fit_transport(
        TransportConfig(
            store=str(layers_folder),
            out=str(tmp_path / "out"),
            pairs=Listed(listed=("resid_post.1->resid_post.2", "resid_post.0->resid_post.3")),
            rows=RowsConfig(groups=4),
            dictionary=DictionaryConfig(path=str(sae_folder), threshold=0.6, least_active=10),
            tracking=TrackingConfig(wandb="disabled"),
        ),
        console=Console(quiet=True),
    )
    rows = pq.read_table(result.folder / "features.parquet").to_pylist()
    along = pq.read_table(result.folder / "directions.parquet")["r2"].to_numpy()

    test = layers.rows("test")
    x, y = (layers.acts[site][test].astype(np.float64) for site in (Site(1), Site(2)))
    operator = TransportOperator.load(result.operator("resid_post.1->resid_post.2"))
    mapped = x @ operator.weight.T.astype(np.float64) + operator.bias
    sae = read_sae(str(sae_folder))
    fires = sae.encode(layers.acts[Site(2)][test]) > 0
    unit = (sae.decoder / sae.decoder.norm(dim=1, keepdim=True)).numpy()
    assert len(rows) == FEATURES  # the pair that ends elsewhere has no features
    checked = 0
    for row in rows:
        feature = row["feature"]
        on = fires[:, feature]
        assert abs(row["active_rows"] - on.sum()) <= 1
        true, carried = y[on] @ unit[feature], mapped[on] @ unit[feature]
        if on.sum() >= 10:
            assert row["r2"] == pytest.approx(r2_score(true, carried), abs=5e-3)
            assert row["correlation"] == pytest.approx(np.corrcoef(true, carried)[0, 1], abs=5e-3)
            assert row["slope"] == pytest.approx(np.polyfit(carried, true, 1)[0], abs=5e-3)
            assert row["above_threshold"] == (row["r2"] >= 0.6)
            rescaled = LinearRegression().fit(carried[:, None], true).predict(carried[:, None])
            assert row["r2_rescaled"] == pytest.approx(r2_score(true, rescaled), abs=5e-3)
            checked += 1
        assert row["judged"] == (row["active_rows"] >= 10)
        assert row["r2_all_rows"] == pytest.approx(along[feature], abs=5e-3)
        assert along[feature] == pytest.approx(
            r2_score(y @ unit[feature], mapped @ unit[feature]), abs=5e-3
        )
    assert checked > 20
    assert "below, but above over all rows" in result.report.read_text()


def test_a_linear_feature_that_falls_below_the_threshold_on_its_active_rows_is_counted() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20_000, 1))
    mapped = true + 0.5 * rng.normal(size=true.shape)  # R² 0.75 over all rows
    active = (true > 1.5).astype(np.float32)
    sums = FeatureSums.zeros(1)
    for some in np.array_split(np.arange(len(true)), 7):
        sums.add(active[some], true[some], mapped[some])

    found = scores_of(sums, threshold=0.5, least_active=20)

    on = active[:, 0] > 0
    assert found.r2[0] == pytest.approx(r2_score(true[on], mapped[on]))
    assert found.r2[0] < 0
    assert found.r2_all_rows[0] == pytest.approx(r2_score(true, mapped))
    assert found.r2_all_rows[0] > 0.7
    assert found.below_though_linear.tolist() == [True]


def test_an_sae_that_cannot_be_used_is_refused_by_name(save_sae, layers_folder, tmp_path) -> None:
    sae = read_sae(str(save_sae("standard")))

    with pytest.raises(DictionaryMismatch, match=r"reads rows of width 12, and .* has 576"):
        sae.check(Site(2), 576)
    with pytest.raises(
        DictionaryMismatch,
        match=r"trained on blocks.2.hook_resid_post, and resid_post.3 is blocks.3",
    ):
        sae.check(Site(3), DIM)
    sae.check(Site(3), DIM, any_hook=True)
    with pytest.raises(
        DictionaryMismatch, match=r"architecture 'matryoshka'.*\n.*save_inference_model"
    ):
        read_sae(str(save_sae("matryoshka", "other")))
    lacking = save_sae("standard", "lacking")
    about = json.loads((lacking / "cfg.json").read_text()) | {"architecture": "jumprelu"}
    (lacking / "cfg.json").write_text(json.dumps(about))
    with pytest.raises(DictionaryMismatch, match="lacks threshold"):
        read_sae(str(lacking))
    with pytest.raises(DictionaryMismatch, match="normalised by 'layer_norm'"):
        read_sae(str(save_sae("topk", "normed", k=3, normalize_activations="layer_norm")))
    with pytest.raises(DictionaryMismatch, match="There is no SAE in"):
        read_sae(str(tmp_path))
