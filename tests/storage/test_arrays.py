"""Arrays of any shape and cut, mapped and through Zarr, against NumPy."""

import copy
import ctypes
import mmap
import os
import pickle
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.storage import RowArray, Site, UnitSet, open_store
from actlake.storage.errors import InvalidQuery, RowsNotCommitted, RowsOutOfRange, StoreDamaged
from actlake.storage.layout import ArraySpec, metadata_json
from actlake.storage.location import LocalFolder
from actlake.storage.shards import encode_shard

cuts = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 90),
        "tail": st.sampled_from([(), (1,), (5,), (2, 3)]),
        "chunk": st.integers(1, 9),
        "chunks": st.integers(1, 4),
        "dtype": st.sampled_from(["float16", "bfloat16", "float32", "int32", "int8"]),
        "compression": st.sampled_from(["none", "none", "zstd"]),
        "missing": st.sets(st.integers(0, 5), max_size=2),
        "seed": st.integers(0, 99),
    }
)


def write(folder, *, rows, tail, chunk, chunks, dtype, compression="none", missing=(), seed=0):
    """An array as the store writes it, and what it holds in NumPy, gaps filled."""
    is_float = "float" in dtype
    spec = ArraySpec(
        name="some/array",
        shape=(rows, *tail),
        dtype=dtype,
        shard_length=chunk * chunks,
        chunk_length=chunk,
        dimension_names=("row", "a", "b")[: 1 + len(tail)],
        fill_value="NaN" if is_float else -1,
        compression=compression,
    )
    location = LocalFolder(Path(folder))
    location.write(spec.metadata_key, [metadata_json(spec.metadata())])
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=spec.shape) * 9).astype(spec.numpy_dtype)
    committed = UnitSet()
    for shard in range(spec.num_shards):
        extent = spec.shard_extent(shard)
        if shard in missing:
            values[extent.slice()] = spec.fill
        else:
            content = encode_shard(spec, shard, np.ascontiguousarray(values[extent.slice()]))
            location.write(spec.shard_key(shard), content.parts)
            committed.add(shard)
    return location, spec, committed, values


def as_bits(values):
    return np.ascontiguousarray(values).view(np.uint8)


@settings(max_examples=40, deadline=None)
@given(cuts, st.data())
def test_reading_and_gathering_give_what_numpy_gives_on_both_paths(cut, data):
    rows = data.draw(st.lists(st.integers(0, cut["rows"] - 1), max_size=30))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, cut["rows"])] * 2)))
    with TemporaryDirectory() as folder:
        location, spec, committed, values = write(folder, **cut)

        for path in ("mapped", "zarr") if spec.is_mappable else ("auto", "zarr"):
            array = RowArray(location, spec, committed=lambda: committed, path=path)
            taken = array.take(rows, missing="nan", check=True)
            read = array.read(start, stop, missing="nan")

            assert (taken.dtype, read.dtype) == (values.dtype, values.dtype)
            is_nan = values[rows] != values[rows]
            np.testing.assert_array_equal(taken != taken, is_nan)
            np.testing.assert_array_equal(taken[~is_nan], values[rows][~is_nan])
            is_nan = values[start:stop] != values[start:stop]
            np.testing.assert_array_equal(read != read, is_nan)
            np.testing.assert_array_equal(read[~is_nan], values[start:stop][~is_nan])


@settings(max_examples=30, deadline=None)
@given(cuts)
def test_chunks_cover_the_rows_in_order(cut):
    with TemporaryDirectory() as folder:
        location, spec, committed, values = write(folder, **cut | {"missing": set()})

        array = RowArray(location, spec, committed=lambda: committed)
        chunks = [array.chunk(number) for number in range(array.num_chunks)]

        assert all(len(chunk) <= spec.chunk_length for chunk in chunks)
        np.testing.assert_array_equal(as_bits(np.concatenate(chunks)), as_bits(values))
        with pytest.raises(RowsOutOfRange, match=rf"there is no chunk {len(chunks)}"):
            array.chunk(len(chunks))


@settings(max_examples=30, deadline=None)
@given(cuts, st.data())
def test_rows_of_missing_units_are_refused_and_the_others_are_read(cut, data):
    with TemporaryDirectory() as folder:
        location, spec, committed, values = write(folder, **cut)
        array = RowArray(location, spec, committed=lambda: committed)
        row = data.draw(st.integers(0, cut["rows"] - 1))
        unit = row // spec.shard_length

        if unit in committed:
            np.testing.assert_array_equal(as_bits(array[row]), as_bits(values[row]))
        else:
            with pytest.raises(RowsNotCommitted, match=rf"some/array: unit {unit} not committed"):
                array[row]


@pytest.mark.parametrize("check", [False, True])
def test_a_checked_gather_finds_a_flipped_byte_and_an_unchecked_one_does_not_look(tmp_path, check):
    location, spec, committed, _ = write(
        tmp_path, rows=64, tail=(4,), chunk=8, chunks=2, dtype="float16"
    )
    path = tmp_path / spec.shard_key(2)
    data = bytearray(path.read_bytes())
    data[spec.chunk_stride + 9] ^= 4  # in the second chunk: rows 40 to 47
    path.write_bytes(bytes(data))
    array = RowArray(location, spec, committed=lambda: committed)

    assert array.take([32, 39, 48], check=check).shape == (3, 4)
    if check:
        with pytest.raises(StoreDamaged, match=r"Chunk 1 of .*c.2.0 in .* fails its CRC32C\nhint:"):
            array.take([41], check=True)
    else:
        assert array.take([41]).shape == (1, 4)


def test_rows_are_gathered_into_a_given_array(tmp_path):
    location, spec, committed, values = write(
        tmp_path, rows=30, tail=(4,), chunk=4, chunks=2, dtype="float32"
    )
    out = np.empty((3, 4), np.float32)

    given_back = RowArray(location, spec, committed=lambda: committed).take([9, 2, 9], out=out)

    assert given_back is out
    np.testing.assert_array_equal(out, values[[9, 2, 9]])


def test_an_array_goes_to_another_process_without_what_is_mapped(tmp_path):
    location, spec, committed, values = write(
        tmp_path, rows=64, tail=(4,), chunk=8, chunks=2, dtype="bfloat16"
    )
    array = RowArray(location, spec, committed=partial(copy.copy, committed))
    np.testing.assert_array_equal(array[:], values)
    sent = pickle.dumps(array)
    for shard in range(spec.num_shards):
        (tmp_path / spec.shard_key(shard)).rename(tmp_path / f"elsewhere {shard}")

    with pytest.raises(StoreDamaged, match="is missing"):
        pickle.loads(sent)[:]
    np.testing.assert_array_equal(array[:], values)  # ours is still mapped


def test_where_the_system_allows_no_more_mappings_rows_come_through_zarr(
    tmp_path, monkeypatch, caplog
):
    from actlake.storage import mapped

    location, spec, committed, values = write(
        tmp_path, rows=30, tail=(4,), chunk=4, chunks=2, dtype="float32"
    )
    array = RowArray(location, spec, committed=lambda: committed)
    np.testing.assert_array_equal(array[:8], values[:8])

    def refuse(self, *args, **kwargs):
        raise mapped.CannotMap("no more")

    monkeypatch.setattr(mapped._Region, "place", refuse)

    np.testing.assert_array_equal(array[:], values)
    assert array.path == "zarr"
    assert "through Zarr from here on: no more" in caplog.text


def test_a_chunk_that_is_expected_is_read_from_the_disk(full):
    """As the system counts: pages of the chunk that are in memory."""
    array = open_store(full)[Site(3)]
    number = array.num_chunks - 2
    chunk = array.chunk(number)
    for file in full.rglob("c.*"):
        with file.open("rb") as handle:  # out of memory with it, where the file system obeys
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    array.expect(number * array.spec.chunk_length, (number + 1) * array.spec.chunk_length)

    start = chunk.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    pages = -(-(chunk.ctypes.data + chunk.nbytes - start) // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    deadline = time.monotonic() + 10
    while not all(flag & 1 for flag in resident):
        assert time.monotonic() < deadline
        status = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(start), ctypes.c_size_t(pages * mmap.PAGESIZE), resident
        )
        assert status == 0


@pytest.mark.parametrize(
    "read", [lambda a: a.take([1], missing="foo"), lambda a: a.read(0, 1, missing="foo")]
)
def test_an_unknown_way_to_treat_missing_rows_is_refused(full, read):
    with pytest.raises(InvalidQuery, match="no missing='foo'\nhint: "):
        read(open_store(full)[Site(3)])


INDEXES = [
    5,
    -1,
    np.int64(7),
    np.array(3),
    (5, 3),
    (5, slice(1, 3)),
    (np.int32(5), [0, 3]),
    (5, ...),
    (slice(2, 9), 3),
    (slice(40, 2, -3), [0, 1]),
    ([1, 2], [0, 3]),
    ([4], [0, 3]),
    ([1, 1, 2], slice(None, 2)),
    (np.arange(50) % 3 == 0, 2),
    np.arange(50) % 7 == 0,
    np.zeros(50, bool),
    [],
    ...,
    (),
    (..., 3),
    (..., 5, 3),
    (slice(None), None),
    np.s_[::-1],
]


@pytest.mark.parametrize("index", INDEXES, ids=repr)
@pytest.mark.parametrize("path", ["mapped", "zarr"])
def test_an_index_gives_what_it_gives_of_a_numpy_array(tmp_path, index, path):
    location, spec, committed, values = write(
        tmp_path, rows=50, tail=(5,), chunk=4, chunks=3, dtype="float32"
    )

    given = RowArray(location, spec, committed=lambda: committed, path=path)[index]

    assert np.shape(given) == values[index].shape
    np.testing.assert_array_equal(given, values[index])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (np.ones(49, bool), r"mask is of shape \(49,\); some/array has 50 rows\nhint: give one"),
        (np.ones((50, 5), bool), r"mask is of shape \(50, 5\)"),
        ((np.ones(2, bool), 0), r"mask is of shape \(2,\)"),
        (True, r"mask is of shape \(\)"),
        ((1, 2, 3), r"some/array is of 2 axes, \(50, 5\); 3 were indexed"),
        (50, "no row 50"),
        ([-1], "no row -1"),
        (None, "one-dimensional array of integers"),
        (1.5, "one-dimensional array of integers"),
    ],
)
def test_an_index_that_names_no_rows_is_refused(tmp_path, index, words):
    location, spec, committed, _ = write(
        tmp_path, rows=50, tail=(5,), chunk=4, chunks=3, dtype="float32"
    )

    with pytest.raises(RowsOutOfRange, match=words):
        RowArray(location, spec, committed=lambda: committed)[index]


def in_memory(path):
    """Pages of a file that are in memory, as the system counts."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as own:
        pages = -(-size // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(own))
        status = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(start), ctypes.c_size_t(pages * mmap.PAGESIZE), resident
        )
        assert status == 0
        return sum(flag & 1 for flag in resident)


def test_a_few_rows_from_here_and_there_are_read_alone(tmp_path):
    """And not what lies around each of them, which is what is right for rows in order."""
    location, spec, committed, values = write(
        tmp_path, rows=8192, tail=(256,), chunk=512, chunks=16, dtype="float32"
    )
    array = RowArray(location, spec, committed=lambda: committed)
    rows = [5, 2700, 5400, 8100]
    shard = tmp_path / spec.shard_key(0)
    with shard.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = in_memory(shard)

    taken = array.take(rows)

    np.testing.assert_array_equal(taken, values[rows])
    assert in_memory(shard) - before <= 2 * len(rows)


def test_a_thread_that_reads_while_python_ends_does_not_crash_it(full):
    program = f"""
import threading, time
import numpy as np
from actlake.storage import Site, open_store
array = open_store({str(full)!r})[Site(3)]
rows = np.arange(250).repeat(8000)  # gathered for some milliseconds, without Python's lock
def read():
    while True:
        array.take(rows)
for _ in range(4):
    threading.Thread(target=read, daemon=True).start()
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
