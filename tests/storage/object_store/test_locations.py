"""A folder and a bucket keep the same promises."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlake.storage import object_store
from actlake.storage.errors import StoreDamaged, StoreNotFound
from actlake.storage.location import KeyTaken, locate


@pytest.fixture(params=["folder", "bucket"])
def location(request, tmp_path):
    if request.param == "folder":
        return locate(tmp_path / "place")
    return locate(request.getfixturevalue("url"))


def test_what_is_written_is_read_and_replaced_whole(location):
    location.write("a/b/c", [b"one", memoryview(b"-two")])
    location.write("a/b/d", [])
    assert location.read("a/b/c") == b"one-two"
    assert location.read("a/b/d") == b""

    location.write("a/b/c", [b"three"])

    assert location.read_all(["a/b/d", "a/b/c"]) == [b"", b"three"]
    assert location.size("a/b/c") == 5


def test_what_is_not_there_is_not_found(location):
    with pytest.raises(StoreNotFound, match="no "):
        location.read("nothing")
    with pytest.raises(StoreNotFound):
        location.read_all(["nothing"])
    assert location.size("nothing") is None
    assert list(location.list("nowhere")) == []


def test_a_listing_is_of_one_folder_with_sizes(location):
    location.write_all([("a/x", [b"1"]), ("a/y", [b"22"]), ("a/b/z", [b"3"]), ("ab", [b"4"])])

    assert sorted(location.list("a")) == ["a/x", "a/y"]
    assert dict(location.sizes("a")) == {"a/x": 1, "a/y": 2}


def test_a_range_is_read_and_one_beyond_the_end_is_damage(location):
    location.write("key", [b"0123456789"])

    data, size = location.read_range("key", 2, 5)

    assert (bytes(data), size) == (b"234", 10)
    for start, stop in ((8, 12), (20, 30)):
        with pytest.raises(StoreDamaged, match=r"key in .* has 10 bytes"):
            location.read_range("key", start, stop)


def test_of_two_that_create_a_key_the_second_is_refused(location):
    location.create("key", b"one")

    with pytest.raises(KeyTaken, match="key already exists"):
        location.create("key", b"two")
    assert location.read("key") == b"one"


def test_a_state_that_was_seen_is_replaced(location):
    first = location.replace("key", b"1", seen=None)
    second = location.replace("key", b"2", seen=first)
    location.replace("key", b"3", seen=second)

    assert location.read("key") == b"3"


def test_a_key_or_all_below_it_is_removed(location):
    location.write_all([("a/x", [b"1"]), ("a/b/z", [b"3"]), ("ab", [b"4"])])

    location.delete("a")
    location.delete("nothing")
    location.delete_files(["ab", "nothing"])

    assert list(location.list("a")) == []
    assert location.size("a/b/z") is None
    assert location.size("ab") is None


def test_foreign_things_are_seen_and_hidden_ones_are_not(location):
    location.write_all([("ledger/1", [b"1"]), (".DS_Store", [b"1"])])
    ours = {"ledger", "partial"}
    assert not location.is_foreign(ours)

    location.write("photo.jpg", [b"1"])

    assert location.is_foreign(ours)


def test_arrow_reads_the_columns_it_wants(location):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": list(range(10_000)), "text": ["x" * 50] * 10_000}), sink)
    location.write("t.parquet", [sink.getvalue()])

    table = pq.read_table(location.file("t.parquet"), columns=["a"], partitioning=None)

    assert table["a"].to_pylist() == list(range(10_000))


def test_an_object_of_many_pieces_is_put_and_read_whole(url, monkeypatch):
    monkeypatch.setattr(object_store, "_PIECE", 1000)
    monkeypatch.setattr(object_store, "_LARGEST_PUT", 2**20)
    monkeypatch.setattr(object_store, "_PART", 5 * 2**20)
    location = locate(url)
    data = bytes(range(256)) * 1000

    location.write("pieces", [data])
    location.write("parts", [data * 50])

    assert location.read("pieces") == data
    monkeypatch.setattr(object_store, "_PIECE", 2**20)
    assert location.read("parts") == data * 50


def test_a_listing_goes_on_over_its_pages(url, monkeypatch):
    monkeypatch.setattr(object_store, "_KEYS_AT_ONCE", 4)
    location = locate(url)
    keys = [f"a/{i:02}" for i in range(11)]
    location.write_all((key, [b"x"]) for key in keys)

    assert list(location.list("a")) == keys
    location.delete("a")
    assert list(location.list("a")) == []


def test_a_state_that_another_has_changed_or_removed_is_not_replaced(url):
    location = locate(url)
    seen = location.replace("key", b"1", seen=None)
    location.write("key", [b"theirs"])

    with pytest.raises(KeyTaken, match="is not what it was"):
        location.replace("key", b"2", seen=seen)
    location.delete("key")
    with pytest.raises(KeyTaken):
        location.replace("key", b"2", seen=seen)
    assert location.size("key") is None
