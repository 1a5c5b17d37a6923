"""Where actors' time goes, and which of them lag: by a clock that the test turns."""

import logging
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.jobs.harvest.actors import SLOW, Actors
from actlake.jobs.harvest.metering import ORDER, Meter, StageUse


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def use(**seconds: float) -> StageUse:
    return StageUse({what: seconds.get(what, 0.0) for what in ORDER}, cpu_s=1.0, memory_bytes=2**30)


def test_every_moment_has_one_name_and_writing_beside_computing_costs_nothing(
    clock: Clock,
) -> None:
    meter = Meter(clock=clock)
    clock.now += 50  # loading
    with meter.doing("compute"):
        clock.now += 3
        with meter.doing("write"):  # as another thread would
            clock.now += 2
    with meter.doing("send"):
        clock.now += 4
    with meter.doing("write"):
        clock.now += 5
    clock.now += 7

    assert meter.take().seconds == {"compute": 5, "send": 4, "write": 5, "wait": 7}
    clock.now += 1
    assert meter.take().seconds == {"compute": 0, "send": 0, "write": 0, "wait": 1}


@given(st.lists(st.tuples(st.sampled_from(ORDER[:3]), st.integers(0, 9), st.integers(0, 9))))
def test_what_a_stage_did_adds_up_to_the_time(parts: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.take()
    for what, inside, after in parts:
        with meter.doing(what):  # type: ignore[arg-type]
            clock.now += inside
        clock.now += after

    assert sum(meter.take().seconds.values()) == clock.now - 100


def test_a_replica_that_slows_down_is_named_with_the_reason_and_again_when_it_keeps_up(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    actors = Actors(clock=clock)
    for replica in range(3):
        actors.up(replica)
    for _ in range(4):
        clock.now += 10
        for replica in range(3):
            actors.done(replica, 1000, [use(compute=9, wait=1)])
    actors.look()
    assert actors.stragglers() == {}

    for _ in range(6):
        clock.now += 10
        actors.done(0, 1000, [use(compute=9, wait=1)])
        actors.done(1, 1000, [use(compute=9, wait=1)])
        actors.done(2, 200, [use(wait=80)])
    with caplog.at_level(logging.INFO):
        actors.look()
        actors.look()

    assert actors.stragglers() == {2: pytest.approx(0.2)}
    assert len(caplog.records) == 1
    said = caplog.text
    assert "Replica 2 is a straggler: 20 % of its peers' rate; waiting for input 9" in said
    assert [row["straggler"] for row in actors.look().table] == [False, False, True]
    assert actors.look().numbers["harvest/stragglers"] == 1

    for _ in range(6):
        clock.now += 10
        for replica in range(3):
            actors.done(replica, 1000, [use(compute=9)])
    with caplog.at_level(logging.INFO):
        actors.look()
    assert "Replica 2 keeps up again" in caplog.text


def test_a_replica_that_has_stopped_is_a_straggler_before_it_answers(clock: Clock) -> None:
    actors = Actors(clock=clock)
    for _ in range(4):
        clock.now += 10
        for replica in (0, 1):
            actors.done(replica, 1000, [use(compute=9)])
    for _ in range(10):
        clock.now += 10
        actors.done(0, 1000, [use(compute=9)])

    assert list(actors.stragglers()) == [1]


def test_a_lost_replica_is_forgotten_and_a_lone_one_never_lags(clock: Clock) -> None:
    actors = Actors(clock=clock)
    for _ in range(3):
        clock.now += 10
        actors.done(0, 1000, [use(compute=9), use(wait=9)])
        actors.done(1, 10, [use(compute=9), use(wait=9)])
    assert list(actors.stragglers()) == [1]

    actors.gone(0)

    assert actors.stragglers() == {}
    assert {(row["replica"], row["stage"]) for row in actors.look().table} == {(1, 0), (1, 1)}
    numbers = actors.look().numbers
    assert numbers["harvest/replica_1/stage_1/wait_share"] == 1.0
    assert numbers["system/replica_1/stage_0/memory_mb"] == 1024


@given(st.lists(st.integers(1, 100), max_size=9))
def test_stragglers_are_those_far_below_the_median_of_the_others(rates: list[int]) -> None:
    clock = Clock()
    actors = Actors(clock=clock)
    for replica in range(len(rates)):
        actors.up(replica)
    clock.now += 10
    for replica, rate in enumerate(rates):
        actors.done(replica, 0, [use()])
        actors.done(replica, 10 * rate, [use()])

    usual = [statistics.median(rates[:i] + rates[i + 1 :] or [0]) for i in range(len(rates))]
    assert actors.stragglers() == {
        replica: pytest.approx(rate / usual[replica])
        for replica, rate in enumerate(rates)
        if rate < SLOW * usual[replica]
    }


def test_the_rate_of_a_replica_that_came_late_is_taken_over_its_own_time(clock: Clock) -> None:
    actors = Actors(clock=clock)
    actors.up(0)
    clock.now += 90
    actors.up(1)
    clock.now += 10
    actors.done(0, 1000, [use(compute=1)])
    actors.done(1, 1000, [use(compute=1)])

    numbers = actors.look().numbers
    assert numbers["harvest/replica_0/tokens_per_s"] == pytest.approx(10)
    assert numbers["harvest/replica_1/tokens_per_s"] == pytest.approx(100)
