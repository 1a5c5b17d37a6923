"""A shard whose checksums are right may still lie about what is in it, and takes no memory for it.

Checksums find accidents; whoever writes a file on purpose gives it the right ones.
"""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from numcodecs.zstd import Zstd

from actlake.storage import Site, open_store, verify
from actlake.storage.errors import StoreDamaged
from actlake.storage.layout import ArraySpec
from actlake.storage.sealed import crc32c
from actlake.storage.shards import decode_shard, encode_shard

SITE = Site(3)
SPEC = ArraySpec(
    name="some/array",
    shape=(1000,),
    dtype="int32",
    shard_length=1000,
    chunk_length=1000,
    dimension_names=("row",),
    fill_value=-1,
    compression="zstd",
)
CHUNK = np.arange(1000, dtype=np.int32)


def shard_of(frame):
    """A shard file of one chunk, every checksum right."""
    chunk = frame + crc32c(frame).to_bytes(4, "little")
    index = np.array([[0, len(chunk)]], "<u8").tobytes()
    return chunk + index + crc32c(index).to_bytes(4, "little")


def without_its_size(content):
    """A zstd frame that does not say how large its content is, as streams write it."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content.tobytes())
    return sink.getvalue().to_pybytes()


def with_its_size(content):
    return bytes(Zstd(level=1).encode(content))


def test_a_shard_of_one_chunk_is_what_the_encoder_writes():
    written = b"".join(encode_shard(SPEC, 0, CHUNK).parts)

    assert written == shard_of(with_its_size(CHUNK))


@pytest.mark.parametrize("encode", [with_its_size, without_its_size])
def test_frames_of_a_chunk_are_read_whether_they_say_their_size_or_not(encode):
    np.testing.assert_array_equal(decode_shard(SPEC, 0, shard_of(encode(CHUNK)), name="c.0"), CHUNK)


@pytest.mark.parametrize("encode", [with_its_size, without_its_size])
@pytest.mark.parametrize("rows", [0, 1, 60, 999, 1001, 70_000, 5 * 10**7])
def test_frames_of_another_size_than_their_chunk_are_refused_and_take_no_memory(encode, rows):
    shard = shard_of(encode(np.zeros(rows, np.int32)))

    tracemalloc.start()
    with pytest.raises(StoreDamaged, match=r"Chunk 0 of c.0 is (a|no) zstd frame of .* bytes"):
        decode_shard(SPEC, 0, shard, name="c.0")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 1e6 + 2 * len(shard)


@pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", b"no frame at all"])
def test_what_is_no_frame_is_damage(frame):
    with pytest.raises(StoreDamaged, match=r"Chunk 0 of c.0 is no zstd frame"):
        decode_shard(SPEC, 0, shard_of(frame), name="c.0")


def test_a_chunk_that_is_not_compressed_and_too_short_is_damage():
    plain = ArraySpec(**{name: getattr(SPEC, name) for name in ("name", "shape", "dtype")} | {
        "shard_length": 1000, "chunk_length": 1000, "dimension_names": ("row",), "fill_value": -1,
    })  # fmt: skip

    with pytest.raises(StoreDamaged, match=r"Chunk 0 of c.0 holds 3,996 bytes, not 4,000"):
        decode_shard(plain, 0, shard_of(CHUNK[1:].tobytes()), name="c.0")


def test_a_frame_that_unpacks_to_gigabytes_is_refused_by_readers_and_found_by_verify(known, folder):
    known.build(folder, compression="zstd")
    known.fill(folder)
    (chunk_bytes,) = {open_store(folder)[SITE].spec.chunk_bytes}
    shard = folder / "rows.zarr/acts/resid_post.3/c.10.0"  # ten rows: two of three chunks
    frame = with_its_size(np.zeros(2**28, np.uint8))
    chunk = frame + crc32c(frame).to_bytes(4, "little")
    absent = 2**64 - 1
    index = np.array([[0, len(chunk)], [len(chunk), len(chunk)], [absent, absent]], "<u8").tobytes()
    shard.write_bytes(chunk + chunk + index + crc32c(index).to_bytes(4, "little"))

    tracemalloc.start()
    with pytest.raises(
        StoreDamaged, match=rf"zstd frame of 268,435,456 bytes, not {chunk_bytes}\nhint"
    ):
        open_store(folder)[SITE][240:250]
    (problem,) = verify(open_store(folder)).problems
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (problem.site, problem.unit) == (SITE, 10)
    assert peak_bytes < 20e6
