"""Before its first unit a store learns how its contexts are run, and keeps to it."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.jobs.harvest import HarvestConfig, StorageConfig, harvest, preparation
from actlake.jobs.harvest.batches import Batching
from actlake.jobs.harvest.job import plan
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.preparation import prepare_store
from actlake.jobs.harvest.trial import RowsNotIndependent, Trial
from actlake.jobs.harvest.trying import try_contexts
from actlake.platform.cluster import ClusterConfig
from actlake.platform.corpus import CorpusConfig, Documents, Files
from actlake.platform.models import ModelConfig
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, Lease, Site, open_store
from actlake.storage.ledger import read_state
from actlake.storage.location import locate
from actlake.storage.resume import use_numerics


def save_not_causal(folder: Path) -> None:
    """Another Llama in the folder of a tiny one: its attention looks both ways."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    config.is_causal = False
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Callable[..., Path], texts: Path) -> HarvestConfig:
    """Texts of very different length, in units that cut contexts."""
    for number, file in enumerate(sorted(texts.iterdir())):
        file.write_text(file.read_text() * (1 + number % 4))
    return HarvestConfig(
        store=str(tmp_path / "store"),
        model=ModelConfig(name=str(tiny_model("m1")), device="cpu"),
        sites=(Site(0), Site(2)),
        corpus=CorpusConfig(source=Files(path=str(texts)), context_length=128, layout=Documents()),
        storage=StorageConfig(dtype="float32", unit_rows=200),
        cluster=ClusterConfig(address="local", num_cpus=1, object_store_mb=128),
        tracking=TrackingConfig(wandb="disabled"),
        threads=1,
        batch_tokens=2048,
    )


def rows_alone(folder: Path, store: ActivationStore) -> dict[str, np.ndarray[Any, Any]]:
    """The stream as transformers itself gives it, a context at a time."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    last: list[Any] = []
    model.layers[2].register_forward_hook(lambda module, args, output: last.append(output[0]))
    parts: dict[str, list[Any]] = {"resid_post.0": [], "resid_post.2": []}
    for start, stop in itertools.pairwise(store.contexts["start"][:].tolist()):
        ids = torch.from_numpy(store.tokens["id"][start:stop]).long()[None]
        with torch.inference_mode():
            states = model(ids, use_cache=False, output_hidden_states=True).hidden_states
        parts["resid_post.0"].append(states[1][0].numpy())
        parts["resid_post.2"].append(last[-1].reshape(stop - start, -1).numpy())
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def test_a_model_that_looks_both_ways_has_the_rows_of_its_contexts_alone(
    asked: HarvestConfig,
) -> None:
    save_not_causal(Path(asked.model.name))

    result = harvest(asked)

    store = open_store(asked.store)
    assert result.complete
    assert store.schema.num_units > 3
    assert [numerics["batching"] for numerics in store.ledger.numerics] == ["equal_length"]
    for name, rows in rows_alone(Path(asked.model.name), store).items():
        np.testing.assert_allclose(store[name][:], rows, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_plan_says_how_contexts_are_run_and_why(asked: HarvestConfig) -> None:
    usual = str(plan(asked))
    save_not_causal(Path(asked.model.name))
    other = str(plan(asked))

    assert "contexts  run together, padded, and cut at the end of a unit (rows are what" in usual
    assert "contexts  run together with those of equal length, and whole (rows are what" in other
    assert "padded, and cut at the end of a unit, rows of resid_post." in other
    assert "would be off by" in other


def test_how_contexts_are_run_is_decided_once_and_kept_for_sites_that_come_later(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_not_causal(Path(asked.model.name))
    harvest(asked)
    tried: list[str | None] = []

    def noting(*args: Any, fixed: Batching | None = None, **kwargs: Any) -> Trial:
        tried.append(fixed)
        return try_contexts(*args, fixed=fixed, **kwargs)

    monkeypatch.setattr(preparation, "try_contexts", noting)
    complete = harvest(asked)
    extended = harvest(replace(asked, sites=(Site(1),)))

    assert (complete.units_done, extended.complete) == (0, True)
    assert tried == ["equal_length"]
    numerics = open_store(asked.store).ledger.numerics
    assert [known["batching"] for known in numerics] == ["equal_length"]


def test_a_store_whose_contexts_are_run_as_new_rows_do_not_bear_is_not_gone_on_with(
    asked: HarvestConfig,
) -> None:
    save_not_causal(Path(asked.model.name))
    model, workers = resolve(asked)
    with Lease.acquire(locate(asked.store)) as lease:
        prepare_store(lease, asked, model, workers, progress=lambda **done: None)
        use_numerics(lease, {"batching": "padded"})

    with pytest.raises(RowsNotIndependent, match="give another path for these sites") as raised:
        harvest(asked)

    assert "contexts together, padded, and cut at the end of a unit: resid_post." in str(
        raised.value
    )


def test_a_model_that_is_never_the_same_twice_is_refused_before_its_text_is_laid_out(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward
    noisy = lambda self, x: forward(self, x) + 0.1 * torch.randn_like(x)  # noqa: E731
    monkeypatch.setattr(LlamaMLP, "forward", noisy)

    with pytest.raises(RowsNotIndependent, match="the same rows for the same context twice"):
        harvest(asked)

    assert not read_state(locate(asked.store)).corpora
