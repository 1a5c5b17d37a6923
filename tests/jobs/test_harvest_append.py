"""``actlake harvest --append``: a finished store takes further texts, whole or not at all."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlake.jobs.harvest import HarvestConfig, job
from actlake.jobs.harvest import command as harvest_command
from actlake.jobs.harvest.job import harvest, plan
from actlake.jobs.harvest.planning import plan_stages
from actlake.jobs.harvest.worker import HarvestWorker
from actlake.platform.cluster import ClusterConfig, PoolResult, UnitTiming
from actlake.platform.corpus import CorpusConfig, Files
from actlake.platform.corpus.errors import CorpusEmpty
from actlake.platform.models import ModelConfig
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site, open_store, verify
from actlake.storage.errors import (
    RowsNotCommitted,
    StoreExists,
    StoreMismatch,
    StoreNotFound,
)

TIMING = UnitTiming(replica=0, attempt=1, seconds=0.0)
DONE = PoolResult(
    done=0, failed={}, stopped=False, requeued=0, replicas_lost=0, given_up=(), seconds=0.0
)
WORDS = ("The river ran past the mill", "Rain fell on the harbour", "A class may inherit")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are computed here, one after the other, by the harvest's own worker; without Ray."""

    def run_phase(run: Any, sites: tuple[Site, ...], units: Any) -> PoolResult:
        (layers,) = plan_stages(run._model, run._config)
        worker = HarvestWorker(
            store_url=run._store.url,
            token=run._lease.token,
            model=run._model,
            layers=layers,
            sites=sites,
            batch_tokens=run._config.batch_tokens,
            batching=run._batching,
            threads=1,
        )
        for unit in units:
            run._commits.commit(unit, [worker.run(unit, None)], TIMING)
        return DONE

    monkeypatch.setattr(job, "session", lambda config: nullcontext())
    monkeypatch.setattr(job._Run, "_run_phase", run_phase)


@pytest.fixture
def first(tmp_path: Path, tiny_model: Callable[..., Path], texts: Path) -> HarvestConfig:
    return HarvestConfig(
        store=str(tmp_path / "store"),
        model=ModelConfig(name=str(tiny_model("m1")), device="cpu"),
        sites=(Site(0), Site(2)),
        corpus=CorpusConfig(source=Files(path=str(texts)), context_length=32),
        cluster=ClusterConfig(address="local"),
        tracking=TrackingConfig(wandb="disabled"),
        threads=1,
    )


@pytest.fixture
def second(first: HarvestConfig, tmp_path: Path) -> HarvestConfig:
    """The same, of other texts."""
    return with_source(first, write_texts(tmp_path / "more", range(40, 60)))


def write_texts(folder: Path, numbers: range) -> Path:
    folder.mkdir()
    for number in numbers:
        (folder / f"{number:02d}.txt").write_text(f"{WORDS[number % 3]}. Number {number}.")
    return folder


def with_source(config: HarvestConfig, path: Path, **corpus: Any) -> HarvestConfig:
    source = Files(path=str(path))
    return replace(config, corpus=replace(config.corpus, source=source, **corpus))


def files_of(store: str) -> dict[str, bytes]:
    """What two equal stores have in common."""
    root = Path(store)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("ledger", "log", "index")
    }


def test_what_is_appended_has_the_rows_that_a_store_of_its_own_has(
    first: HarvestConfig, second: HarvestConfig, tmp_path: Path
) -> None:
    alone = replace(second, store=str(tmp_path / "alone"))
    harvest(alone)
    harvest(first)
    before = open_store(first.store)

    result = harvest(second, append=True)

    store, other = open_store(first.store), open_store(alone.store)
    assert result.complete
    assert result.rows == len(before) + len(other)
    begins = store.schema.stretches[1].rows.start
    for site in first.sites:
        np.testing.assert_array_equal(store[site][: len(before)], before[site][:])
        np.testing.assert_allclose(store[site][begins:], other[site][:], rtol=2e-3, atol=2e-3)
    assert store.tokens["id"][begins:].tolist() == other.tokens["id"][:].tolist()
    texts = [one.find(document="41.txt").table()["token"].to_pylist() for one in (store, other)]
    assert texts[0] == texts[1] != []
    assert verify(store).is_whole
    assert harvest(second, append=True).units_done == 0
    assert harvest(first).units_done == 0
    assert harvest(second).units_done == 0


def test_an_append_that_is_killed_after_any_unit_goes_on_and_ends_in_the_same_bytes(
    first: HarvestConfig, second: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = replace(first, store=str(tmp_path / "undisturbed"))
    harvest(undisturbed)
    harvest(replace(second, store=undisturbed.store), append=True)
    harvest(first)

    for committed in range(3):
        with monkeypatch.context() as patch:
            die_after(patch, committed)
            with pytest.raises(KeyboardInterrupt):
                harvest(second, append=True)
    assert not open_store(first.store).coverage(Site(0)).is_complete
    third = write_texts(tmp_path / "third", range(60, 70))
    with pytest.raises(RowsNotCommitted, match="is not finished"):
        harvest(with_source(second, third), append=True)
    assert harvest(second, append=True).complete

    assert files_of(first.store) == files_of(undisturbed.store)


def die_after(patch: pytest.MonkeyPatch, units: int) -> None:
    from actlake.storage.ledger import LedgerWriter

    left = [units]
    commit = LedgerWriter.commit

    def dying(self: LedgerWriter, shards: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        commit(self, shards)

    patch.setattr(LedgerWriter, "commit", dying)


def test_a_plan_says_what_would_be_added_and_changes_nothing(
    first: HarvestConfig, second: HarvestConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(first)
    before, rows = files_of(first.store), len(open_store(first.store))

    planned = str(plan(second, append=True))

    assert f"appended  to {rows:,} rows of {first.store}, from row 4,19" in planned
    assert files_of(first.store) == before
    harvest(second, append=True)
    begins = open_store(first.store).schema.stretches[1].rows
    assert f"from row {begins.start:,}" in planned
    assert f"rows      {len(begins):,} tokens" in planned
    assert "appended  to" in str(plan(second, append=True))
    with pytest.raises(SystemExit):
        harvest_command.main(["--help"])
    helped = capsys.readouterr().out
    assert "--append" in helped
    assert "'more/**/*.txt' --append" in helped


def test_sites_that_come_later_are_harvested_for_both(
    first: HarvestConfig, second: HarvestConfig
) -> None:
    harvest(first)
    harvest(second, append=True)

    for config in (first, second):
        assert harvest(replace(config, sites=(Site(1),))).complete
    store = open_store(first.store)
    assert store.coverage(Site(1)).rows == store.schema.num_rows
    assert verify(store).is_whole


def refused(config: HarvestConfig, kind: type[Exception], words: str) -> None:
    before = files_of(config.store)
    with pytest.raises(kind, match=words):
        plan(config, append=True)
    with pytest.raises(kind, match=words):
        harvest(config, append=True)
    assert files_of(config.store) == before


def test_what_cannot_be_appended_is_refused_before_anything_changes(
    first: HarvestConfig, second: HarvestConfig, texts: Path, tmp_path: Path
) -> None:
    refused(second, StoreNotFound, r"no store at .* to append to\nhint: leave --append out")
    harvest(first)

    refused(first, StoreExists, "is in .* already: its first corpus has the same tokens")
    (texts / "99.txt").write_text("One text more than there was.")
    refused(first, StoreExists, r"30 of 31 documents have ids that are in .*'00.txt'")
    layout = replace(second, corpus=replace(second.corpus, context_length=16))
    refused(layout, StoreMismatch, "context_length: stored 32, asked 16")
    special = replace(second, corpus=replace(second.corpus, bos="context"))
    refused(special, StoreMismatch, r"corpus.bos.at: stored .* asked .context")
    sites = replace(second, sites=(Site(0), Site(1)))
    refused(
        sites, StoreMismatch, r"resid_post.1 is no site .* which has resid_post.0, resid_post.2"
    )
    dtype = replace(second, storage=replace(second.storage, dtype="float32"))
    refused(dtype, StoreMismatch, 'dtype: stored "float16", asked "float32"')


def test_another_model_is_refused(
    first: HarvestConfig, second: HarvestConfig, tiny_model: Callable[..., Path]
) -> None:
    harvest(first)

    other = replace(second, model=ModelConfig(name=str(tiny_model("m2", seed=2)), device="cpu"))
    refused(other, StoreMismatch, "model.revision: stored")


def test_texts_that_are_there_already_are_left_out_where_each_is_wanted_once(
    first: HarvestConfig, tmp_path: Path
) -> None:
    first = replace(first, corpus=replace(first.corpus, deduplicate=True))
    harvest(first)
    stored = open_store(first.store).documents(["text"])["text"].to_pylist()
    more = write_texts(tmp_path / "more", range(40, 60))
    (more / "copy.txt").write_text(stored[3])

    harvest(with_source(first, more), append=True)

    texts = open_store(first.store).documents(["text"])["text"].to_pylist()
    assert len(texts) == 30 + 20 == len(set(texts))
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "only.txt").write_text(stored[3])
    with pytest.raises(CorpusEmpty):
        harvest(with_source(first, copies), append=True)
    assert harvest(with_source(first, more), append=True).units_done == 0


def test_segments_of_appended_conversations_are_labelled_too(
    first: HarvestConfig, tmp_path: Path
) -> None:
    def conversations(name: str, says: str) -> Path:
        lines = [
            {
                "id": f"{name}-{n}",
                "messages": [
                    {"role": "user", "content": f"{says} {n}?"},
                    {"role": "assistant", "content": f"It is {n}."},
                ],
            }
            for n in range(30)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    model = Path(first.model.name)
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template)

    def of(path: Path) -> HarvestConfig:
        source = Files(path=str(path), messages_column="messages", id_column="id")
        return replace(first, corpus=replace(first.corpus, source=source))

    harvest(of(conversations("one", "What is")))
    harvest(of(conversations("two", "How many are")), append=True)

    store = open_store(first.store)
    users = store.find(where="segments.segment = 'user'")
    of_new = store.find(where="segments.segment = 'user' and document_id like 'two-%'")
    assert len(of_new) > 0
    assert len(users) > len(of_new)
