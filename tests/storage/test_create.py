"""What a builder is given may be used again at once."""

import numpy as np

from actlake.storage import Lease, Provenance, StoreBuilder, StoreRequest, open_store, verify
from actlake.storage.corpus import Context, Document
from actlake.storage.location import locate


def test_contexts_in_a_buffer_that_is_used_again_are_stored_as_they_were_given(folder):
    request = StoreRequest(
        dim=2, dtype="float32", layout="documents", context_length=4, splits=("train",)
    )
    ids, characters = np.empty(4, np.int32), np.empty(4, np.int32)
    columns = {"tags": ["first"]}
    with (
        Lease.acquire(locate(folder)) as lease,
        StoreBuilder(lease, request, Provenance(model={"name": "none"})) as builder,
    ):
        for number in range(4):
            columns["tags"][0] = f"tag {number}"
            document = builder.add_document(Document(str(number), "made", "train", None, columns))
            ids[:] = range(4 * number, 4 * number + 4)
            characters[:] = 100 * number
            builder.add_context(Context(ids, np.full(4, document), characters, "train"))
        ids[:] = -7
        builder.finish()

    store = open_store(folder)
    assert store.tokens["id"][:].tolist() == list(range(16))
    assert store.tokens["char"][:].tolist() == [0] * 4 + [100] * 4 + [200] * 4 + [300] * 4
    tags = store.documents(["tags"])["tags"].to_pylist()
    assert tags == [["tag 0"], ["tag 1"], ["tag 2"], ["tag 3"]]
    assert verify(store).is_whole
