"""A run that began before its store was appended to goes on over the rows that it began with."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from actlake.jobs.begun import kept_beside, open_as_begun
from actlake.platform.runs import Input, RunRecord
from actlake.storage import Context, Document, Lease, Site, open_store, write_store
from actlake.storage.append import append_corpus
from actlake.storage.location import locate
from actlake.storage.writer import write_unit

SITE = Site(0)


def made(folder, first_id, count=30):
    """A store of `count` documents of five tokens, every third for tests."""
    items = []
    for number in range(count):
        split = "test" if number % 3 == 2 else "train"
        ids = np.arange(5) + 5 * number + first_id
        items.append(Document(f"{first_id}-{number}", "made", split))
        items.append(Context(ids, np.full(5, number), np.full(5, -1, np.int32), split))
    rows = np.random.default_rng(first_id).normal(size=(5 * count, 4)).astype(np.float32)
    return write_store(folder, items, {SITE: rows}, provenance="made", splits=("train", "test"))


def grow(folder, tmp_path):
    """Append as many rows again."""
    addition = made(tmp_path / "addition", 1000)
    with Lease.acquire(locate(folder)) as lease:
        store = append_corpus(lease, addition)
        begins = store.schema.stretches[-1].rows.start
        for unit in store.schema.units.without(store.committed()):
            rows = store.schema.unit_extent(unit)
            part = addition[SITE].read(rows.start - begins, rows.stop - begins)
            lease.ledger.commit(write_unit(store, unit, {SITE: part}, token=lease.token))


@pytest.fixture
def store(tmp_path):
    made(tmp_path / "store", 0)
    return tmp_path / "store"


def begun(store):
    inputs = {"store": Input(str(store), open_store(store).fingerprint)}
    return RunRecord.start("probe", {"k": 1}, inputs=inputs)


def is_same(record):
    return record.config == {"k": 1}


def test_a_run_that_was_killed_goes_on_with_what_there_was_and_says_so(store, tmp_path, caplog):
    out = tmp_path / "out"
    record, before = begun(store), open_store(store)
    with pytest.raises(KeyboardInterrupt), kept_beside(record, out):
        raise KeyboardInterrupt
    grow(store, tmp_path)

    opened = open_as_begun(str(store), out, is_same=is_same)

    assert opened.fingerprint == before.fingerprint
    assert opened.schema.num_rows == 150
    assert "has 150 rows more than when the run in" in caplog.text
    assert "hint: name another folder as out" in caplog.text
    assert open_as_begun(str(store), tmp_path / "new").schema.num_rows == 300
    other = open_as_begun(str(store), out, is_same=lambda record: record.config == {"k": 2})
    assert other.schema.num_rows == 300


def test_a_finished_result_is_that_of_the_rows_it_began_with(store, tmp_path):
    out = tmp_path / "out"
    record, before = begun(store), open_store(store)
    with kept_beside(record, out):
        record.finish({}).save(out)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    grow(store, tmp_path)

    assert open_as_begun(str(store), out).fingerprint == before.fingerprint


def test_a_store_that_is_another_is_opened_as_it_is(store, tmp_path):
    record = begun(store)
    record.save(tmp_path / "out")
    shutil.rmtree(store)
    other = made(store, 7)

    assert open_as_begun(str(store), Path(tmp_path / "out")).fingerprint == other.fingerprint


def test_a_training_goes_on_to_the_bits_of_one_whose_store_never_grew(store, tmp_path):
    from rich.console import Console

    from actlake.jobs.sae import SAEConfig, train_saes
    from actlake.jobs.sae.config import EvaluationConfig, ReportConfig, SAESpec
    from actlake.platform.tracking import TrackingConfig

    quiet = Console(quiet=True)

    def config(out):
        return SAEConfig(
            store=str(store), out=str(tmp_path / out),
            sae=SAESpec(site=SITE, architecture="topk", d_sae=8, options={"k": 2}),
            split="train", batch_rows=10, epochs=2, threads=1, device="cpu",
            tracking=TrackingConfig(wandb="disabled"),
            evaluation=EvaluationConfig(rows=20),
            report=ReportConfig(latents=0, rows=20),
        )  # fmt: skip

    train_saes(config("undisturbed"), console=quiet)
    begun_early = config("out")
    from actlake.jobs.sae.job import _begin
    from actlake.jobs.sae.opening import open_config

    opened = open_config(begun_early)
    opened.out.mkdir()
    _begin(opened)
    grow(store, tmp_path)

    train_saes(begun_early, console=quiet)

    weights = [next((tmp_path / out).rglob("sae_weights.safetensors")).read_bytes()
               for out in ("undisturbed", "out")]  # fmt: skip
    assert weights[0] == weights[1]
    assert open_config(config("anew")).num_rows == 2 * opened.num_rows
