"""The pass over the rows of a store in a bucket."""

from actlake.jobs.transport.moments_pass import compute_moments, request_moments
from actlake.jobs.transport.pairs import Pair
from actlake.storage import Site, open_store
from actlake.storage.location import locate

PAIRS = (Pair(Site(0), Site(1)), Pair(Site(0), Site(2), 1))


def test_moments_of_a_bucket_are_those_of_a_folder_bit_for_bit(layers_folder, bucket, tmp_path):
    copy = locate(f"{bucket.url}/store")
    for path in sorted(layers_folder.rglob("*")):
        if path.is_file():
            copy.write(str(path.relative_to(layers_folder)), [path.read_bytes()])

    for name, store in (("bucket", open_store(copy.url)), ("folder", open_store(layers_folder))):
        request = request_moments([store], PAIRS, groups=5, part_rows=256)
        compute_moments([store], request, tmp_path / name)

    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")}
        for name in ("bucket", "folder")
    )
    assert len(ours) > 2
    assert ours == theirs
