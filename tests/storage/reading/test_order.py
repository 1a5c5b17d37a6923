"""The order of an epoch is a permutation, a different one for each seed, and never stored."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.storage.reading.order import LONGEST_TABLE, Permutation

lengths = st.one_of(
    st.integers(1, 300), st.integers(LONGEST_TABLE - 2, LONGEST_TABLE + 2_000), st.just(300_007)
)


@settings(max_examples=40, deadline=None)
@given(length=lengths, seed=st.integers(-(2**70), 2**70))
def test_every_number_comes_exactly_once(length, seed):
    order = Permutation(length, seed=seed, purpose="test")

    values = order(np.arange(length))

    assert values.dtype == np.int64
    assert (np.bincount(values, minlength=length) == 1).all()
    assert len(values) == length


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 2**61),
    places=st.lists(st.integers(0, 2**61 - 1), min_size=1, max_size=50),
)
def test_any_places_of_a_huge_order_are_computed_alone(length, places):
    places = sorted({place % length for place in places})
    order = Permutation(length, seed=3, purpose="test")

    together = order(places)

    assert len(set(together.tolist())) == len(places)
    assert ((together >= 0) & (together < length)).all()
    assert together.tolist() == [int(order([place])[0]) for place in places]


def test_the_derivation_is_fixed_for_good():
    table = Permutation(10, seed=0, purpose="epoch 0")(np.arange(10))
    network = Permutation(10**9, seed=0, purpose="epoch 0")([0, 1, 2, 999_999_999])

    assert table.tolist() == [1, 3, 0, 4, 2, 7, 8, 5, 9, 6]
    assert network.tolist() == [965820362, 284959649, 657722640, 320480544]


@pytest.mark.parametrize("other", [{"seed": 1}, {"purpose": "epoch 1"}])
def test_another_seed_or_purpose_is_another_order(other):
    length = LONGEST_TABLE * 3
    one = Permutation(length, **{"seed": 0, "purpose": "epoch 0"})(np.arange(length))
    two = Permutation(length, **{"seed": 0, "purpose": "epoch 0"} | other)(np.arange(length))

    assert (one == two).sum() < 12  # of unrelated orders one place is expected to agree
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.012


@pytest.mark.parametrize("length", [3, 4, 5])
def test_short_orders_are_all_equally_likely(length):
    orders = math.factorial(length)
    seen = Counter(
        tuple(Permutation(length, seed=seed, purpose="t")(np.arange(length)).tolist())
        for seed in range(100 * orders)
    )

    chi_square = sum((count - 100) ** 2 / 100 for count in seen.values())
    assert len(seen) == orders
    assert abs(chi_square - (orders - 1)) < 4 * math.sqrt(2 * (orders - 1))


@pytest.mark.parametrize("length", [LONGEST_TABLE + 1, 100_000, 262_144, 1_000_003])
def test_a_long_order_looks_drawn_at_random(length):
    """Where numbers come from, what neighbours become, and how many stay: as by chance."""
    cells = 32
    values = Permutation(length, seed=5, purpose="t")(np.arange(length))

    places = np.arange(length) * cells // length
    table = np.zeros((cells, cells))
    np.add.at(table, (places, values * cells // length), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / length
    chi_square = ((table - expected) ** 2 / expected).sum()
    freedom = (cells - 1) ** 2
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)

    for distance in (1, 2, 64, math.isqrt(length), math.isqrt(length) + 1):
        steps = (values[distance:] - values[:-distance]) % length * cells // length
        counts = np.bincount(steps, minlength=cells)
        even = len(steps) / cells
        assert ((counts - even) ** 2 / even).sum() < cells - 1 + 6 * math.sqrt(2 * (cells - 1))

    assert (values == np.arange(length)).sum() < 9  # Poisson of mean 1


@pytest.mark.parametrize("place", [-1, 5])
def test_a_place_outside_the_order_is_refused(place):
    with pytest.raises(IndexError, match="at least 0 and below 5"):
        Permutation(5, seed=0, purpose="t")([0, place])
