"""Torch gets the batches of the store, in their order, and can say where it is."""

import gc
import json
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from actlake.platform.torch_batches import ActivationDataset, TorchBatches
from actlake.storage import (
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    SiteSchema,
    open_store,
    write_store,
)
from actlake.storage.errors import InvalidBatches, StoreDamaged

SITES = (Site(0), Site(3))
ROWS, DIM = 240, 6
# Torch warns of two workers there.
ON_ONE_CORE = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def make_store(folder, dtype, dim=DIM):
    rng = np.random.default_rng(0)
    acts = {site: rng.normal(size=(ROWS, dim)) for site in SITES}
    document = Document("a", "made", "train")
    contexts = [
        Context(rng.integers(0, 50, 12), np.zeros(12, np.int64), np.arange(12), "train")
        for _ in range(ROWS // 12)
    ]
    row_bytes = SiteSchema(dim=dim, dtype=dtype).row_bytes
    cut = Geometry(
        unit_rows=24, chunk_bytes=12 * row_bytes, token_chunk_rows=32, token_shard_rows=64
    )
    corpus, how = [document, *contexts], {"provenance": Provenance(), "geometry": cut}
    write_store(folder, corpus, acts, dtype=dtype, **how)
    return folder


@pytest.fixture(params=["float16", "bfloat16", "float32", "int8"])
def folder(request, tmp_path):
    return make_store(tmp_path / "store", request.param)


@pytest.fixture
def half(tmp_path):
    return make_store(tmp_path / "store", "float16")


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_tensors_are_the_arrays_in_the_same_order(folder, prefetch, dtype):
    store = open_store(folder)
    expected = list(store.batches(SITES[0], 16, epochs=2))

    with TorchBatches(
        store.batches(SITES[0], 16, epochs=2), dtype=dtype, prefetch=prefetch
    ) as batches:
        given = list(batches)

    assert len(given) == len(expected) > 20
    for one, two in zip(given, expected, strict=True):
        assert one.rows.tolist() == two.rows.tolist()
        assert one.acts.dtype == (dtype or getattr(torch, store[SITES[0]].dtype.name))
        np.testing.assert_array_equal(one.acts.float().numpy(), two.acts.astype(np.float32))
        assert (one.epoch, one.step) == (two.epoch, two.step)


def test_several_sites_come_aligned(half):
    store = open_store(half)

    with TorchBatches(store.batches(SITES, 16)) as batches:
        batch = next(batches)

    for site in SITES:
        np.testing.assert_array_equal(batch[site].numpy(), store[site].take(batch.rows))


@pytest.mark.parametrize("shuffle", ["exact", "pool"])
@pytest.mark.parametrize("threads", [0, 2])
def test_the_state_is_that_of_the_batch_given_out_not_of_what_is_read_ahead(half, shuffle, threads):
    store = open_store(half)
    how = {"shuffle": shuffle, "pool_rows": 60, "threads": threads}
    whole = [b.rows.tolist() for b in islice(store.batches(SITES[0], 16, **how), 30)]

    with TorchBatches(store.batches(SITES[0], 16, **how), prefetch=3) as first:
        begun = [batch.rows.tolist() for batch in islice(first, 9)]
        state = json.loads(json.dumps(first.state_dict()))
    with TorchBatches(store.batches(SITES[0], 16, state=state, **how)) as resumed:
        rest = [batch.rows.tolist() for batch in islice(resumed, 21)]

    assert begun + rest == whole


def test_an_error_of_the_thread_is_raised_where_the_batch_is_asked_for(half):
    (half / "rows.zarr/acts/resid_post.0/c.3.0").unlink()

    with (
        TorchBatches(open_store(half).batches(SITES[0], 16)) as batches,
        pytest.raises(StoreDamaged, match=r"c\.3\.0"),
    ):
        list(islice(batches, 30))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_closed_batches_say_so(half, threads, prefetch):
    batches = TorchBatches(
        open_store(half).batches(SITES[0], 16, threads=threads), prefetch=prefetch
    )
    next(batches)

    batches.close()

    with pytest.raises(InvalidBatches, match="were closed"):
        next(batches)
    assert batches.state_dict()["step"] == 1


def test_less_than_no_batch_ahead_is_refused(half):
    with pytest.raises(InvalidBatches, match="prefetch must be 0 or more, and is -1"):
        TorchBatches(open_store(half).batches(SITES[0], 16), prefetch=-1)


def test_batches_that_are_kept_stay_as_they_were(tmp_path):
    """Large tensors are in memory that is used again, once nobody has them."""
    store = open_store(make_store(tmp_path / "wide", "float16", dim=2**13))
    expected = [b.acts for b in islice(store.batches(SITES[0], 64), 12)]

    with TorchBatches(store.batches(SITES[0], 64, threads=2)) as batches:
        kept = [
            batch.acts[::7] if i % 2 else batch.acts
            for i, batch in zip(range(12), batches, strict=False)
        ]

    for i, (one, two) in enumerate(zip(kept, expected, strict=True)):
        np.testing.assert_array_equal(one.numpy(), two[::7] if i % 2 else two)


def test_no_thread_is_left_behind(half):
    store = open_store(half)
    before = threading.active_count()

    for _ in range(3):
        batches = TorchBatches(store.batches(SITES[0], 16, threads=2))
        next(batches)
    batches.close()
    del batches
    gc.collect()

    for thread in threading.enumerate():
        if thread.name.startswith("actlake"):
            thread.join(timeout=5)
    assert threading.active_count() == before


@ON_ONE_CORE
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", ["exact", "pool"])
def test_a_data_loader_gives_the_same_batches_whatever_its_workers(half, workers, shuffle):
    how = {"shuffle": shuffle, "pool_rows": 60, "epochs": 1, "last": "ragged"}
    expected = list(open_store(half).batches(str(SITES[0]), 16, **how))
    dataset = ActivationDataset(str(half), str(SITES[0]), 16, **how)

    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    given = list(loader)

    assert [np.asarray(b.rows).tolist() for b in given] == [b.rows.tolist() for b in expected]
    for one, two in zip(given, expected, strict=True):
        np.testing.assert_array_equal(one.acts.numpy(), two.acts.astype(np.float32))


@ON_ONE_CORE
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_stateful_loader_goes_on_in_the_middle(half, workers):
    def loader():
        dataset = ActivationDataset(half, SITES[0], 16, epochs=1)
        context = "spawn" if workers else None
        return StatefulDataLoader(
            dataset, batch_size=None, num_workers=workers, multiprocessing_context=context
        )

    whole = [np.asarray(batch.rows).tolist() for batch in loader()]
    first = loader()
    begun = [np.asarray(batch.rows).tolist() for batch in islice(first, 6)]
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = [np.asarray(batch.rows).tolist() for batch in second]

    assert begun + rest == whole


def test_a_data_set_resumes_as_a_stateful_loader_asks_it_to(half):
    whole = [b.rows.tolist() for b in islice(ActivationDataset(str(half), "resid_post.0", 16), 20)]
    first = ActivationDataset(str(half), "resid_post.0", 16)
    begun = [batch.rows.tolist() for batch in islice(first, 6)]
    state = json.loads(json.dumps(first.state_dict()))

    second = ActivationDataset(str(half), "resid_post.0", 16)
    second.load_state_dict(state)
    rest = [batch.rows.tolist() for batch in islice(second, 14)]

    assert begun + rest == whole


@pytest.mark.parametrize("threads", [0, 2])
def test_a_reader_that_stayed_behind_in_a_fork_is_not_waited_for(half, in_a_fork, threads):
    with TorchBatches(open_store(half).batches(SITES[0], 16, threads=threads)) as batches:
        next(batches)

        answer = in_a_fork(lambda: [next(batches) for _ in range(9)])

        assert isinstance(answer, InvalidBatches)
        assert "made in another process" in str(answer)
