"""The pool's decisions, without Ray."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.platform.cluster import NotEnoughResources, Resources, check_demand
from actlake.platform.cluster.resources import replicas_that_fit
from actlake.platform.cluster.schedule import Schedule
from actlake.platform.cluster.worker_plan import _most_cpus


@given(
    num_units=st.integers(0, 30),
    in_flight=st.integers(1, 4),
    max_attempts=st.integers(1, 4),
    poison=st.sets(st.integers(0, 29), max_size=4),
    data=st.data(),
)
def test_every_unit_ends_done_or_set_aside_exactly_once_whatever_replicas_do(
    num_units: int, in_flight: int, max_attempts: int, poison: set[int], data: st.DataObject
) -> None:
    schedule = Schedule(iter(range(num_units)), in_flight=in_flight, max_attempts=max_attempts)
    numbers = count()
    replicas: list[int] = []
    done: Counter[int] = Counter()
    attempts: Counter[int] = Counter()
    mishaps = 6

    while not schedule.finished:
        while len(replicas) < 3:
            replicas.append(next(numbers))
            schedule.join(replicas[-1])
        for replica in replicas:
            while attempt := schedule.take(replica):
                attempts[attempt.unit] += 1
                assert attempt.number <= max_attempts
        replica = data.draw(st.sampled_from([r for r in replicas if schedule.held(r)]))
        unit = data.draw(st.sampled_from(schedule.held(replica)))
        accident = mishaps > 0 and data.draw(st.booleans())
        if unit in poison or accident:
            mishaps -= accident
            schedule.leave(replica, "lost")
            replicas.remove(replica)
        else:
            schedule.done(replica, unit)
            done[unit] += 1

    assert sorted([*done, *schedule.failed]) == list(range(num_units))
    assert all(times == 1 for times in done.values())
    assert schedule.done_count == len(done)
    assert max(attempts.values(), default=0) <= max_attempts


@given(in_flight=st.integers(1, 4), poison=st.sets(st.integers(0, 19), max_size=5))
def test_only_poison_units_are_set_aside_when_a_unit_may_be_tried_twice(
    in_flight: int, poison: set[int]
) -> None:
    schedule = Schedule(range(20), in_flight=in_flight, max_attempts=2)
    numbers = count()
    replica = next(numbers)
    schedule.join(replica)

    while not schedule.finished:
        while schedule.take(replica):
            pass
        oldest = schedule.held(replica)[0]
        if oldest in poison:
            schedule.leave(replica, "died")
            replica = next(numbers)
            schedule.join(replica)
        else:
            schedule.done(replica, oldest)

    assert set(schedule.failed) == poison


def test_units_of_a_lost_replica_go_to_the_front_and_are_tried_alone() -> None:
    schedule = Schedule(range(10), in_flight=2, max_attempts=3)
    schedule.join(0)
    schedule.take(0)
    schedule.take(0)

    leaving = schedule.leave(0, "killed")
    schedule.join(1)
    again = schedule.take(1)

    assert leaving.requeued == (0, 1)
    assert again is not None
    assert (again.unit, again.number) == (0, 2)
    assert schedule.take(1) is None


def test_units_of_a_replica_that_is_to_blame_itself_count_no_attempt() -> None:
    schedule = Schedule(range(3), in_flight=2, max_attempts=1)
    schedule.join(0)
    schedule.take(0)
    schedule.take(0)

    leaving = schedule.leave(0, "no space", blame=False)

    assert leaving.requeued == (0, 1)
    assert schedule.failed == {}
    schedule.join(1)
    for _ in range(3):
        attempt = schedule.take(1)
        assert attempt is not None
        assert attempt.number == 1
        schedule.done(1, attempt.unit)
    assert schedule.finished


def test_one_lost_unit_holds_up_one_replica_and_not_all() -> None:
    schedule = Schedule(range(100), in_flight=2, max_attempts=3)
    for replica in range(3):
        schedule.join(replica)
    schedule.take(0)
    for replica in (1, 2):
        schedule.take(replica)

    schedule.leave(0, "killed")

    assert schedule.take(1) is None
    assert schedule.take(2) is not None


def test_units_are_read_no_further_than_one_ahead() -> None:
    read: list[int] = []
    schedule = Schedule(
        (read.append(unit) or unit for unit in count()), in_flight=2, max_attempts=1
    )
    schedule.join(0)

    while schedule.take(0):
        pass

    assert read == [0, 1, 2]


def test_a_chain_that_must_be_on_one_node_does_not_fit_two_half_nodes() -> None:
    nodes = [Resources(cpus=2), Resources(cpus=2)]
    stages = [Resources(cpus=1.5), Resources(cpus=1.5)]

    assert replicas_that_fit(nodes, stages, placement="pack", wanted=1) == 0
    assert replicas_that_fit(nodes, stages, placement="span", wanted=2) == 1
    assert replicas_that_fit(nodes, stages, placement="spread", wanted=2) == 1
    with pytest.raises(NotEnoughResources, match="hint: placement: span lets"):
        check_demand(nodes, stages, placement="pack", replicas=1)


def test_stages_of_one_node_get_no_more_cpus_than_that_node_has_for_all_of_them() -> None:
    nodes = [Resources(cpus=16), Resources(cpus=16)]
    chain = [Resources(), Resources()]

    assert _most_cpus(nodes, chain, "pack", 1) == 8
    assert _most_cpus(nodes, chain, "spread", 1) == 16
    assert _most_cpus(nodes, chain, "spread", 4) == 4


def test_ten_tenths_of_a_gpu_fit_one_gpu() -> None:
    nodes = [Resources(cpus=64, gpus=1)]
    stages = [Resources(cpus=1, gpus=0.1)]

    assert replicas_that_fit(nodes, stages, placement="pack", wanted=11) == 10


def test_too_large_a_demand_is_refused_with_what_is_asked_and_what_is_there() -> None:
    nodes = [Resources(cpus=8, gpus=2)]

    with pytest.raises(NotEnoughResources) as refused:
        check_demand(nodes, [Resources(gpus=1)] * 2, placement="pack", replicas=2)

    words = str(refused.value)
    assert "2 x (1 CPU + 1 GPU then 1 CPU + 1 GPU), all on one node" in words
    assert "there: 8 CPU + 2 GPU" in words
    assert "hint: run 1 replica" in words
