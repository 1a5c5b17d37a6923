"""Files are whole or absent, durable in order, and what cannot be written says why."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actlake.storage import Lease, durable, fence, open_store, write_unit
from actlake.storage.errors import (
    KeyTaken,
    StoreError,
    StoreNotFound,
    StoreNotReadable,
    StoreNotWritable,
)
from actlake.storage.fence import Token
from actlake.storage.location import LocalFolder, locate

UNIT_3 = "rows.zarr/acts/resid_post.3/c.3.0"


@pytest.fixture
def location(tmp_path):
    return locate(tmp_path / "place")


@pytest.fixture
def writer(location):
    made = location.writer(Token(1, "a1"))
    made.begin()
    return made


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
    named = calls.index(("link", UNIT_3))
    kind, partial = calls[named - 1]
    assert (kind, partial.startswith(f"partial/{lease.token.name}/c.3.0.")) == ("fsync", True)
    assert calls[named + 1] == ("fsync", "rows.zarr/acts/resid_post.3")
    linked = next(i for i, (_, name) in enumerate(calls) if re.fullmatch(r"ledger/\d+.json", name))
    assert calls[linked - 1][0] == "fsync"
    assert calls[linked + 1] == ("fsync", "ledger")
    assert linked > max(i for i, (_, name) in enumerate(calls) if name.startswith("rows.zarr"))


def test_folders_that_another_driver_made_are_seen_to_the_disk_too(location, writer, monkeypatch):
    """It may have been suspended before it had; a committed file would be gone with the folder."""
    root = Path(location.url)
    (root / "rows.zarr" / "norms").mkdir(parents=True)
    synced = []
    sync = fence.sync_folder
    monkeypatch.setattr(fence, "sync_folder", lambda path: (synced.append(path), sync(path)))

    writer.create("rows.zarr/norms/c.0", [b"one"])
    first, synced[:] = set(synced), []
    writer.create("rows.zarr/norms/c.1", [b"two"])

    assert first == {root, root / "rows.zarr", root / "rows.zarr" / "norms"}
    assert synced == [root / "rows.zarr" / "norms"]  # once a process is enough


def test_what_is_written_is_read_and_replaced_whole(location):
    location.write("a/b/c", [b"one", np.arange(3, dtype=np.uint8)])
    location.write("a/b/c", [b"two"])

    assert location.read("a/b/c") == b"two"
    assert location.size("a/b/c") == 3
    assert list(location.list("a/b")) == ["a/b/c"]
    assert list(location.list("nowhere")) == []


def test_of_two_that_create_a_file_the_second_is_refused(location, writer):
    writer.create("key", [b"one"])

    with pytest.raises(KeyTaken, match="key already exists"):
        writer.create("key", [b"one"])
    assert location.read("key") == b"one"


def test_a_link_whose_answer_was_lost_on_the_network_counts_as_made(location, writer, monkeypatch):
    link = os.link

    def answer_lost(old, new):
        link(old, new)
        raise FileExistsError(errno.EEXIST, "repeated question")

    monkeypatch.setattr(os, "link", answer_lost)
    writer.create("key", [b"one"])

    assert location.read("key") == b"one"


NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK]


def without_links(monkeypatch, code):
    def no_links(old, new):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)


@pytest.mark.parametrize("code", NO_LINKS)
def test_a_file_system_without_hard_links_keeps_writers_apart_by_renames(
    location, writer, monkeypatch, code
):
    without_links(monkeypatch, code)
    writer.create("key", [b"one"])

    with pytest.raises(KeyTaken, match="key already exists"):
        writer.create("key", [b"two"])
    assert location.read("key") == b"one"
    with pytest.raises(KeyTaken, match=r"key in .* is there already and holds other bytes"):
        writer.ensure("key", [b"two"])
    writer.ensure("key", [b"one"])


def test_a_file_system_that_cannot_keep_writers_apart_is_refused_by_name(
    location, writer, monkeypatch
):
    without_links(monkeypatch, errno.EPERM)
    monkeypatch.setattr(durable, "_LIBC", object())  # as where the kernel has no such rename

    with pytest.raises(StoreNotWritable, match=r"neither hard links nor renam[\s\S]*hint: .* NFS"):
        writer.create("key", [b"one"])
    assert location.size("key") is None


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EBUSY])
def test_what_a_file_server_says_comes_in_our_words(location, writer, monkeypatch, code):
    """An NFS handle gone stale, a server that is away; to read as to write."""
    location.write("key", [b"x"])

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreNotWritable, match=rf"Cannot write a/b .*{os.strerror(code)}\nhint: "):
        writer.create("a/b", [b"x"])
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StoreNotReadable, match=rf"Cannot read key .*{os.strerror(code)}\nhint: "):
        location.read("key")


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


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, 1500])
def test_a_full_disk_is_told_and_nothing_half_written_is_served(
    known, folder, monkeypatch, num_bytes
):
    known.build(folder)
    known.fill(folder, skip=(3,))
    with Lease.acquire(locate(folder)) as lease:
        with monkeypatch.context() as patch:
            full_after(patch, num_bytes, errno.ENOSPC)
            with pytest.raises(
                StoreNotWritable, match=r"Cannot write .*/(c\.)?3\..*No space left[\s\S]*hint: make"
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


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from actlake.storage.location import LocalFolder
def parts():
    yield b"some"
    os.kill(os.getpid(), signal.SIGKILL)
LocalFolder(Path({str(tmp_path)!r})).write("index/tokens.index", parts())
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "index").iterdir()
    assert left.suffix == ".partial"

    LocalFolder(tmp_path).write("index/tokens.index", [b"all"])

    assert [path.name for path in (tmp_path / "index").iterdir()] == ["tokens.index"]


def test_a_writer_that_is_alive_is_not_disturbed_by_another_of_the_same_file(tmp_path):
    location = LocalFolder(tmp_path)

    def parts():
        yield b"slow "
        location.write("some/file", [b"meanwhile"])
        yield b"writer"

    location.write("some/file", parts())

    assert location.read("some/file") == b"slow writer"
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_listed_is_said_in_words(tmp_path, monkeypatch):
    def fails(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", fails)

    with pytest.raises(StoreNotReadable, match=r"Cannot read the folder in .*Input/output error"):
        LocalFolder(tmp_path).is_foreign(())
