"""A sum over parts: the same to the last bit whoever computes it."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actlake.platform.cluster import Session, WorkStopped, map_reduce
from actlake.storage.errors import ActlakeError

Array = np.ndarray


class Refused(ActlakeError):
    """What a part raises in a test."""


def compute(part: int) -> Array:
    return np.random.default_rng(part).normal(size=500) * 10.0 ** (part % 9)


def add(one: Array, other: Array) -> Array:
    if one.flags.writeable:
        one += other
        return one
    return one + other


def refuse(part: int) -> Array:
    if part == 3:
        raise Refused("part 3 has no rows")
    return compute(part)


def die_once(folder: Path, part: int) -> Array:
    if part == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    return compute(part)


@pytest.mark.parametrize("num_parts", [1, 2, 4, 5, 16, 17, 23])
def test_every_part_is_summed_once(num_parts: int) -> None:
    done: list[int] = []

    total = map_reduce(
        range(num_parts), lambda part: 1 << part, lambda a, b: a + b, on_done=done.append
    )

    assert total == (1 << num_parts) - 1
    assert done == list(range(num_parts))


def test_a_sum_in_pieces_is_the_whole_sum_to_the_bit() -> None:
    whole = map_reduce(range(23), compute, add)

    pieces = map_reduce(range(8), compute, add)
    for piece in (range(8, 20), range(20, 23)):
        pieces = map_reduce(piece, compute, add, initial=pieces)

    assert np.array_equal(whole, pieces)


@pytest.mark.ray
def test_workers_give_the_sum_of_one_process_to_the_bit(ray_session: Session) -> None:
    here = map_reduce(range(23), compute, add)

    there = map_reduce(range(12), compute, add, session=ray_session, workers=3)
    there = map_reduce(range(12, 23), compute, add, initial=there, session=ray_session, workers=2)

    assert np.array_equal(here, there)


@pytest.mark.ray
def test_a_killed_worker_changes_nothing(ray_session: Session, tmp_path: Path) -> None:
    here = map_reduce(range(6), compute, add)

    there = map_reduce(range(6), partial(die_once, tmp_path), add, session=ray_session, workers=2)

    assert (tmp_path / "died").exists()
    assert np.array_equal(here, there)


@pytest.mark.ray
def test_what_a_part_raises_reaches_the_caller_as_itself(ray_session: Session) -> None:
    for workers in (1, 2):
        with pytest.raises(Refused, match="part 3 has no rows"):
            map_reduce(range(6), refuse, add, session=ray_session, workers=workers)


@pytest.mark.ray
def test_a_stop_ends_the_sum(ray_session: Session) -> None:
    ray_session.stop.set()

    for workers in (1, 2):
        with pytest.raises(WorkStopped, match="stopped before it was complete"):
            map_reduce(range(6), compute, add, session=ray_session, workers=workers)
