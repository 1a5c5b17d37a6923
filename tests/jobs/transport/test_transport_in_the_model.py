"""Maps in the running model and as shortcuts to its output, on a tiny real transformer."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from actlake.jobs.model_of_store import NotTheModel
from actlake.jobs.transport import (
    CausalConfig,
    RowsConfig,
    ShortcutConfig,
    TransportConfig,
    fit_transport,
)
from actlake.jobs.transport.causal import score_causally
from actlake.jobs.transport.operators import AffineMap
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.shortcut import early_exits, score_shortcuts, unembedding_in_layers
from actlake.jobs.whole_contexts import WholeContext, contexts_of_split
from actlake.platform.models import load_chain, load_head, replace_with, resolve_model
from actlake.platform.models.config import ModelConfig
from actlake.platform.seeds import Seeds
from actlake.platform.tracking import TrackingConfig
from actlake.storage import (
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    open_store,
    write_store,
)

DIM, VOCABULARY, LENGTH = 16, 50, 20
SITES = tuple(Site(layer) for layer in range(3))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=DIM, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, initializer_range=0.4,
        tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return resolve_model(ModelConfig(name=str(model_folder), device="cpu"))


@pytest.fixture(scope="module")
def chain(model):
    return load_chain(model, SITES)


@pytest.fixture(scope="module")
def store_folder(model, model_folder, chain, tmp_path_factory) -> Path:
    """A store of the model's own activations, 60 contexts, a third of them test."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("rows") / "store"
    ids = rng.integers(2, VOCABULARY, (60, LENGTH)).astype(np.int32)
    acts = chain.capture(torch.from_numpy(ids.astype(np.int64)))
    splits = [("test", "train", "train")[number % 3] for number in range(len(ids))]
    place = np.arange(LENGTH, dtype=np.int32)
    documents = [Document(f"d{n:02d}", "made", split, "", {}) for n, split in enumerate(splits)]
    contexts = [
        Context(row, np.full(LENGTH, number), place, splits[number])
        for number, row in enumerate(ids)
    ]
    write_store(
        folder,
        [*documents, *contexts],
        {site: acts[site].reshape(-1, DIM).numpy() for site in SITES},
        provenance=Provenance(model={"name": "tiny", "revision": model.revision}),
        splits=("test", "train"),
        special_ids=(0, 1),
        geometry=Geometry(unit_rows=400, chunk_bytes=200 * 4 * DIM),
        request={"model": {"name": str(model_folder), "device": "cpu"}},
    )
    return folder


IDENTITY = AffineMap("identity", np.eye(DIM), np.zeros(DIM))
MEAN = AffineMap("mean", np.zeros((DIM, DIM)), np.ones(DIM))


def test_a_perfect_transport_changes_nothing_and_a_poor_one_does(chain, store_folder) -> None:
    contexts = contexts_of_split(open_store(store_folder), "test", 5)
    itself, below = Pair(Site(1), Site(1)), Pair(Site(0), Site(1))

    scores = score_causally(
        chain,
        contexts,
        {itself: (IDENTITY, MEAN), below: (IDENTITY, MEAN)},
        share=0.3,
        seeds=Seeds(0),
    )

    found = {(score.pair, score.condition): score for score in scores}
    for pair, condition in (
        (itself, "own"),
        (itself, "transported"),
        (itself, "identity"),
        (below, "own"),
    ):
        score = found[pair, condition]
        assert (score.delta_ce.value, score.divergence.value) == (0.0, 0.0)
        assert (score.delta_ce.low, score.delta_ce.high) == (0.0, 0.0)
    for condition in ("transported", "mean", "zero", "bias"):
        assert found[below, condition].divergence.value > 0.01
    assert found[below, "transported"].delta_ce == found[below, "identity"].delta_ce
    assert found[below, "zero"].replaced == found[below, "mean"].replaced > 10


def test_a_token_offset_replaces_the_token_ahead(chain, store_folder) -> None:
    contexts = contexts_of_split(open_store(store_folder), "test", 3)
    ahead = Pair(Site(1), Site(1), 1)

    (own, moved) = score_causally(
        chain, contexts, {ahead: (IDENTITY, MEAN)}, share=0.2, seeds=Seeds(1),
        conditions=("own", "transported"),
    )  # fmt: skip

    assert own.divergence.value == 0.0
    assert moved.divergence.value > 0.01


@pytest.mark.parametrize("offset", [-3, -1, 0, 1, 4])
def test_only_positions_that_count_and_are_of_the_sources_document_are_replaced(
    chain, offset, monkeypatch
) -> None:
    rng = np.random.default_rng(0)
    length = 20
    document = np.repeat([0, 1, 2], [7, 6, 7])
    allowed = rng.random(length) < 0.7
    context = WholeContext(
        torch.from_numpy(rng.integers(1, 40, length)), torch.from_numpy(allowed),
        torch.from_numpy(document),
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(
        "actlake.jobs.transport.causal.replace_with",
        lambda site, acts, where: seen.append(where.clone()) or replace_with(site, acts, where),
    )

    (score,) = score_causally(
        chain, [context], {Pair(Site(1), Site(1), offset): (IDENTITY, MEAN)}, share=1.0,
        seeds=Seeds(0), conditions=("mean",),
    )  # fmt: skip

    wanted = [
        j
        for j in range(length)
        if 0 <= j - offset < length
        and allowed[j] and allowed[j - offset] and document[j] == document[j - offset]
    ]  # fmt: skip
    (where,) = seen
    assert where[0].nonzero().flatten().tolist() == wanted
    assert score.replaced == len(wanted)


def test_the_lens_at_the_last_layer_is_the_model_itself(model, store_folder) -> None:
    store = open_store(store_folder)
    rows = np.arange(1, 60)
    groups = rows // 20

    scores, exits = score_shortcuts(
        load_head(model), store, rows, groups, Site(2), {Site(2): IDENTITY, Site(0): IDENTITY},
        thresholds=(0.0, 1.1),
    )  # fmt: skip

    at_the_end = [score for score in scores if score.source == Site(2)]
    assert len(at_the_end) == 2
    for score in at_the_end:
        assert [score.precision[k].value for k in (1, 5, 10)] == [1.0, 1.0, 1.0]
        assert score.divergence.value == 0.0
    lower = next(score for score in scores if score.source == Site(0))
    assert lower.precision[1].value <= lower.precision[5].value <= lower.precision[10].value < 1
    assert lower.divergence.value > 0.01
    assert (exits[1].kept, exits[1].layers_saved) == (1.0, 0.0)
    assert exits[0].layers_saved == pytest.approx(2 / 3)
    assert exits[0].kept == pytest.approx(lower.precision[1].value, abs=0.35)


def test_early_exit_stops_at_the_first_layer_that_is_sure() -> None:
    top = {Site(0): np.array([7, 7, 7]), Site(1): np.array([8, 1, 8])}
    sure = {Site(0): np.array([0.9, 0.1, 0.2]), Site(1): np.array([0.9, 0.8, 0.3])}

    (found,) = early_exits(top, sure, np.array([7, 1, 5]), [0.5], num_layers=4, look=3.0)

    assert found.kept == 1.0
    assert found.layers_saved == pytest.approx(1 - (1 + 2 + 4) / 12)
    # One look, two looks, and two with the model's own at the end: of 4 layers and one look.
    assert found.work_saved == pytest.approx(1 - (1 + 3 + 2 + 6 + 4 + 9) / 21)


def test_the_embedding_is_asked_before_the_first_layer() -> None:
    entry = Site(0, "resid_pre")
    top = {Site(0): np.array([1]), entry: np.array([2])}
    sure = {Site(0): np.array([0.9]), entry: np.array([0.9])}

    (found,) = early_exits(top, sure, np.array([2]), [0.5], num_layers=4, look=0.0)

    assert (found.kept, found.layers_saved) == (1.0, 1.0)
    assert unembedding_in_layers(576, 49152) == pytest.approx(49152 * 576 / (12 * 576**2))


def test_the_job_runs_both_tests_with_the_model_its_store_names(store_folder, tmp_path) -> None:
    result = fit_transport(
        TransportConfig(
            store=str(store_folder),
            out=str(tmp_path / "out"),
            pairs="to_last",
            rows=RowsConfig(groups=4),
            causal=CausalConfig(contexts=4, pairs=2),
            shortcut=ShortcutConfig(rows=200),
            tracking=TrackingConfig(wandb="disabled"),
        ),
        console=Console(quiet=True),
    )

    causal = pq.read_table(result.folder / "causal.parquet").to_pylist()
    shortcuts = pq.read_table(result.folder / "shortcuts.parquet").to_pylist()
    assert {row["condition"] for row in causal} == {
        "own", "transported", "identity", "mean", "bias", "zero"
    }  # fmt: skip
    assert all(row["kl"] == 0 for row in causal if row["condition"] == "own")
    assert {(row["source"], row["lens"]) for row in shortcuts} == {
        (f"resid_post.{layer}", lens) for layer in (0, 1) for lens in ("mapped", "logit lens")
    }
    assert "early_exit" in str(list((result.folder / "pictures").iterdir()))


def test_a_model_that_is_not_the_stores_is_refused(store_folder, tmp_path, smollm2_folder) -> None:
    with pytest.raises(NotTheModel, match="holds rows of revision sha256"):
        fit_transport(
            TransportConfig(
                store=str(store_folder),
                out=str(tmp_path / "out"),
                causal=CausalConfig(contexts=1),
                model=ModelConfig(name=str(smollm2_folder)),
                tracking=TrackingConfig(wandb="disabled"),
            ),
            console=Console(quiet=True),
        )
