"""The worker without Ray: what it writes is what transformers computes."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actlake.jobs.harvest.worker import HarvestWorker
from actlake.platform.cluster import DeviceOutOfMemory, run_chain
from actlake.platform.models import ModelConfig, resolve_model
from actlake.platform.models.stage import ModelStage
from actlake.storage import (
    Context,
    Document,
    Geometry,
    Lease,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    add_sites,
    open_store,
    verify,
)
from actlake.storage.errors import NonFiniteActivations
from actlake.storage.location import LocalFolder

SITES = tuple(
    map(Site.parse, ["resid_pre.0", "resid_post.0", "attn_out.1", "mlp_in.2", "resid_post.3"])
)
LENGTHS = [5, 16, 9, 1, 16, 12, 3, 16, 16, 7, 2, 11, 16, 8]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    from transformers import LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


def build(folder, *, lengths=LENGTHS):
    """A store of random tokens in contexts that straddle its units of 24 rows."""
    rng = np.random.default_rng(0)
    request = StoreRequest(layout="documents", context_length=16, splits=("train",))
    with (
        Lease.acquire(LocalFolder(folder)) as lease,
        StoreBuilder(lease, request, Provenance()) as builder,
    ):
        for length in lengths:
            document = builder.add_document(Document(f"{length}", "made", "train"))
            builder.add_context(
                Context(
                    rng.integers(0, 128, length).astype(np.int32),
                    np.full(length, document),
                    np.arange(length, dtype=np.int32),
                    "train",
                )
            )
        builder.finish(lambda rows: Geometry(unit_rows=24, chunk_bytes=8 * 4 * 32))


def fill(
    folder,
    model,
    *,
    stages,
    batch_tokens=48,
    batching="padded",
    dtype="float32",
    on_receipts=lambda unit, receipts: None,
):
    """Run every unit through a chain of stages in this process."""
    with Lease.acquire(LocalFolder(folder)) as lease:
        store = open_store(folder)
        add_sites(lease, store, dict.fromkeys(SITES, SiteSchema(dim=32, dtype=dtype)), {})
        workers = [
            HarvestWorker(
                store_url=str(folder),
                token=lease.token,
                model=model,
                layers=layers,
                sites=SITES,
                batch_tokens=batch_tokens,
                batching=batching,
                threads=1,
            )
            for layers in stages
        ]
        for unit in range(open_store(folder).schema.num_units):
            receipts = run_chain(workers, unit)
            on_receipts(unit, receipts)
            lease.ledger.commit(itertools.chain.from_iterable(r.records for r in receipts))
    return open_store(folder)


@pytest.fixture
def expected(tiny_llama):
    """Rows of each site from transformers, one context at a time."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    seen = {}
    model.model.layers[1].self_attn.register_forward_hook(
        lambda m, a, out: seen.update({"attn_out.1": out[0][0].clone()}) and None
    )
    model.model.layers[2].mlp.register_forward_pre_hook(
        lambda m, args: seen.update({"mlp_in.2": args[0][0].clone()}) and None
    )
    model.model.layers[3].register_forward_hook(
        lambda m, a, out: (
            seen.update({"resid_post.3": (out[0] if out.ndim == 3 else out).clone()}) and None
        )
    )

    def rows(store):
        starts = store.contexts["start"][:]
        parts = {str(site): [] for site in SITES}
        for start, stop in itertools.pairwise(starts.tolist()):
            ids = torch.from_numpy(store.tokens["id"][start:stop]).long()[None]
            with torch.inference_mode():
                states = model(ids, output_hidden_states=True).hidden_states
            seen.update({"resid_pre.0": states[0][0], "resid_post.0": states[1][0]})
            for name, values in parts.items():
                values.append(seen[name].numpy().copy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    return rows


@pytest.mark.parametrize("stages", [[range(0, 4)], [range(0, 2), range(2, 4)]])
def test_rows_are_what_transformers_computes_on_each_context(
    tmp_path, tiny_llama, expected, stages
):
    build(tmp_path / "store")

    store = fill(
        tmp_path / "store", resolve_model(ModelConfig(name=str(tiny_llama))), stages=stages
    )

    for name, rows in expected(store).items():
        np.testing.assert_allclose(store[name][:], rows, rtol=1e-4, atol=1e-5, err_msg=name)


def test_chains_of_one_two_and_three_stages_write_the_same_bytes(tmp_path, tiny_llama, tree):
    model = resolve_model(ModelConfig(name=str(tiny_llama)))
    layouts = {
        "one": [range(0, 4)],
        "two": [range(0, 1), range(1, 4)],
        "three": [range(0, 2), range(2, 3), range(3, 4)],
    }
    for name, stages in layouts.items():
        build(tmp_path / name)
        fill(tmp_path / name, model, stages=stages)

    one, two, three = (tree(tmp_path / name) for name in layouts)
    assert one == two == three
    assert len(one) > 50


@pytest.mark.parametrize("stages", [[range(0, 4)], [range(0, 2), range(2, 4)]])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_int8_rows_are_what_the_model_computes_to_half_a_scale(
    tmp_path, tiny_llama, computed, stages
):
    model = resolve_model(ModelConfig(name=str(tiny_llama), dtype=computed))
    for dtype in ("float32", "int8"):
        build(tmp_path / dtype)
    exact = fill(tmp_path / "float32", model, stages=[range(0, 4)], dtype="float32")

    store = fill(tmp_path / "int8", model, stages=stages, dtype="int8")

    for site in SITES:
        off = np.abs(store[site][:] - exact[site][:])
        assert (off <= store[site].scales[:].astype(np.float32) / 2).all()
        assert off.any()


@pytest.mark.parametrize("kind", ["acts", "scales"])
def test_damaged_codes_and_scales_are_computed_again_to_the_same_bytes(
    tmp_path, tiny_llama, tree, kind
):
    model = resolve_model(ModelConfig(name=str(tiny_llama)))
    build(tmp_path / "store")
    store = fill(tmp_path / "store", model, stages=[range(0, 4)], dtype="int8")
    before = tree(tmp_path / "store")
    damaged = tmp_path / f"store/rows.zarr/{kind}/resid_post.3/c.1.0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (damage,) = verify(store).damaged

    with Lease.acquire(LocalFolder(tmp_path / "store")) as lease:
        worker = HarvestWorker(
            store_url=store.url,
            token=lease.token,
            model=model,
            layers=range(0, 4),
            sites=(Site(3),),
            batch_tokens=48,
            batching="padded",
            threads=1,
            damaged=(damage.record,),
        )
        (receipt,) = run_chain([worker], 1)

    assert receipt.records == [damage.record]
    assert tree(tmp_path / "store") == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_are_rounded_to_the_stores_dtype(tmp_path, tiny_llama, expected, dtype):
    build(tmp_path / "store")

    model = resolve_model(ModelConfig(name=str(tiny_llama)))
    store = fill(tmp_path / "store", model, stages=[range(0, 4)], dtype=dtype)

    step = 2**-10 if dtype == "float16" else 2**-7
    for name, rows in expected(store).items():
        stored = store[name][:].astype(np.float32)
        np.testing.assert_allclose(stored, rows, rtol=step, atol=1e-4, err_msg=name)


def test_a_model_with_nan_weights_is_refused_and_nothing_is_written(tmp_path, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    build(tmp_path / "store")

    with pytest.raises(NonFiniteActivations, match=r"Unit 0 of mlp_in.2 holds .* NaNs"):
        fill(
            tmp_path / "store",
            resolve_model(ModelConfig(name=str(tmp_path / "broken"))),
            stages=[range(0, 4)],
        )

    assert not list((tmp_path / "store" / "rows.zarr" / "acts" / "resid_post.3").glob("c.*"))


@pytest.mark.parametrize("stages", [[range(0, 4)], [range(0, 2), range(2, 4)]])
def test_receipts_tell_the_norms_that_the_stores_moments_have(tmp_path, tiny_llama, stages):
    build(tmp_path / "store")
    told = {}

    store = fill(
        tmp_path / "store",
        resolve_model(ModelConfig(name=str(tiny_llama))),
        stages=stages,
        on_receipts=lambda unit, receipts: told.update(
            {(unit, name): norm for receipt in receipts for name, norm in receipt.norms.items()}
        ),
    )

    assert len(told) == store.schema.num_units * len(store.sites)
    for (unit, name), norm in told.items():
        moments = store.moments(name.removeprefix("norm/"), units=[unit])
        assert norm == pytest.approx(moments.mean_norm, rel=1e-12)


def fail_at_batches(monkeypatch, error):
    """Let stages raise at every batch, but not where they are checked with a few tokens first."""
    run = ModelStage.run

    def failing(stage, inputs, capture):
        if inputs.numel() > 8:
            raise error
        return run(stage, inputs, capture)

    monkeypatch.setattr(ModelStage, "run", failing)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
)
def test_a_batch_that_does_not_fit_says_which_setting_makes_it_smaller(
    tmp_path, tiny_llama, monkeypatch, error
):
    build(tmp_path)
    fail_at_batches(monkeypatch, error)

    with pytest.raises(DeviceOutOfMemory) as raised:
        fill(tmp_path, resolve_model(ModelConfig(name=str(tiny_llama))), stages=[range(4)])

    assert str(error) in str(raised.value)
    assert "`batch_tokens: 24`" in str(raised.value)


def test_a_bug_in_a_stage_is_not_taken_for_a_lack_of_memory(tmp_path, tiny_llama, monkeypatch):
    build(tmp_path)
    fail_at_batches(monkeypatch, RuntimeError("The size of tensor a (3) must match b (4)"))

    with pytest.raises(RuntimeError, match="The size of tensor a") as raised:
        fill(tmp_path, resolve_model(ModelConfig(name=str(tiny_llama))), stages=[range(4)])

    assert type(raised.value) is RuntimeError
