"""What a few contexts show before a harvest: the loss in every form, and the largest values."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.jobs.harvest import HarvestConfig, StorageConfig, predicting, trying
from actlake.jobs.harvest.job import plan
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.preparation import wanted_store
from actlake.jobs.harvest.readings import AS_LAID_OUT, BARE, BEGUN, IN_TEMPLATE, Losses, readings_of
from actlake.jobs.harvest.sample import sample_of_corpus
from actlake.jobs.harvest.trial import Trial
from actlake.jobs.harvest.trying import try_contexts
from actlake.platform.cluster import ClusterConfig
from actlake.platform.corpus import CorpusConfig, Files, SplitByHash
from actlake.platform.models import ModelConfig, load_tokenizer
from actlake.platform.models.locate import find_file
from actlake.storage import Site
from actlake.storage.errors import NonFiniteActivations
from actlake.storage.ledger import read_state
from actlake.storage.location import locate

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}{% endfor %}"


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Callable[..., Path], texts: Path) -> HarvestConfig:
    return HarvestConfig(
        store=str(tmp_path / "store"),
        model=ModelConfig(name=str(tiny_model("m1")), device="cpu"),
        sites=(Site(0),),
        corpus=CorpusConfig(source=Files(path=str(texts)), context_length=48, bos="never"),
        cluster=ClusterConfig(address="local"),
        threads=1,
        batch_tokens=2048,
    )


def tried(config: HarvestConfig) -> Trial:
    """What a new store is begun with."""
    model, workers = resolve(config)
    wanted = wanted_store(config, model)
    sample = sample_of_corpus(config.corpus, wanted.tokenizer)
    readings = readings_of(sample, wanted.beginning, wanted.tokenizer, max_positions=None)
    return try_contexts(config, model, workers, sample, readings=readings)


def loss_of(folder: str, contexts: list[np.ndarray[Any, Any]], before: list[int]) -> float:
    """As transformers' own model with its head has it, over the tokens after each text's first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats: list[float] = []
    for ids in contexts:
        whole = torch.tensor([[*before, *ids.tolist()]])
        labels = whole.clone()
        labels[:, : len(before) + 1] = -100
        with torch.no_grad():
            nats.append(float(model(whole, labels=labels).loss) * (len(ids) - 1))
    return sum(nats) / sum(len(ids) - 1 for ids in contexts)


@pytest.mark.parametrize("stages", [1, 2])
def test_the_loss_in_every_form_is_that_of_transformers_own_model(
    asked: HarvestConfig, stages: int
) -> None:
    folder = Path(asked.model.name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    asked = replace(asked, sites=(Site(stages - 1),), stages=stages)
    model, _ = resolve(asked)
    tokenizer = load_tokenizer(model)
    sample = list(sample_of_corpus(asked.corpus, tokenizer))

    losses = tried(asked).losses

    assert losses is not None
    turn = tokenizer("<|endoftext|>user: ")["input_ids"]
    expected = {AS_LAID_OUT: [], BEGUN: [tokenizer.bos_token_id], IN_TEMPLATE: turn}
    assert losses.by_reading == {
        name: pytest.approx(loss_of(str(folder), sample, before), rel=1e-5)
        for name, before in expected.items()
    }
    assert losses.num_tokens == sum(len(ids) - 1 for ids in sample)
    assert losses.uniform == pytest.approx(math.log(model.vocab_size))


def test_conversations_in_the_chat_template_are_not_put_into_it_once_more(
    asked: HarvestConfig, tmp_path: Path
) -> None:
    (Path(asked.model.name) / "chat_template.jinja").write_text(TEMPLATE)
    said = {"messages": [{"role": "user", "content": "the boat and the stone and the lamp"}]}
    (tmp_path / "chat.jsonl").write_text(f"{json.dumps(said)}\n" * 20)
    source = Files(path=str(tmp_path / "chat.jsonl"), messages_column="messages")
    chat = replace(
        asked,
        corpus=replace(asked.corpus, source=source, splits=SplitByHash(fractions={"train": 1.0})),
    )

    assert IN_TEMPLATE in str(plan(asked))
    assert IN_TEMPLATE not in str(plan(chat))


def test_a_context_that_begins_with_a_token_is_read_without_it_too(asked: HarvestConfig) -> None:
    begun = replace(asked, corpus=replace(asked.corpus, bos="context"))

    by_reading = tried(begun).losses.by_reading

    assert list(by_reading) == [AS_LAID_OUT, BARE]
    without = [ids[1:] for ids in sample_of_corpus(begun.corpus, load_tokenizer(resolve(begun)[0]))]
    bos = load_tokenizer(resolve(begun)[0]).bos_token_id
    assert by_reading[AS_LAID_OUT] == pytest.approx(
        loss_of(asked.model.name, without, [bos]), rel=1e-5
    )
    assert by_reading[BARE] == pytest.approx(loss_of(asked.model.name, without, []), rel=1e-5)


def test_much_better_in_another_form_and_hardly_better_than_chance_are_warned_of() -> None:
    def warned(**nats: float) -> str:
        names = {"laid": AS_LAID_OUT, "begun": BEGUN, "template": IN_TEMPLATE}
        by_reading = {names[name]: loss for name, loss in nats.items()}
        losses = Losses(by_reading=by_reading, num_tokens=900, uniform=10.0)
        return "\n".join(losses.warnings())

    assert warned(laid=3.3, begun=3.2, template=3.4) == ""
    assert "better with a beginning of text: 3.16 nats" in warned(laid=5.29, begun=3.16)
    assert "corpus.bos: context" in warned(laid=5.29, begun=3.16)
    assert "much better in the chat template" in warned(laid=3.3, begun=3.2, template=2.0)
    assert "hardly better than a uniform guess (9.30 of 10.00" in warned(laid=9.3)


def test_the_plan_has_the_loss_and_what_to_do_unless_it_is_not_wanted(
    asked: HarvestConfig,
) -> None:
    shown = str(plan(asked))
    unchecked = str(plan(replace(asked, check=False)))

    assert "loss      " in shown
    assert "nats a token as laid out; with a beginning of text" in shown
    assert "warning   The model predicts these texts hardly better than a uniform guess" in shown
    assert "loss      not measured: asked not to\n" in unchecked
    assert "warning" not in unchecked
    assert "contexts  run together, padded" in unchecked


def test_layers_above_that_do_not_fit_into_memory_cost_the_loss_and_nothing_else(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "free_memory", lambda device: 100_000)

    trial = tried(asked)

    assert trial.losses is None
    assert "layers 1–2 and the head need" in trial.lines()["loss"]
    assert "100.0 kB are free" in trial.lines()["loss"]


def test_nothing_is_fetched_from_the_hub_for_the_loss_alone(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(asked.model.name)
    model, _ = resolve(asked)
    on_the_hub = replace(model, location="somebody/model", commit="0" * 40)
    monkeypatch.setattr(
        predicting, "find_file", lambda location, commit, name: find_file(str(folder), None, name)
    )

    with pytest.raises(predicting.NotPredicted) as raised:
        predicting.Predictor.load(on_the_hub, 1, tokens=10)

    assert str(raised.value) == (
        "layers 1–2 and the head lie in model.safetensors, not fetched from the hub yet"
    )


def test_where_actors_compute_the_units_they_are_asked_too_and_see_the_same(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tried(asked)

    monkeypatch.setattr(trying, "joins_cluster", lambda config: True)
    there = tried(
        replace(
            asked,
            sites=(Site(0), Site(1)),
            stages=2,
            cluster=ClusterConfig(address="local", num_cpus=2, object_store_mb=128),
        )
    )

    assert there.numerics == here.numerics
    assert there.errors.keys() == here.errors.keys() == {"padded"}
    assert there.losses is not None
    assert here.losses is not None
    assert there.losses.by_reading == pytest.approx(here.losses.by_reading, rel=1e-5)


def with_large_values(folder: str) -> None:
    """A copy of the model in its place, whose stream reaches a hundred thousand."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 100_000.0
    model.save_pretrained(folder)


def test_a_dtype_that_does_not_hold_the_values_is_refused_before_the_text_is_laid_out(
    asked: HarvestConfig,
) -> None:
    with_large_values(asked.model.name)

    with pytest.raises(NonFiniteActivations) as raised:
        plan(asked)

    assert "reach 100," in str(raised.value)
    assert "float16 holds 65,504" in str(raised.value)
    assert "hint: --storage.dtype bfloat16" in str(raised.value)
    assert not read_state(locate(asked.store)).corpora
    wider = str(plan(replace(asked, storage=StorageConfig(dtype="bfloat16"))))
    assert "values    up to 100," in wider
    counted = str(plan(replace(asked, storage=StorageConfig(nonfinite="count"))))
    assert "warning   " in counted


def test_a_model_that_overflows_by_itself_is_refused_with_the_dtype_to_take(
    asked: HarvestConfig,
) -> None:
    with_large_values(asked.model.name)
    half = replace(asked, model=replace(asked.model, dtype="float16"))

    with pytest.raises(NonFiniteActivations, match=r"hint: model\.dtype: float32"):
        plan(half)
