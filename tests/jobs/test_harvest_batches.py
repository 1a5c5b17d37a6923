"""Every row of a unit is computed once, in batches that depend on the unit alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actlake.jobs.harvest.batches import BATCHINGS, plan_batches, run_to, unit_batches
from actlake.storage import Extent

batchings = st.sampled_from(BATCHINGS)
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(np.array)


@given(lengths=lengths, batch_tokens=st.integers(1, 300), batching=batchings)
def test_every_context_is_in_one_batch_and_no_batch_exceeds_its_budget(
    lengths, batch_tokens, batching
):
    batches = plan_batches(lengths, batch_tokens=batch_tokens, batching=batching)

    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * lengths[batch].max()
        assert padded <= batch_tokens or len(batch) == 1
        assert batching != "equal_length" or len(set(lengths[batch])) == 1
        assert batching != "alone" or len(batch) == 1


@given(lengths=lengths, data=st.data(), batch_tokens=st.integers(8, 200), batching=batchings)
def test_every_row_of_a_unit_is_taken_once_with_the_tokens_before_it(
    lengths, data, batch_tokens, batching
):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(starts[-1])
    first = data.draw(st.integers(0, total - 1))
    unit = Extent(first, data.draw(st.integers(first + 1, total)))
    ids = np.random.default_rng(0).integers(0, 1000, total).astype(np.int32)
    overlapping = slice(
        int(np.searchsorted(starts, unit.start, "right")) - 1,
        int(np.searchsorted(starts, unit.stop - 1, "right")) + 1,
    )
    starts = starts[overlapping]

    given_ids = ids[starts[0] : run_to(starts, unit, batching)]
    batches = list(
        unit_batches(starts, given_ids, unit, batch_tokens=batch_tokens, batching=batching)
    )

    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(unit)))
    for batch in batches:
        np.testing.assert_array_equal(
            batch.ids.reshape(-1)[batch.taken], ids[unit.start + batch.rows]
        )
        # A token sees the same context as in the document, whatever was cut or padded.
        for place, row in zip(batch.taken, batch.rows + unit.start, strict=True):
            context, position = divmod(int(place), batch.ids.shape[1])
            start = row - position
            assert start in starts[:-1]
            np.testing.assert_array_equal(batch.ids[context, : position + 1], ids[start : row + 1])
            if batching != "padded":  # and what comes after it
                stop = starts[np.searchsorted(starts, row, "right")]
                np.testing.assert_array_equal(batch.ids[context], ids[start:stop])


def test_equal_lengths_waste_no_padding_and_keep_their_order():
    starts = np.arange(0, 1025, 128)

    batches = list(
        unit_batches(
            starts,
            np.arange(1024, dtype=np.int32),
            Extent(0, 1024),
            batch_tokens=256,
            batching="padded",
        )
    )

    assert [batch.ids.shape for batch in batches] == [(2, 128)] * 4
    assert [batch.num_tokens for batch in batches] == [256] * 4
    np.testing.assert_array_equal(np.concatenate([b.rows for b in batches]), np.arange(1024))
