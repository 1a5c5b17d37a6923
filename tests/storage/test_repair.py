"""What is damaged becomes again what was committed, to the byte, or stays as it was."""

from dataclasses import replace

import numpy as np
import pytest

from actlake.storage import Lease, Site, open_store, restore_unit, verify, write_unit
from actlake.storage.errors import (
    LeaseLost,
    RowsNotCommitted,
    StoreDamaged,
    StoreMismatch,
    StoreNotFound,
)
from actlake.storage.export import export_store
from actlake.storage.ledger import read_shards
from actlake.storage.location import locate
from actlake.storage.parent import Origin, ParentRows
from actlake.storage.repair import OTHER_BYTES, own_rows, restore_metadata, restore_shards

SITE = Site(3)
ROWS = "rows.zarr/acts/resid_post.3/c.5.0"
MOMENTS = "moments/resid_post.3/1/0/5.safetensors"


def damage(folder, *names):
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 3] ^= 1
        (folder / name).write_bytes(content)


def everything(folder):
    """Bytes and times of all files, but for the ledger's own and what is under way."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("ledger", "partial")
    }


def changed(before, after):
    assert before.keys() <= after.keys() | before.keys()
    return {str(name) for name in after if after[name] != before.get(name)}


def ledger_says(folder):
    return {(r.site, r.unit): r for r in read_shards(locate(folder), open_store(folder).sites)}


@pytest.fixture
def rows_of(known):
    """Rows of a record as whoever computed them first had them."""

    def rows(record):
        schema_unit = 24
        return known.acts[record.site][record.unit * schema_unit :][:schema_unit]

    return rows


def restore(folder, rows_of):
    """Restore all that verify finds; what was not restored, and why."""
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        records = [damaged.record for damaged in verify(store).damaged]
        return restore_shards(lease, store, records, rows_of)


def test_a_damaged_shard_becomes_what_was_committed_and_nothing_else_is_touched(
    full, tree, rows_of
):
    whole, says = tree(full), ledger_says(full)
    damage(full, ROWS)
    (full / "rows.zarr/acts/resid_post.0/c.10.0").unlink()
    before = everything(full)

    assert restore(full, rows_of) == {}

    assert tree(full) == whole
    assert ledger_says(full) == says
    assert changed(before, everything(full)) == {ROWS, "rows.zarr/acts/resid_post.0/c.10.0"}
    assert verify(open_store(full)).is_whole


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_comes_out_otherwise_is_not_written(full, rows_of, is_gone):
    damage(full, ROWS)
    if is_gone:
        (full / ROWS).unlink()
    before = everything(full)

    lost = restore(full, lambda record: rows_of(record) + np.float32(1e-7))

    ((record, why),) = lost.items()
    assert (record.site, record.unit, why) == (SITE, 5, OTHER_BYTES)
    assert everything(full) == before
    assert not verify(open_store(full)).is_whole


def test_of_several_sites_those_that_come_out_the_same_are_restored(full, known, tree):
    whole = tree(full)
    first = "rows.zarr/acts/resid_post.0/c.5.0"
    damage(full, first, ROWS)
    damaged = (full / ROWS).read_bytes()
    with Lease.acquire(locate(full)) as lease:
        store = open_store(full)
        records = [damage.record for damage in verify(store).damaged]
        rows = {site: acts[120:144] + (site == SITE) for site, acts in known.acts.items()}

        restored = restore_unit(store, 5, rows, records, token=lease.token)

    assert [record.site for record in restored] == [Site(0)]
    assert tree(full) == {**whole, ROWS: damaged}


def test_moments_are_worked_out_again_from_rows_that_are_whole(full, tree):
    whole = tree(full)
    names = [MOMENTS, "rows.zarr/norms/resid_post.0/c.7", MOMENTS.replace("5.safe", "10.safe")]
    damage(full, *names[:-1])
    (full / names[-1]).unlink()
    before = everything(full)

    with Lease.acquire(locate(full)) as lease:
        store = open_store(full)
        damaged = verify(store).damaged
        assert all(damage.rows_are_whole for damage in damaged)
        records = [damage.record for damage in damaged]
        assert restore_shards(lease, store, records, own_rows(store)) == {}

    assert tree(full) == whole
    assert changed(before, everything(full)) == set(names)


def test_metadata_is_written_again_and_only_what_was_damaged(full, tree):
    whole = tree(full)
    flipped = "rows.zarr/tokens/id/zarr.json"
    gone = "rows.zarr/acts/resid_post.3/zarr.json"
    damage(full, flipped)
    (full / gone).unlink()
    before = everything(full)

    with Lease.acquire(locate(full)) as lease:
        assert restore_metadata(lease) == 2

    assert tree(full) == whole
    assert changed(before, everything(full)) == {flipped, gone}


def test_a_driver_that_was_taken_over_restores_nothing(full, rows_of):
    damage(full, ROWS)
    store = open_store(full)
    (damaged,) = verify(store).damaged
    stale = Lease.acquire(locate(full))
    rows = {SITE: rows_of(damaged.record)}
    stale.release()
    before = everything(full)

    with pytest.raises(LeaseLost):
        restore_unit(store, 5, rows, [damaged.record], token=stale.token)

    assert everything(full) == before


# Exports.


@pytest.fixture
def parent(full):
    return open_store(full)


@pytest.fixture
def copy(parent, tmp_path):
    """An export of a part of `parent`, whose rows lie elsewhere in it."""
    return export_store(parent, tmp_path / "copy", splits=["test"]).store


def restore_from_parent(copy, parent):
    with Lease.acquire(copy.location) as lease:
        records = [damage.record for damage in verify(copy).damaged]
        rows = ParentRows.find(copy, parent, records)
        return restore_shards(lease, copy, records, rows)


def test_an_export_is_repaired_from_its_parent_to_the_same_bytes(copy, parent, tree):
    folder = copy.location.root
    whole = tree(folder)
    for unit in range(copy.schema.num_units):
        damage(folder, f"rows.zarr/acts/resid_post.3/c.{unit}.0")
    (folder / "rows.zarr/acts/resid_post.0/c.0.0").unlink()

    assert restore_from_parent(open_store(folder), parent) == {}

    assert tree(folder) == whole


def test_a_parent_is_found_again_whatever_chose_the_contexts(parent, tmp_path, tree):
    """Labels and functions that chose them may be gone: what the contexts say is enough."""
    chosen = export_store(parent, tmp_path / "copy", where=lambda block: block["id"] % 5 == 2)
    folder = tmp_path / "copy"
    whole = tree(folder)
    damage(folder, "rows.zarr/acts/resid_post.3/c.1.0")

    assert restore_from_parent(open_store(folder), parent) == {}

    assert 0 < chosen.contexts < parent.schema.contexts
    assert tree(folder) == whole


def test_equal_contexts_are_told_apart_by_their_order(known, folder, tmp_path, tree):
    known.contexts = [known.contexts[0]] * 40
    rows = 40 * len(known.contexts[0])
    known.acts = {site: acts[np.arange(rows) % 250] for site, acts in known.acts.items()}
    known.acts[SITE] += np.arange(rows, dtype=np.float32)[:, None]
    known.build(folder)
    known.fill(folder)
    export_store(open_store(folder), tmp_path / "copy")
    whole = tree(tmp_path / "copy")
    damage(tmp_path / "copy", "rows.zarr/acts/resid_post.3/c.3.0")

    assert restore_from_parent(open_store(tmp_path / "copy"), open_store(folder)) == {}

    assert tree(tmp_path / "copy") == whole


def test_a_parent_that_is_damaged_too_says_so_and_changes_nothing(copy, parent):
    folder = copy.location.root
    damage(folder, "rows.zarr/acts/resid_post.3/c.0.0")
    for unit in range(parent.schema.num_units):
        damage(parent.location.root, f"rows.zarr/acts/resid_post.3/c.{unit}.0")
    before = everything(folder)

    (why,) = restore_from_parent(open_store(folder), open_store(parent.url)).values()

    assert "fails its CRC32C" in why
    assert parent.url in why
    assert everything(folder) == before


def test_a_parent_that_lacks_the_contexts_or_the_rows_is_refused(
    copy, make_known, tmp_path, folder
):
    damage(copy.location.root, "rows.zarr/acts/resid_post.3/c.0.0")
    records = [damage.record for damage in verify(copy).damaged]
    other = make_known(seed=1)
    other.build(tmp_path / "other")
    other.fill(tmp_path / "other")
    same = make_known()
    same.build(tmp_path / "half")
    same.fill(tmp_path / "half", skip=tuple(range(11)))

    with pytest.raises(StoreMismatch, match=r"contexts of .* are not in .*other"):
        ParentRows.find(copy, open_store(tmp_path / "other"), records)
    with pytest.raises(RowsNotCommitted, match=r"not committed in .*half"):
        ParentRows.find(copy, open_store(tmp_path / "half"), records)


def test_an_export_remembers_where_its_parent_was(copy, parent, full, tmp_path, make_known):
    origin = Origin.of(copy.ledger.groups[0].request)

    assert origin == Origin(parent.fingerprint, parent.url)
    assert origin.open().url == parent.url
    other = make_known(seed=1)
    other.build(tmp_path / "other")
    with pytest.raises(StoreMismatch, match=rf"{parent.fingerprint}, and that .*other has"):
        origin.open(str(tmp_path / "other"))
    full.rename(tmp_path / "moved")
    with pytest.raises(StoreNotFound, match=r"exported from .*\nhint: .*--parent STORE"):
        origin.open()
    assert origin.open(str(tmp_path / "moved")).fingerprint == parent.fingerprint


def test_a_record_that_was_changed_is_not_taken_for_damage_of_the_files(full, rows_of):
    """Restoring compares all that was recorded, not only the checksum of the rows."""
    store = open_store(full)
    record = ledger_says(full)[SITE, 5]
    with Lease.acquire(locate(full)) as lease:
        rows = {SITE: rows_of(record)}
        for wrong in (replace(record, nan=1), replace(record, moments_crc32c=0)):
            assert restore_unit(store, 5, rows, [wrong], token=lease.token) == []


def test_a_committed_unit_is_still_refused_to_those_who_only_write(full, known):
    store = open_store(full)
    with Lease.acquire(locate(full)) as lease, pytest.raises(ValueError, match="is committed"):
        write_unit(store, 5, {SITE: known.acts[SITE][120:144]}, token=lease.token)


def test_an_export_that_finds_rows_lost_copies_them_again(parent, copy, tree):
    folder = copy.location.root
    whole = tree(folder)
    (folder / "rows.zarr/acts/resid_post.3/c.1.0").unlink()

    result = export_store(parent, folder, splits=["test"])

    assert (result.units_done, result.restored) == (0, 1)
    assert tree(folder) == whole


def test_an_export_whose_lost_rows_cannot_be_copied_again_says_so(parent, copy):
    folder = copy.location.root
    (folder / "rows.zarr/acts/resid_post.3/c.0.0").unlink()
    for unit in range(parent.schema.num_units):
        damage(parent.location.root, f"rows.zarr/acts/resid_post.3/c.{unit}.0")
    before = everything(folder)

    with pytest.raises(StoreDamaged, match=r"resid_post.3, unit 0 of .* again from [\s\S]*hint: "):
        export_store(open_store(parent.url), folder, splits=["test"])

    assert everything(folder) == before
