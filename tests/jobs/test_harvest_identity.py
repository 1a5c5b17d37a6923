"""Which store is the one that was asked for: decided by what is in it, not by names and disks."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actlake.jobs.harvest import HarvestConfig
from actlake.jobs.harvest.job import plan
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.planning import site_schemas
from actlake.jobs.harvest.preparation import harvest_request, prepare_store, wanted_store
from actlake.jobs.model_of_store import NotTheModel, model_of_store
from actlake.platform.cluster import ClusterConfig
from actlake.platform.corpus import Builtin, CorpusConfig, Files, HubDataset
from actlake.platform.corpus.passages import Row
from actlake.platform.models import ModelConfig
from actlake.platform.models.errors import ModelNotFound
from actlake.storage import ActivationStore, Lease, Site, add_sites, open_store
from actlake.storage.errors import StoreMismatch
from actlake.storage.location import locate

Harvest = Callable[..., HarvestConfig]


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Callable[..., Path], texts: Path) -> HarvestConfig:
    return HarvestConfig(
        store=str(tmp_path / "store"),
        model=ModelConfig(name=str(tiny_model("m1")), device="cpu"),
        sites=(Site(2),),
        corpus=CorpusConfig(source=Files(path=str(texts)), context_length=32),
        cluster=ClusterConfig(address="local"),
        threads=1,
        batch_tokens=256,
    )


def prepare(config: HarvestConfig) -> ActivationStore:
    """All that a harvest does before the model runs."""
    model, workers = resolve(config)
    with Lease.acquire(locate(config.store)) as lease:
        prepared = prepare_store(lease, config, model, workers, progress=lambda **done: None)
        store = prepared.store
        add_sites(
            lease,
            store,
            site_schemas(config, model),
            harvest_request(config, threads=workers.threads),
        )
    return open_store(config.store)


def with_source(config: HarvestConfig, source: Any) -> HarvestConfig:
    return replace(config, corpus=replace(config.corpus, source=source))


def one_site_more(config: HarvestConfig) -> HarvestConfig:
    return replace(config, sites=(Site(2), Site(1)))


def test_texts_that_are_gone_do_not_matter_once_the_rows_are_fixed(
    asked: HarvestConfig, texts: Path
) -> None:
    before = prepare(asked)
    shutil.rmtree(texts)

    planned = plan(one_site_more(asked))
    store = prepare(one_site_more(asked))

    assert planned.rows == store.schema.rows == before.schema.rows
    assert store.sites == (Site(1), Site(2))


def test_a_file_of_documents_that_is_gone_does_not_matter_either(
    asked: HarvestConfig, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document {n}."}) + "\n" for n in range(30)))
    asked = with_source(asked, Files(path=(str(tmp_path / "*.jsonl"), str(path))))
    prepare(asked)
    path.unlink()

    assert prepare(one_site_more(asked)).sites == (Site(1), Site(2))


def test_a_data_set_that_cannot_be_reached_any_more_does_not_matter(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(source: HubDataset, plan: Any) -> Any:
        yield from (Row(f"row {n}", "set", {"text": f"Document {n}."}) for n in range(30))

    def unreachable(source: HubDataset, plan: Any) -> Any:
        raise AssertionError("the data set was asked for")

    asked = with_source(asked, HubDataset(dataset="some/set"))
    monkeypatch.setattr("actlake.platform.corpus.read.read_hub_dataset", rows)
    prepare(asked)
    monkeypatch.setattr("actlake.platform.corpus.read.read_hub_dataset", unreachable)

    assert prepare(one_site_more(asked)).sites == (Site(1), Site(2))


def test_the_demo_text_of_another_python_does_not_matter(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_source(asked, Builtin())
    monkeypatch.setattr(
        "actlake.platform.corpus.demo_text._topics",
        lambda: {f"topic {n}": f"The text of topic {n}." for n in range(30)},
    )
    prepare(asked)
    monkeypatch.setattr(
        "actlake.platform.corpus.demo_text._topics",
        lambda: {f"topic {n}": f"A later text of topic {n}." for n in range(30)},
    )

    assert prepare(one_site_more(asked)).sites == (Site(1), Site(2))


def test_the_same_text_in_another_place_is_known_by_its_content(
    asked: HarvestConfig, texts: Path
) -> None:
    prepare(asked)
    moved = texts.rename(texts.with_name("moved"))

    store = prepare(one_site_more(with_source(asked, Files(path=f"{moved}/*.txt"))))

    assert store.sites == (Site(1), Site(2))


def test_another_text_in_another_place_is_refused(asked: HarvestConfig, texts: Path) -> None:
    prepare(asked)
    other = Path(shutil.copytree(texts, texts.with_name("other")))
    (other / "07.txt").write_text("Another text.")

    for act in (plan, prepare):
        with pytest.raises(StoreMismatch) as caught:
            act(one_site_more(with_source(asked, Files(path=str(other)))))

        words = f'its text is another:\n  corpus.source.path: stored "{texts}", asked "{other}"'
        assert words in str(caught.value)
        assert "hint: give another path for a new store" in str(caught.value)


def test_a_text_in_other_words_that_is_not_there_cannot_be_compared(asked: HarvestConfig) -> None:
    prepare(asked)

    with pytest.raises(StoreMismatch, match="cannot be compared: No file matches '/nowhere'"):
        prepare(with_source(asked, Files(path="/nowhere")))


def test_the_plan_refuses_what_the_harvest_refuses(asked: HarvestConfig) -> None:
    prepare(asked)
    shorter = replace(asked, corpus=replace(asked.corpus, context_length=16))

    for act in (plan, prepare):
        with pytest.raises(StoreMismatch, match="context_length: stored 32, asked 16"):
            act(shorter)


def renamed(config: HarvestConfig, name: str) -> HarvestConfig:
    folder = Path(config.model.name)
    return replace(
        config, model=replace(config.model, name=str(folder.rename(folder.parent / name)))
    )


def test_a_model_by_another_name_is_the_same_model(asked: HarvestConfig) -> None:
    before = prepare(asked)

    store = prepare(one_site_more(renamed(asked, "m2")))

    assert store.sites == (Site(1), Site(2))
    assert store.fingerprint == before.fingerprint


def test_another_model_under_the_same_name_is_refused(
    asked: HarvestConfig, tiny_model: Callable[..., Path]
) -> None:
    prepare(asked)
    shutil.rmtree(asked.model.name)
    tiny_model("m1", seed=1)

    with pytest.raises(StoreMismatch, match=r"model\.revision: stored"):
        prepare(one_site_more(asked))


def test_jobs_find_a_renamed_model_where_the_last_harvest_found_it(asked: HarvestConfig) -> None:
    prepare(asked)
    moved = renamed(asked, "m2")

    with pytest.raises(ModelNotFound):
        model_of_store(open_store(asked.store), None)
    store = prepare(one_site_more(moved))

    assert model_of_store(store, None).location == moved.model.name


def test_jobs_do_not_take_another_model_in_the_renamed_ones_place(
    asked: HarvestConfig, tiny_model: Callable[..., Path]
) -> None:
    store = prepare(asked)
    renamed(asked, "m2")
    tiny_model("m1", seed=1)

    with pytest.raises(NotTheModel, match="holds rows of revision"):
        model_of_store(store, None)


def test_whether_the_machine_is_offline_changes_nothing(
    asked: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    model, _ = resolve(asked)
    online = wanted_store(asked, model)
    prepare(asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not constants.HF_HUB_OFFLINE)

    offline = wanted_store(asked, model)
    store = prepare(one_site_more(asked))

    assert offline.provenance == online.provenance
    assert store.sites == (Site(1), Site(2))
    assert [key.rpartition("/")[2] for key in store.location.list("tokenizer")] == [
        "tokenizer.json"
    ]


def test_two_stores_of_one_text_and_model_have_one_fingerprint_whatever_their_names(
    asked: HarvestConfig, texts: Path, tmp_path: Path
) -> None:
    first = prepare(asked)
    moved = texts.rename(texts.with_name("moved"))
    again = with_source(renamed(asked, "m2"), Files(path=f"{moved}/**/*.txt"))

    second = prepare(replace(again, store=str(tmp_path / "again")))

    assert second.fingerprint == first.fingerprint
