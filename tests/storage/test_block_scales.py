"""int8 codes with scales: what comes back, how far off it may be, and that it is stored once."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actlake.storage.block_scales import (
    BLOCK_COLUMNS,
    LARGEST_VALUE,
    decode_rows,
    encode_rows,
    num_column_blocks,
)

shapes = st.tuples(st.integers(0, 5), st.sampled_from([1, 6, 63, 64, 65, 128, 200]))
finite = st.floats(-LARGEST_VALUE, LARGEST_VALUE, width=32)
small = st.floats(-(2.0**-10), 2.0**-10, width=32)
anything = st.floats(width=32)


def rows_of(values):
    return arrays.arrays(np.float32, shapes, elements=values)


def of_columns(scales, dim):
    """Of each column its scale, in float64."""
    return np.repeat(scales.astype(np.float64), BLOCK_COLUMNS, axis=1)[:, :dim]


@given(rows_of(finite) | rows_of(small))
@example(np.zeros((2, 70), np.float32))
@example(np.full((1, 64), 2.0**-26, np.float32))
@example(np.full((1, 3), LARGEST_VALUE, np.float32))
def test_no_value_is_off_by_more_than_half_its_scale(rows):
    codes, scales = encode_rows(rows)
    decoded = decode_rows(codes, scales).astype(np.float64)

    assert np.abs(codes.astype(int)).max(initial=0) <= 127
    assert (scales > 0).all()
    off = np.abs(rows.astype(np.float64) - decoded)
    assert (off <= of_columns(scales, rows.shape[1]) / 2).all()


@given(rows_of(anything) | rows_of(small))
def test_decoded_rows_have_the_codes_and_scales_that_they_came_from(rows):
    codes, scales = encode_rows(rows)

    again_codes, again_scales = encode_rows(decode_rows(codes, scales))

    np.testing.assert_array_equal(again_codes, codes)
    np.testing.assert_array_equal(again_scales.view(np.uint16), scales.view(np.uint16))


@given(rows_of(finite))
def test_a_scale_is_no_larger_than_it_must_be(rows):
    _, scales = encode_rows(rows)

    largest = np.maximum.reduceat(
        np.abs(rows.astype(np.float64)), np.arange(0, rows.shape[1], BLOCK_COLUMNS), axis=1
    )
    below = np.nextafter(scales, np.float16(0)).astype(np.float64)
    is_tight = (127 * below < largest) | (scales < np.float16(2.0**-14))
    assert is_tight.all()
    assert (scales <= np.maximum(2 * largest / 127, 2.0**-24)).all()


@given(rows_of(finite), st.integers(0, 2**32 - 1))
def test_a_block_is_coded_alone(rows, seed):
    dim = rows.shape[1]
    codes, scales = encode_rows(rows)
    block = seed % num_column_blocks(dim)
    columns = slice(block * BLOCK_COLUMNS, (block + 1) * BLOCK_COLUMNS)

    alone_codes, alone_scales = encode_rows(rows[:, columns])

    np.testing.assert_array_equal(alone_codes, codes[:, columns])
    np.testing.assert_array_equal(alone_scales[:, 0], scales[:, block])


@pytest.mark.parametrize("dim", [1, 64, 130])
def test_zeros_stay_zeros(dim):
    codes, scales = encode_rows(np.zeros((3, dim), np.float16))

    assert (scales == np.float16(2.0**-24)).all()
    assert not decode_rows(codes, scales).any()


def test_one_huge_value_costs_its_own_block_only():
    rows = np.random.default_rng(0).normal(size=(20, 192)).astype(np.float32)
    rows[:, 70] = 104_061  # as Gemma's massive rows

    off = np.abs(decode_rows(*encode_rows(rows)) - rows)

    assert off[:, :64].max() < 0.02
    assert off[:, 128:].max() < 0.02
    assert off[:, 70].max() <= 410


@given(rows_of(anything))
def test_an_infinity_survives_and_what_shares_its_block_is_said_to_be_lost(rows):
    decoded = decode_rows(*encode_rows(rows))

    is_beyond = np.abs(rows) > LARGEST_VALUE
    starts = np.arange(0, rows.shape[1], BLOCK_COLUMNS)
    is_lost = np.logical_or.reduceat(is_beyond | np.isnan(rows), starts, axis=1)
    is_lost = np.repeat(is_lost, BLOCK_COLUMNS, axis=1)[:, : rows.shape[1]]
    np.testing.assert_array_equal(decoded[is_beyond], np.copysign(np.inf, rows[is_beyond]))
    assert np.isnan(decoded[is_lost & ~is_beyond]).all()
    assert np.isfinite(decoded[~is_lost]).all()


@pytest.mark.parametrize(
    "value", [np.nextafter(np.float32(LARGEST_VALUE), np.float32(np.inf)), 1e30]
)
def test_a_value_beyond_the_largest_is_an_infinity(value):
    rows = np.array([[value, -value, 1.0]])

    np.testing.assert_array_equal(
        decode_rows(*encode_rows(rows)), np.array([[np.inf, -np.inf, np.nan]], np.float32)
    )


@given(rows_of(finite), st.integers(1, 7))
def test_many_rows_are_coded_as_each_of_them_alone(rows, times):
    many = np.tile(rows, (times * 700, 1))  # more than fit into a processor's cache
    codes, scales = encode_rows(rows)

    many_codes, many_scales = encode_rows(many)

    np.testing.assert_array_equal(many_codes, np.tile(codes, (times * 700, 1)))
    np.testing.assert_array_equal(many_scales, np.tile(scales, (times * 700, 1)))
    np.testing.assert_array_equal(
        decode_rows(many_codes, many_scales), np.tile(decode_rows(codes, scales), (times * 700, 1))
    )
