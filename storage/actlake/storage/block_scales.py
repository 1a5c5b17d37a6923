"""Rows as int8 codes with a float16 scale for each block of 64 columns: to codes, and back.

A value is ``code * scale``, with codes from -127 to 127. One scale a row would be spoilt by the few
dimensions of a residual stream that are a thousand times the others: of SmolLM2's rows one scale a
block loses 3e-4 to 5e-4 of the variance (docs/design/011).

Exact in float32, so that every writer comes to the same bytes: a product has 18 bits, and a
quotient that is no half is not rounded to one. So no value is off by more than half its scale, and
decoded rows have their own codes again.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK_COLUMNS = 64
"""Columns that share a scale; those of a row's last block may be fewer."""
LARGEST_CODE = 127
LARGEST_VALUE = LARGEST_CODE * 65_504.0
"""What the largest float16 as a scale reaches: 8,319,008."""

_SMALLEST_NORMAL = 0x0400  # 2**-14, by its bits as float16
# Powers of two by the bits of what they are not below: numbers below 2**-14 are whole multiples of
# 2**-24, and too few of them for a block of decoded rows to always come to its own scale again.
_SMALL_SCALES = np.array(
    [1 << max(0, bits - 1).bit_length() for bits in range(_SMALLEST_NORMAL + 1)], np.uint16
)
# A part at a time, which stays in a processor's cache.
_PART_BYTES = 2**19


def num_column_blocks(dim: int) -> int:
    """Scales of a row."""
    return -(-dim // BLOCK_COLUMNS)


def encode_rows(rows: Array) -> tuple[Array, Array]:
    """Codes (n, dim) int8 and scales (n, blocks) float16 of rows (n, dim) of any float type.

    A scale is the smallest float16 that is not below the block's largest absolute value / 127, so
    that nothing is clipped; below 2⁻¹⁴ the smallest power of two, 2⁻²⁴ at least, also of zeros.

    What cannot be stored makes its block not finite: a value beyond `LARGEST_VALUE` comes back as
    an infinity and the others of its block as NaN; a NaN makes all of its block NaN.
    """
    num_rows, dim = rows.shape
    codes = np.empty((num_rows, dim), np.int8)
    scales = np.empty((num_rows, num_column_blocks(dim)), np.float16)
    for part in _parts(num_rows, dim):
        with np.errstate(over="ignore"):  # beyond float32 is beyond the largest value
            values = rows[part].astype(np.float32)
        _encode_part(values, codes[part], scales[part])
    return codes, scales


def decode_rows(codes: Array, scales: Array, *, out: Array | None = None) -> Array:
    """Rows (n, dim) float32: each code times its block's scale.

    Parameters
    ----------
    out
        Where to write, (n, dim) float32.
    """
    num_rows, dim = codes.shape
    if out is None:
        out = np.empty((num_rows, dim), np.float32)
    whole = dim // BLOCK_COLUMNS * BLOCK_COLUMNS
    with np.errstate(invalid="ignore"):  # 0 times an infinite scale
        for part in _parts(num_rows, dim):
            values, factors = out[part], scales[part].astype(np.float32)
            values[:] = codes[part]
            blocks = values[:, :whole].reshape(len(values), -1, BLOCK_COLUMNS)
            blocks *= factors[:, : blocks.shape[1], None]
            if whole < dim:
                values[:, whole:] *= factors[:, -1:]
    return out


def _parts(num_rows: int, dim: int) -> list[slice]:
    step = max(1, _PART_BYTES // (4 * dim))
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _encode_part(values: Array, codes: Array, scales: Array) -> None:
    """Encode (n, dim) float32, which is written over."""
    starts = np.arange(0, values.shape[1], BLOCK_COLUMNS)
    largest = np.maximum.reduceat(np.abs(values), starts, axis=1)
    scales[:] = _smallest_scales(largest)
    is_finite = np.isfinite(scales)
    if not is_finite.all():
        _mark_nonfinite(values, scales, is_finite)
    values /= _by_column(np.where(is_finite, scales, 1).astype(np.float32), values.shape[1])
    codes[:] = np.rint(values, out=values)


def _smallest_scales(largest: Array) -> Array:
    """The smallest scale with which each of `largest`, float32, has a code."""
    with np.errstate(over="ignore"):
        scales = (largest / np.float32(LARGEST_CODE)).astype(np.float16)
    bits = scales.view(np.uint16)
    bits += scales.astype(np.float32) * np.float32(LARGEST_CODE) < largest  # to the next float16
    small = bits < _SMALLEST_NORMAL
    bits[small] = _SMALL_SCALES[bits[small]]
    return scales


def _mark_nonfinite(values: Array, scales: Array, is_finite: Array) -> None:
    """Make blocks that cannot be stored infinite or NaN, their values into -1, 0 or 1."""
    is_beyond = np.abs(values) > LARGEST_VALUE  # not of NaN
    starts = np.arange(0, values.shape[1], BLOCK_COLUMNS)
    has_beyond = np.logical_or.reduceat(is_beyond, starts, axis=1)
    scales[~is_finite] = np.where(has_beyond[~is_finite], np.inf, np.nan)
    is_lost = ~_by_column(is_finite, values.shape[1])
    values[is_lost] = np.copysign(is_beyond.astype(np.float32), values)[is_lost]


def _by_column(of_blocks: Array, dim: int) -> Array:
    """(n, dim): what is said of each block, for each of its columns."""
    return np.repeat(of_blocks, BLOCK_COLUMNS, axis=1)[:, :dim]
