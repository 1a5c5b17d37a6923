"""The order of an epoch from a seed: a permutation that is computed, never stored. Pure.

A permutation of n numbers takes 8 n bytes as a table, 8 GB for 10⁹ rows. Here it is a function
of the place instead: a Feistel network, whose rounds are keyed by the seed, is a bijection of a
domain a little larger than n (Luby and Rackoff 1988, "How to construct pseudorandom
permutations from pseudorandom functions"), and walking along its cycles until a number below n
comes makes of it one of exactly n (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains", sections 3 and 5, where the two halves are digits of two radices, as here).

It is made to shuffle, not to keep secrets: the round function is the finaliser of SplitMix64
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").

On a few numbers a network of few rounds is not uniform (eight rounds on six numbers fail a
chi-square test, and on two odd radices it reaches even permutations only, which shows up to
about ten numbers), so a short order is the order of SplitMix64's own numbers, a table.
"""

import hashlib
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Six are needed against an unlimited adversary with ideal round functions (Patarin 2004,
# "Security of random Feistel schemes with 5 or more rounds"); ours are good, not ideal.
ROUNDS = 8
# Up to here a table: half a megabyte, and sorted in 5 ms.
LONGEST_TABLE = 2**16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Permutation:
    """A bijection of ``0 <= i < length`` onto itself, chosen by a seed and a purpose.

    ``Permutation(n, seed=0, purpose="epoch 3")(places)`` gives what stands at those places; any
    of them, in any order, in constant memory. About 50 ns a place. The derivation is fixed for
    good: the same length, seed and purpose give the same order on every machine.

    Parameters
    ----------
    length
        How many numbers; below 2⁶².
    seed
        Any integer, from the config.
    purpose
        What is put in order. Two purposes are as independent as two seeds.
    """

    def __init__(self, length: int, *, seed: int, purpose: str) -> None:
        assert 0 <= length < 2**62, length
        self.length = length
        self._keys = _keys(seed, purpose)
        self._left = math.isqrt(max(length - 1, 0)) + 1  # left * right >= length, by little
        self._right = max(1, -(-length // self._left))
        self._table = self._as_table() if length <= LONGEST_TABLE else None

    def __call__(self, places: Any) -> Array:
        """(k,) int64: the numbers at these places, each ``0 <= place < length``."""
        given: Array = np.asarray(places, np.int64)
        if given.size and not (given.min() >= 0 and given.max() < self.length):
            raise IndexError(f"A place of this order is at least 0 and below {self.length}")
        if self._table is not None:
            found: Array = self._table[given]
            return found
        values = self._once(given.astype(np.uint64))
        limit = np.uint64(self.length)
        outside = np.flatnonzero(values >= limit)
        while outside.size:  # fewer than one in sqrt(length) are
            values[outside] = self._once(values[outside])
            outside = outside[values[outside] >= limit]
        return values.astype(np.int64)

    def _once(self, values: Array) -> Array:
        """One pass of the network over the whole domain, ``left * right`` numbers."""
        left, right = np.divmod(values, np.uint64(self._right))
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                _shift(left, by=right, key=key, radix=self._left)
            else:
                _shift(right, by=left, key=key, radix=self._right)
        mixed: Array = left * np.uint64(self._right) + right
        return mixed

    def _as_table(self) -> Array:
        counted = np.arange(self.length, dtype=np.uint64) * _GOLDEN + self._keys[0]
        # All differ, both steps being bijections, so that every way to sort gives one order.
        return np.argsort(_mixed(counted))


def _keys(seed: int, purpose: str) -> Array:
    """(ROUNDS,) uint64: the keys of the rounds, from BLAKE2b of the seed and the purpose."""
    text = f"actlake order 1\n{seed}\n{purpose}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8 * ROUNDS).digest(), "<u8")


def _shift(half: Array, *, by: Array, key: Any, radix: int) -> None:
    """One round, in place: ``half = (half + F(by)) mod radix``; subtracting undoes it."""
    shift = _mixed(by + key)
    # The upper 32 bits, scaled to 0 <= F < radix < 2³² by a product in place of a division.
    shift >>= np.uint64(32)
    shift *= np.uint64(radix)
    shift >>= np.uint64(32)
    half += shift
    # Below 2 * radix; less than nothing is, without a sign, more than anything.
    np.minimum(half, half - np.uint64(radix), out=half)


def _mixed(values: Array) -> Array:
    """SplitMix64's finaliser, in place."""
    values ^= values >> np.uint64(30)
    values *= _MIX_1
    values ^= values >> np.uint64(27)
    values *= _MIX_2
    values ^= values >> np.uint64(31)
    return values
