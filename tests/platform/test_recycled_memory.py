"""Memory of tensors is used again, and never while somebody looks at it."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from actlake.platform.recycled_memory import SMALLEST_BLOCK, RecycledMemory

SHAPE = (1024, 512)


def filled(memory, value):
    return memory.empty(SHAPE, torch.float32).fill_(value)


def test_a_block_is_used_again_when_its_tensor_is_gone():
    memory = RecycledMemory()
    first = filled(memory, 1.0)
    place = first.data_ptr()

    other = filled(memory, 2.0)
    del first
    gc.collect()
    again = filled(memory, 3.0)

    assert other.data_ptr() != place
    assert again.data_ptr() == place
    assert (other == 2.0).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda tensor: tensor[5:7],
        lambda tensor: tensor.numpy()[3],
        lambda tensor: np.asarray(tensor).reshape(-1)[:9].view(np.int32),
        lambda tensor: np.from_dlpack(tensor),
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor.T.reshape(-1).new_tensor([0.0]).set_(tensor.untyped_storage()),
    ],
)
def test_a_block_is_not_used_again_while_a_view_of_it_lives(view):
    memory = RecycledMemory()
    tensor = filled(memory, 1.0)
    place = tensor.data_ptr()
    kept = view(tensor)

    del tensor
    gc.collect()
    others = [filled(memory, 9.0) for _ in range(3)]

    assert place not in {other.data_ptr() for other in others}
    del kept
    gc.collect()
    assert filled(memory, 0.0).data_ptr() == place


def test_a_larger_tensor_does_not_get_a_smaller_block():
    memory = RecycledMemory()
    small = memory.empty((SMALLEST_BLOCK,), torch.uint8)
    del small
    gc.collect()

    large = memory.empty((64, 2**20), torch.uint8).fill_(7)

    assert (large == 7).all()


def test_threads_never_share_a_block():
    memory = RecycledMemory()

    def own(value):
        for _ in range(20):
            tensor = filled(memory, value)
            if not (tensor == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(own, range(8)))
