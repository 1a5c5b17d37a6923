"""Files are whole or absent, durable in order, and what cannot be written says why."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from actlake.storage import Lease, open_store, write_unit
from actlake.storage.errors import StoreError, StoreNotFound, StoreNotReadable, StoreNotWritable
from actlake.storage.location import KeyTaken, LocalFolder, locate

UNIT_3 = "rows.zarr/acts/resid_post.3/c.3.0"


@pytest.fixture
def location(tmp_path):
    return locate(tmp_path / "place")


class SystemCalls:
    """Records what reaches the disk, in order, with names below the root."""

    def __init__(self, root, monkeypatch):
        self.calls = []
        root = str(root)

        def name(path):
            return os.fspath(path).removeprefix(root).lstrip("/")

        def record(owner, call, describe):
            original = getattr(owner, call)

            def recorded(*args, **kwargs):
                words = describe(*args)
                result = original(*args, **kwargs)
                self.calls.append(words)
                return result

            monkeypatch.setattr(owner, call, recorded)

        record(
            os, "fsync", lambda handle: ("fsync", name(Path(f"/proc/self/fd/{handle}").readlink()))
        )
        record(os, "link", lambda old, new: ("link", name(new)))
        record(Path, "replace", lambda old, new: ("rename", name(new)))


def test_a_shard_and_its_folder_reach_the_disk_before_the_ledger_names_them(
    known, folder, monkeypatch
):
    known.build(folder)
    known.fill(folder, skip=(3,))
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        seen = SystemCalls(folder, monkeypatch)

        known.write(lease, store, 3)

    calls = [call for call in seen.calls if "lease-" not in call[1]]
    renamed = calls.index(("rename", UNIT_3))
    kind, partial = calls[renamed - 1]
    assert (kind, partial.startswith("partial/c.3.0.")) == ("fsync", True)
    assert calls[renamed + 1] == ("fsync", "rows.zarr/acts/resid_post.3")
    linked = next(i for i, (kind, name) in enumerate(calls) if kind == "link")
    assert calls[linked - 1][0] == "fsync"
    assert calls[linked + 1] == ("fsync", "ledger")
    assert linked > max(i for i, (_, name) in enumerate(calls) if name.startswith("rows.zarr"))


def test_what_is_written_is_read_and_replaced_whole(location):
    location.write("a/b/c", [b"one", np.arange(3, dtype=np.uint8)])
    location.write("a/b/c", [b"two"])

    assert location.read("a/b/c") == b"two"
    assert location.size("a/b/c") == 3
    assert list(location.list("a/b")) == ["a/b/c"]
    assert list(location.list("nowhere")) == []


def test_of_two_that_create_a_file_the_second_is_refused(location):
    location.create("key", b"one")

    with pytest.raises(KeyTaken, match="key already exists"):
        location.create("key", b"two")
    assert location.read("key") == b"one"


def test_a_link_whose_answer_was_lost_on_the_network_counts_as_made(location, monkeypatch):
    link = os.link

    def answer_lost(old, new):
        link(old, new)
        raise FileExistsError(errno.EEXIST, "repeated question")

    monkeypatch.setattr(os, "link", answer_lost)
    location.create("key", b"one")

    assert location.read("key") == b"one"


def test_a_file_system_without_hard_links_is_refused_by_name(location, monkeypatch):
    def no_links(old, new):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_links)

    with pytest.raises(StoreNotWritable, match=r"no hard links[\s\S]*hint: .* NFS"):
        location.create("key", b"one")


def test_deleting_removes_what_is_below_and_follows_no_link(location, tmp_path):
    location.write("a/b", [b"x"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_bytes(b"y")
    (location.root / "a" / "link").symlink_to(tmp_path / "elsewhere")

    location.delete("a")
    location.delete("a")

    assert not (location.root / "a").exists()
    assert (tmp_path / "elsewhere" / "precious").exists()


def full_after(monkeypatch, num_bytes, code):
    """A disk that takes so many bytes more."""
    write, left = os.write, [num_bytes]

    def limited(handle, data):
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        done = write(handle, bytes(data[: left[0]]))
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("num_bytes", [0, 1, 700, 1500])
def test_a_full_disk_is_told_and_nothing_half_written_is_served(
    known, folder, monkeypatch, num_bytes
):
    known.build(folder)
    known.fill(folder, skip=(3,))
    with Lease.acquire(locate(folder)) as lease:
        with monkeypatch.context() as patch:
            full_after(patch, num_bytes, errno.ENOSPC)
            with pytest.raises(
                StoreNotWritable, match=r"Cannot write .*c\.3.*No space left[\s\S]*hint: make space"
            ):
                known.write(lease, open_store(folder), 3)
        shard = folder / UNIT_3

        assert not shard.exists()
        assert not list(folder.rglob("*.partial"))
        assert 3 not in open_store(folder).committed()
        known.write(lease, open_store(folder), 3)  # the same command goes on
    np.testing.assert_array_equal(
        open_store(folder)["resid_post.3"][:], known.acts[open_store(folder).sites[1]]
    )


def test_a_full_disk_at_the_commit_leaves_the_unit_uncommitted(known, folder, monkeypatch):
    known.build(folder)
    known.fill(folder, skip=(3,))
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        rows = {site: known.acts[site][store.schema.unit_extent(3).slice()] for site in store.sites}
        records = write_unit(store, 3, rows, token=lease.token)
        with monkeypatch.context() as patch:
            full_after(patch, 40, errno.ENOSPC)
            with pytest.raises(StoreNotWritable, match=r"ledger/\d{8}.json"):
                lease.ledger.commit(records)

        assert 3 not in open_store(folder).committed()
        lease.ledger.commit(records)
    assert 3 in open_store(folder).committed()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "Read-only file system\nhint: the file system is read-only"),
        (errno.EACCES, "Permission denied\nhint: check the permissions"),
        (errno.EDQUOT, "hint: your disk quota is used up"),
    ],
)
def test_a_disk_that_cannot_be_written_says_why(location, monkeypatch, code, words):
    """As root, permissions stop nobody, and mounting needs a kernel that allows it."""

    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(StoreNotWritable, match=rf"Cannot write key in [\s\S]*{words}"):
        location.write("key", [b"x"])
    with pytest.raises(StoreNotWritable, match=r"Cannot write ledger/00000001\.json"):
        Lease.acquire(location)


def test_a_path_below_a_file_cannot_be_a_store(tmp_path):
    (tmp_path / "file").write_text("x")

    with pytest.raises(StoreNotFound, match="no activation store"):
        open_store(tmp_path / "file" / "store")
    with pytest.raises(StoreNotWritable, match="a part of the path is a file"):
        Lease.acquire(locate(tmp_path / "file" / "store"))


def test_what_may_not_be_read_says_so(location, monkeypatch):
    location.write("key", [b"x"])

    def refuse(self, *args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(StoreNotReadable, match=r"key in .* may not be read by this user\nhint:"):
        location.read("key")


def test_a_url_of_an_unknown_kind_is_refused_by_its_scheme():
    with pytest.raises(StoreError, match=r"no reader for gopher://[\s\S]*hint:"):
        locate("gopher://acts")


def test_file_urls_are_paths(tmp_path):
    assert locate(f"file://{tmp_path}").url == str(tmp_path)
    assert locate(location := LocalFolder(tmp_path)) is location
