import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actlake.platform.seeds import Seeds

PINNED = {
    "init": 1591405412999047622,
    "order of epoch 3": 7079692948943398727,
    "": 2508825615721863464,
}
PINNED_BITS = [7145859133734656553, 9560804729068719380]


def test_numbers_follow_the_documented_derivation_for_good():
    seeds = Seeds(7)

    numbers = {purpose: seeds.integer(purpose) for purpose in ("init", "order of epoch 3", "")}

    # int(sha256(b"actlake seed 1\n7\n<purpose>").hexdigest()[:16], 16) & (2**63 - 1)
    assert numbers == PINNED


def test_a_numpy_generator_gives_the_same_bits_for_good():
    bits = Seeds(0).numpy("order").bit_generator.random_raw(2)

    assert bits.tolist() == PINNED_BITS


def test_one_purpose_asked_twice_gives_two_generators_in_the_same_state():
    seeds = Seeds(3)
    first, second = seeds.numpy("split"), seeds.numpy("split")

    drawn = first.integers(0, 2**62, size=8)

    assert (second.integers(0, 2**62, size=8) == drawn).all()


@given(root=st.integers(), a=st.text(), b=st.text())
def test_purposes_and_roots_never_share_a_seed(root: int, a: str, b: str):
    seeds = Seeds(root)

    same = seeds.integer(a) == seeds.integer(b)

    assert same == (a == b)
    assert replace(seeds, root=root + 1).integer(a) != seeds.integer(a)


def test_a_root_and_a_purpose_that_read_alike_together_stay_apart():
    assert Seeds(1).integer("2\nx") != Seeds(12).integer("x")
    assert Seeds(1).integer("1\nx") != Seeds(11).integer("x")


def test_generators_of_two_purposes_are_uncorrelated():
    seeds = Seeds(0)

    a = seeds.numpy("epoch 0").normal(size=20_000)
    b = seeds.numpy("epoch 1").normal(size=20_000)

    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_a_torch_generator_repeats_itself_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()

    a = torch.randn(4, generator=Seeds(5).torch("init"))
    b = torch.randn(4, generator=Seeds(5).torch("init", "cpu"))
    other = torch.randn(4, generator=Seeds(5).torch("dropout"))

    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), before)


@given(bits=st.integers(1, 63), purpose=st.text())
def test_a_seed_for_other_libraries_has_as_many_bits_as_they_take(bits: int, purpose: str):
    assert 0 <= Seeds(0).integer(purpose, bits=bits) < 2**bits


def test_a_seed_of_impossible_width_is_refused():
    with pytest.raises(ValueError, match="1 to 63 bits, not 64"):
        Seeds(0).integer("x", bits=64)


def test_seeds_need_no_torch_until_a_torch_generator_is_asked_for():
    code = (
        "import sys; from actlake.platform.seeds import Seeds; "
        "Seeds(0).numpy('x'); print('torch' in sys.modules)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "False"
