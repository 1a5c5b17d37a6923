"""A driver that is suspended, thought dead and taken over, and then goes on: it changes nothing."""

import shutil
from contextlib import suppress

import pytest

from actlake.storage import Lease, Site, StoreBuilder, export_store, fence, open_store, verify
from actlake.storage import ledger as ledgers
from actlake.storage.errors import LeaseLost, StoreDamaged, StoreError, StoreExists
from actlake.storage.fence import FolderWriter
from actlake.storage.location import LocalFolder, locate

NOT_OF_THE_STORE = ("ledger/lease-", "partial/", "leftovers/")
WRITES = ("create", "ensure", "replace", "remove", "set_aside")


@pytest.fixture
def other(make_known):
    """Other texts than those of `known`, of another length."""
    return make_known(seed=1, rows=430)


@pytest.fixture
def suspended(monkeypatch):
    """Suspend the driver of epoch 1 in its n-th operation, after the file is staged."""

    def suspend(at, meanwhile):
        count = 0

        def before(original):
            def deed(writer, *args, **kwargs):
                nonlocal count
                if writer._token.epoch == 1:
                    count += 1
                    if count == at + 1:
                        meanwhile()
                return original(writer, *args, **kwargs)

            return deed

        # Staging a file comes first, naming it after: the worst place is between the two.
        name = fence.name_exclusively

        def named(staged, path):
            nonlocal count
            if staged.parent.name.startswith("000001-"):
                count += 1
                if count == at + 1:
                    meanwhile()
            return name(staged, path)

        monkeypatch.setattr(fence, "name_exclusively", named)
        for deed in ("replace", "remove", "set_aside"):
            monkeypatch.setattr(FolderWriter, deed, before(getattr(FolderWriter, deed)))
        return lambda: count

    return suspend


def contents(tree, folder):
    return {
        name: data for name, data in tree(folder).items() if not name.startswith(NOT_OF_THE_STORE)
    }


def number_of_operations(known, folder, suspended):
    done = suspended(10**9, None)
    known.build(folder)
    known.fill(folder)
    shutil.rmtree(folder)
    return done()


def test_a_driver_that_wakes_up_while_it_lays_its_corpus_down_changes_nothing(
    known, other, folder, tree, suspended, monkeypatch
):
    total = number_of_operations(known, folder, suspended)
    assert total > 30

    for at in range(3, total):  # the first is its own `open` entry
        shutil.rmtree(folder, ignore_errors=True)
        after = {}

        def meanwhile(after=after):
            with monkeypatch.context() as patch:
                take = Lease.acquire
                patch.setattr(Lease, "acquire", lambda where: take(where, give_up_s=0))
                try:
                    other.build(folder)
                except StoreExists:  # the first one's corpus was complete
                    known.fill(folder)
                else:
                    other.fill(folder)
            after.update(contents(tree, folder))

        suspended(at, meanwhile)
        with suppress(LeaseLost):  # or it was suspended after its last operation
            known.build(folder)

        if after:
            assert contents(tree, folder) == after, f"woken up in operation {at}"
            assert verify(open_store(folder)).is_whole
        monkeypatch.undo()


@pytest.mark.parametrize("added", [0, 1, 12, 25])
def test_a_builder_that_was_taken_over_is_refused_wherever_it_was(
    known, other, folder, tree, added, monkeypatch
):
    go_on = iter(range(10**6))
    take = Lease.acquire
    add = StoreBuilder.add_context
    after = {}

    def add_context(builder, context):
        if builder._lease.token.epoch == 1 and next(go_on) == added:
            monkeypatch.setattr(Lease, "acquire", lambda where: take(where, give_up_s=0))
            other.build(folder)
            other.fill(folder)
            after.update(contents(tree, folder))
        add(builder, context)

    monkeypatch.setattr(StoreBuilder, "add_context", add_context)
    with pytest.raises(LeaseLost, match=r"epoch 1[\s\S]*\nhint: one harvest runs on a store"):
        known.build(folder)

    assert contents(tree, folder) == after
    store = open_store(folder)
    assert verify(store).is_whole
    assert (store.tokens["id"][:] == other.ids).all()


def test_what_an_unfinished_corpus_left_is_moved_aside_and_not_deleted(
    known, other, folder, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        patch.setattr(StoreBuilder, "finish", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            known.build(folder)
    (left,) = (folder / "rows.zarr/tokens/id/c").parent.glob("c.0")
    shard = left.read_bytes()

    other.build(folder)

    (kept,) = (folder / "leftovers").glob("*/rows.zarr/tokens/id/c.0")
    assert kept.read_bytes() == shard
    assert "holds an unfinished corpus" in caplog.text


@pytest.mark.parametrize("deed", ["harvest", "export"])
def test_a_store_whose_manifest_is_lost_keeps_every_file_and_gets_it_again(
    known, full, tree, tmp_path, deed, caplog
):
    before = contents(tree, full)
    (full / "store.json").unlink()

    if deed == "harvest":
        with Lease.acquire(locate(full)) as lease:
            pass
        with Lease.acquire(locate(full)) as lease, pytest.raises(StoreExists, match="already"):
            StoreBuilder(lease, None, None)
    else:
        known.build(tmp_path / "parent")
        known.fill(tmp_path / "parent")
        with pytest.raises(StoreError, match="another than was asked for"):
            export_store(open_store(tmp_path / "parent"), str(full), splits=["train"])

    after = contents(tree, full)
    assert {name: data for name, data in after.items() if not name.startswith("ledger/")} == {
        name: data for name, data in before.items() if not name.startswith("ledger/")
    }
    assert "store.json of" in caplog.text
    assert verify(open_store(full)).is_whole


def test_a_store_is_read_and_verified_without_its_manifest(known, full):
    (full / "store.json").unlink()

    store = open_store(full)

    assert (store[Site(3)][:] == known.acts[Site(3)]).all()
    (problem,) = verify(store).problems
    assert (problem.kind, str(problem)) == ("metadata", "store.json is missing")


def test_a_store_whose_ledger_is_lost_is_never_begun_again(full, tree):
    shutil.rmtree(full / "ledger")
    before = tree(full)

    for deed in (open_store, lambda url: Lease.acquire(locate(url))):
        with pytest.raises(StoreDamaged, match=r"ledger of .* is gone[\s\S]*\nhint: restore"):
            deed(full)
    assert tree(full) == before


def test_a_manifest_of_another_corpus_is_refused_by_readers(known, other, full, tmp_path):
    other.build(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "store.json", full / "store.json")

    with pytest.raises(StoreDamaged, match=r"store\.json of .* is not what the ledger says"):
        open_store(full)


def test_cleaning_while_a_fenced_driver_ends_its_merge_loses_no_entry(full, monkeypatch):
    location = LocalFolder(full)
    with Lease.acquire(location) as stale:
        segments = stale.ledger._replayed()
        state = ledgers.read_state(location)
        listings = LocalFolder.list

        def merged_meanwhile(self, folder):
            keys = list(listings(self, folder))
            monkeypatch.undo()
            with pytest.raises(LeaseLost):
                stale.ledger._merge(segments)
            return iter(keys)

        take_over = Lease.acquire(location, give_up_s=0)
        monkeypatch.setattr(LocalFolder, "list", merged_meanwhile)
        take_over.ledger.clean()
        take_over.release()

    assert ledgers.read_state(location).covered == state.covered
    assert verify(open_store(full)).is_whole
