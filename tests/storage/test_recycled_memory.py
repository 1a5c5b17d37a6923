"""Memory of batches is used again, and never while somebody looks at it."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from actlake.storage.recycled_memory import SMALLEST_BLOCK, RecycledMemory


def filled(memory, value, num_bytes=2 * SMALLEST_BLOCK):
    array = memory.empty(num_bytes)
    array[:] = value
    return array


def place(array):
    return array.ctypes.data


def test_a_block_is_used_again_when_its_array_is_gone():
    memory = RecycledMemory()
    first = filled(memory, 1)
    where = place(first)

    other = filled(memory, 2)
    del first
    gc.collect()
    again = filled(memory, 3)

    assert place(other) != where
    assert place(again) == where
    assert (other == 2).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[5:7],
        lambda array: array.view(np.float32).reshape(-1, 64)[3],
        lambda array: array.reshape(-1, 4)[:, 1][::3],
        memoryview,
        np.from_dlpack,
        torch.from_numpy,
        lambda array: torch.from_numpy(array).view(torch.float32).view(-1, 32)[2:3],
        lambda array: np.from_dlpack(torch.from_numpy(array)[9:]),
        lambda array: torch.empty(0).set_(torch.from_numpy(array).untyped_storage()),
    ],
)
def test_a_block_is_not_used_again_while_something_shares_it(view):
    memory = RecycledMemory()
    array = filled(memory, 1)
    where = place(array)
    kept = view(array)

    del array
    gc.collect()
    others = [filled(memory, 9) for _ in range(3)]

    assert where not in map(place, others)
    del kept
    gc.collect()
    assert place(filled(memory, 0)) == where


def test_a_larger_array_does_not_get_a_smaller_block():
    memory = RecycledMemory()
    del_me = filled(memory, 1)
    del del_me
    gc.collect()

    large = filled(memory, 7, 64 * SMALLEST_BLOCK)

    assert (large == 7).all()


def test_threads_never_share_a_block():
    memory = RecycledMemory()

    def own(value):
        for _ in range(20):
            array = filled(memory, value)
            if not (array == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(own, range(8)))
