"""A folder and a bucket keep the same promises."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlake.storage import object_store, object_writer
from actlake.storage.errors import KeyTaken, StoreDamaged, StoreNotFound, StoreNotWritable
from actlake.storage.fence import Token
from actlake.storage.location import locate

TOKEN = Token(1, "a1")


@pytest.fixture(params=["folder", "bucket"])
def location(request, tmp_path):
    if request.param == "folder":
        return locate(tmp_path / "place")
    return locate(request.getfixturevalue("url"))


@pytest.fixture
def writer(location):
    made = location.writer(TOKEN)
    made.begin()
    return made


def write_all(location, **files):
    for key, data in files.items():
        location.write(key.replace("__", "/"), [data])


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
    write_all(location, a__x=b"1", a__y=b"22", a__b__z=b"3", ab=b"4")

    assert sorted(location.list("a")) == ["a/x", "a/y"]
    assert dict(location.sizes("a")) == {"a/x": 1, "a/y": 2}


def test_a_range_is_read_and_one_beyond_the_end_is_damage(location):
    location.write("key", [b"0123456789"])

    data, size = location.read_range("key", 2, 5)

    assert (bytes(data), size) == (b"234", 10)
    for start, stop in ((8, 12), (20, 30)):
        with pytest.raises(StoreDamaged, match=r"key in .* has 10 bytes"):
            location.read_range("key", start, stop)


@pytest.mark.parametrize("again", [b"one", b"two"])
def test_of_two_that_create_a_key_the_second_is_refused(location, writer, again):
    writer.create("key", [b"one"])

    with pytest.raises(KeyTaken, match="key already exists"):
        writer.create("key", [again])
    assert location.read("key") == b"one"


def test_what_is_there_is_kept_and_others_bytes_are_refused(location, writer):
    writer.ensure("key", [b"o", b"ne"])
    writer.ensure("key", [b"one"])

    for other in (b"two", b"ones", b""):
        with pytest.raises(KeyTaken, match=r"key in .* is there already and holds other bytes"):
            writer.ensure("key", [other])
    writer.ensure_all([("a/x", [b"1"]), ("a/y", [b"2"])])
    assert [location.read(key) for key in ("key", "a/x", "a/y")] == [b"one", b"1", b"2"]


def test_a_state_that_was_seen_is_replaced(location, writer):
    first = writer.create("key", [b"1"])
    second = writer.replace("key", [b"2"], seen=first)
    writer.replace("key", [b"3"], seen=second)
    assert location.read("key") == b"3"

    writer.replace("key", [b"4"])
    writer.replace("new", [b"5"])

    assert [location.read(key) for key in ("key", "new")] == [b"4", b"5"]


def test_files_are_removed_where_they_are_there(location, writer):
    write_all(location, a__x=b"1", a__y=b"2", ab=b"4")

    writer.remove(["a/x", "ab", "nothing"])

    assert list(location.list("a")) == ["a/y"]
    assert location.size("ab") is None


def test_a_key_that_was_freed_can_be_created_again_or_is_as_it_was(location, writer):
    writer.ensure("a/x", [b"one"])

    writer.free(["a/x", "a/nothing"])
    writer.free(["a/x"])

    if writer.takes_away:
        location.writer(TOKEN).ensure("a/x", [b"two"])
    else:  # in a bucket, where no condition says that the same bytes were not committed since
        with pytest.raises(KeyTaken, match=r"other bytes[\s\S]*\nhint: compute as it was"):
            location.writer(TOKEN).ensure("a/x", [b"two"])
    assert location.read("a/x") == (b"two" if writer.takes_away else b"one")
    with pytest.raises(KeyTaken):
        writer.ensure("a/x", [b"three"])
    assert location.size("a/nothing") is None


def test_foreign_things_are_seen_and_hidden_ones_are_not(location):
    location.write("ledger/1", [b"1"])
    location.write(".DS_Store", [b"1"])
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
    for key in keys:
        location.write(key, [b"x"])

    assert list(location.list("a")) == keys


def test_a_state_that_another_has_changed_or_removed_is_not_replaced(url):
    location = locate(url)
    writer = location.writer(TOKEN)
    seen = writer.create("key", [b"1"])
    location.write("key", [b"theirs"])

    with pytest.raises(KeyTaken, match="is not what it was"):
        writer.replace("key", [b"2"], seen=seen)
    writer.remove(["key"])
    with pytest.raises(KeyTaken):
        writer.replace("key", [b"2"], seen=seen)
    assert location.size("key") is None


def test_a_file_too_large_for_one_put_is_refused_with_what_to_do(url, monkeypatch):
    monkeypatch.setattr(object_writer, "_LARGEST_PUT", 10)
    writer = locate(url).writer(TOKEN)

    with pytest.raises(StoreNotWritable, match=r"key has 11 bytes[\s\S]*hint: make .* in a folder"):
        writer.ensure("key", [b"01234567890"])
    assert locate(url).size("key") is None
