"""A real harvest of SmolLM2 holds transformers' own block outputs, in every reader of Zarr."""

import itertools

import numpy as np
import pytest
import tensorstore
import torch
import xarray
import zarr
from transformers import AutoModelForCausalLM

from actlake.storage import open_store, verify

SITES = ["resid_pre.0", "resid_post.3", "resid_post.9"]


@pytest.fixture(scope="module")
def states(smollm2_folder, smollm2_store):
    """Rows of every site as transformers computes them, a context at a time, in float32."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    store = open_store(smollm2_store)
    starts = store.contexts["start"][:].tolist()
    parts = {site: [] for site in SITES}
    for start, stop in itertools.pairwise(starts[:13]):
        ids = torch.from_numpy(store.tokens["id"][start:stop]).long()[None]
        with torch.inference_mode():
            hidden = model(ids, output_hidden_states=[0, 4, 10]).hidden_states
        for site, layer in zip(SITES, (0, 4, 10), strict=True):
            values = hidden[layer] if len(hidden) > 3 else hidden[SITES.index(site)]
            parts[site].append(values[0].numpy())
    return {site: np.concatenate(values) for site, values in parts.items()}


@pytest.mark.parametrize("site", SITES)
def test_rows_equal_transformers_block_outputs_to_float16_precision(smollm2_store, states, site):
    expected = states[site]

    rows = open_store(smollm2_store)[site][: len(expected)]

    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.abs(rows.astype(np.float32) - expected).max() <= (2**-10 * scale).max()
    np.testing.assert_allclose(rows, expected, rtol=2e-3, atol=2e-3 * float(scale.min()))


@pytest.mark.parametrize("site", SITES)
def test_every_zarr_reader_reads_the_same_numbers(smollm2_store, site):
    ours = open_store(smollm2_store)[site][:]
    group = smollm2_store / "rows.zarr"

    by_zarr = zarr.open_group(group, mode="r")[f"acts/{site}"][:]
    by_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(group / "acts" / site)}},
        read=True,
    ).result()
    with xarray.open_zarr(group, group="acts", consolidated=False) as by_xarray:
        assert by_xarray[site].dims == ("row", "dim")
        np.testing.assert_array_equal(by_xarray[site].values, ours)

    np.testing.assert_array_equal(by_zarr, ours)
    np.testing.assert_array_equal(by_tensorstore.read().result(), ours)


def test_the_store_is_whole_and_knows_where_it_comes_from(smollm2_store):
    store = open_store(smollm2_store)

    assert verify(store).is_whole
    assert store.schema.rows == 6000
    assert all(store.coverage(site).is_complete for site in SITES)
    assert store.provenance.model["family"] == "llama"
    assert store.provenance.model["revision"].startswith("sha256:")
    assert store.ledger.numerics[0]["dtype"] == "float32"


def test_text_comes_back_from_the_stores_own_tokenizer(smollm2_store):
    store = open_store(smollm2_store)
    documents = store.documents()
    first = documents["text"][int(store.tokens["document"][0])].as_py()

    text = store.text(0, 60)

    assert len(text) > 100
    assert first.startswith(text)
