"""A sum over parts: the same to the last bit whoever computes it."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ray import exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from threadpoolctl import threadpool_info

from actlake.platform.cluster import (
    ClusterError,
    NotEnoughResources,
    ReplicasKeepDying,
    Resources,
    Session,
    WorkStopped,
    map_reduce,
    patience,
)
from actlake.platform.cluster.losses import in_our_words
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
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(part)


def die(part: int) -> Array:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives on")


def environment_of(part: int) -> list[tuple[set[int], str | None, float, float]]:
    import ray

    has = ray.get_runtime_context().get_assigned_resources()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [(threads_of_pools(part), gpus, has["CPU"], has.get("memory", 0))]


def threads_of_pools(part: int) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


def join(one: list[object], other: list[object]) -> list[object]:
    return [*one, *other]


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
    with pytest.raises(Refused, match="part 3 has no rows"):
        map_reduce(range(6), refuse, add)
    with pytest.raises(Refused, match="part 3 has no rows"):
        map_reduce(range(6), refuse, add, session=ray_session, workers=2)


@pytest.mark.ray
def test_a_stop_ends_the_sum(ray_session: Session) -> None:
    with pytest.raises(WorkStopped, match="the same command goes on"):
        map_reduce(
            range(600), compute, add, session=ray_session, workers=2,
            on_done=lambda part: ray_session.stop.set(),
        )  # fmt: skip


@pytest.mark.ray
def test_a_part_that_is_lost_every_time_is_an_error_of_ours(ray_session: Session) -> None:
    with pytest.raises(ReplicasKeepDying, match=r"A part of the sum lost its process(.|\n)*hint: "):
        map_reduce(range(2), die, add, session=ray_session, workers=1)


def test_errors_of_ray_are_told_in_our_words() -> None:
    environment = exceptions.RuntimeEnvSetupError("no space left on device")

    ours = in_our_words(environment, what="A part")

    assert isinstance(ours, ClusterError)
    assert str(ours).startswith("A part could not be started: a node cannot make its environment")
    assert "no space left on device" in str(ours)
    assert "\nhint: " in str(ours)


@pytest.mark.ray
def test_a_busy_cluster_is_waited_for_and_that_is_said(
    ray_session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "SPEAK_EVERY_S", 0.3)
    place = placement_group([{"CPU": 4}])
    assert place.wait(20)
    threading.Timer(1.5, remove_placement_group, [place]).start()

    with caplog.at_level("WARNING", logger="actlake"):
        total = map_reduce(range(2), compute, add, session=ray_session, workers=2)

    assert np.array_equal(total, compute(0) + compute(1))
    assert "The sum waits for its next part, " in caplog.text
    assert "free: 0 CPU" in caplog.text


@pytest.mark.ray
def test_a_sum_whose_nodes_are_gone_does_not_wait_for_ever(
    ray_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have all CPUs until then; at last no node is large enough."""
    place = placement_group([{"CPU": 4}])
    assert place.wait(20)
    began = time.monotonic()

    def nodes(session: Session) -> list[Resources]:
        return [Resources(cpus=4 if time.monotonic() - began < 1 else 0)]

    monkeypatch.setattr(Session, "nodes", nodes)
    with pytest.raises(NotEnoughResources, match="room for 0"):
        map_reduce(range(2), compute, add, session=ray_session, workers=2, without_room_s=1.0)

    remove_placement_group(place)


@pytest.mark.ray
def test_a_task_has_the_threads_memory_and_gpus_that_it_reserves(ray_session: Session) -> None:
    for workers in (1, 2):
        seen = map_reduce(
            [0, 1], environment_of, join, session=ray_session, workers=workers, threads=3,
            resources=Resources(cpus=2, memory_mb=64),
        )  # fmt: skip

        assert seen == [({3}, "", 2.0, 64 * 2.0**20)] * 2


def test_without_workers_the_process_has_the_threads_for_as_long_as_it_sums() -> None:
    before = threads_of_pools(0)

    inside = map_reduce([0, 1], threads_of_pools, set.union, threads=3)

    assert inside == {3}
    assert threads_of_pools(0) == before
