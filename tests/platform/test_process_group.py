"""Processes that work on one thing together: they sum, they fail and begin again as one."""

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from actlake.platform.cluster import (
    Member,
    NotEnoughResources,
    ReplicasKeepDying,
    Resources,
    Session,
    WorkStopped,
    patience,
    run_group,
)
from actlake.platform.cluster.process_group import LOSSES
from actlake.storage.errors import ActlakeError
from actlake.storage.processes import is_gone, this_process

pytestmark = pytest.mark.ray


class Refused(ActlakeError):
    """What a member raises in a test."""


def sum_of_ranks(member: Member) -> float:
    import torch
    from torch import distributed

    mine = torch.tensor([float(member.rank + 1)])
    distributed.all_reduce(mine)
    member.report({"rank": member.rank})
    return float(mine)


def alone(member: Member) -> tuple[int, bool]:
    from torch import distributed

    return member.rank, distributed.is_initialized()


def refuse(member: Member) -> float:
    if member.rank == 1:
        raise Refused("rank 1 has no rows")
    return sum_of_ranks(member)  # waits for rank 1, in vain


def die_once(folder: Path, member: Member) -> float:
    if member.rank == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return sum_of_ranks(member)


def wait_for_stop(member: Member) -> bool:
    member.report("up")
    return member.stop.wait(60)


def environment(member: Member) -> tuple[set[int], str, float, float]:
    import ray
    from threadpoolctl import threadpool_info

    has = ray.get_runtime_context().get_assigned_resources()
    threads = {pool["num_threads"] for pool in threadpool_info()}
    return threads, os.environ["CUDA_VISIBLE_DEVICES"], has["CPU"], has.get("memory", 0)


def note(folder: Path, member: Member) -> None:
    (folder / f"was-here-{member.rank}").touch()


def tell_pid_and_wait(member: Member) -> None:
    member.report(os.getpid())
    time.sleep(20)


def hang_once(folder: Path, member: Member) -> bool:
    member.report("up")
    if member.rank == 1 and not (folder / "hung").exists():
        (folder / "hung").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return True


def freeze_and_die_once(folder: Path, member: Member) -> list[int]:
    """Of the second group: ranks of the first one that still are there."""
    first = [folder / f"first-{rank}" for rank in range(member.size)]
    if first[member.rank].exists():
        return [rank for rank, file in enumerate(first) if not is_gone(json.loads(read(file)))]
    first[member.rank].write_text(json.dumps(this_process()))
    while not all(read(file) for file in first):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL if member.rank else signal.SIGSTOP)
    raise AssertionError("it goes on")


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def one_step_at_a_time(folder: Path, member: Member) -> int:
    """Comes one step further than the last attempt, and dies; more often than may be in a row."""
    step = len(list(folder.iterdir()))
    member.report(step)
    if step < LOSSES + 2:
        time.sleep(0.6)  # until the driver has heard
        (folder / f"step-{step}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step


def die_at_step_one(member: Member) -> None:
    member.report(1)
    time.sleep(0.6)
    os.kill(os.getpid(), signal.SIGKILL)


def occupy(cluster: Session, *, cpus: float) -> object:
    """Take CPUs away from everybody else."""
    place = placement_group([{"CPU": cpus}])
    assert place.wait(20)
    return place


def test_members_sum_over_all_and_results_come_by_rank(ray_session: Session) -> None:
    news: dict[int, dict[str, int]] = {}

    results = run_group(ray_session, sum_of_ranks, workers=2, on_report=news.__setitem__)

    assert results == [3.0, 3.0]
    assert news == {0: {"rank": 0}, 1: {"rank": 1}}


def test_a_lost_member_makes_all_begin_again(ray_session: Session, tmp_path: Path) -> None:
    results = run_group(ray_session, partial(die_once, tmp_path), workers=2)

    assert results == [3.0, 3.0]
    assert (tmp_path / "died").exists()


def test_what_a_member_raises_ends_all_at_once_and_arrives_as_itself(
    ray_session: Session,
) -> None:
    began = time.monotonic()

    with pytest.raises(Refused, match="rank 1 has no rows"):
        run_group(ray_session, refuse, workers=2)

    assert time.monotonic() - began < 60  # and not the half hour that rank 0 would wait


def test_a_stop_in_mid_run_reaches_every_member(ray_session: Session, tmp_path: Path) -> None:
    up: set[int] = set()

    def stop_when_all_work(rank: int, news: object) -> None:
        up.add(rank)
        if len(up) == 2:
            ray_session.stop.set()

    stopped = run_group(
        ray_session, wait_for_stop, workers=2, joined=False, on_report=stop_when_all_work
    )

    assert stopped == [True, True]


def test_a_stop_before_the_start_starts_nothing(ray_session: Session, tmp_path: Path) -> None:
    ray_session.stop.set()

    with pytest.raises(WorkStopped, match="the same command goes on"):
        run_group(ray_session, partial(note, tmp_path), workers=2)

    assert not list(tmp_path.iterdir())


def test_a_busy_cluster_is_waited_for_and_that_is_said(
    ray_session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "SPEAK_EVERY_S", 0.3)
    place = occupy(ray_session, cpus=4)
    threading.Timer(2.0, remove_placement_group, [place]).start()

    with caplog.at_level("WARNING", logger="actlake"):
        results = run_group(ray_session, alone, workers=2, joined=False)

    assert results == [(0, False), (1, False)]
    assert "The group of 2 worker(s) waits for a place, " in caplog.text
    assert "asked: 2 x (1 CPU), free: 0 CPU" in caplog.text


def test_a_stop_ends_the_wait_for_a_busy_cluster(ray_session: Session) -> None:
    place = occupy(ray_session, cpus=4)
    threading.Timer(0.5, ray_session.stop.set).start()
    began = time.monotonic()

    with pytest.raises(WorkStopped):
        run_group(ray_session, alone, workers=2, joined=False)

    assert time.monotonic() - began < 5
    remove_placement_group(place)


def test_a_group_whose_nodes_are_gone_does_not_wait_for_ever(
    ray_session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The only node that could hold it goes while it works."""
    small = [Resources(cpus=1)]

    def lose_the_node(rank: int, news: object) -> None:
        monkeypatch.setattr(Session, "nodes", lambda session: small)
        place.append(placement_group([{"CPU": 4}]))  # it is next in the queue
        os.kill(int(str(news)), signal.SIGKILL)

    place: list[object] = []
    with pytest.raises(NotEnoughResources, match="room for 1"):
        run_group(
            ray_session, tell_pid_and_wait, workers=2, joined=False, start_timeout_s=15.0,
            on_report=lambda rank, news: None if place else lose_the_node(rank, news),
        )  # fmt: skip

    remove_placement_group(place[0])


def test_a_worker_that_hangs_is_replaced(ray_session: Session, tmp_path: Path) -> None:
    results = run_group(
        ray_session, partial(hang_once, tmp_path), workers=2, joined=False, hang_timeout_s=4.0
    )

    assert results == [True, True]
    assert (tmp_path / "hung").exists()


def test_a_group_never_runs_beside_its_predecessor(ray_session: Session, tmp_path: Path) -> None:
    """Rank 0 is frozen, and so cannot end itself when it is asked to; rank 1 dies."""
    results = run_group(
        ray_session, partial(freeze_and_die_once, tmp_path), workers=2, joined=False
    )

    assert results == [[], []]
    assert all((tmp_path / f"first-{rank}").exists() for rank in (0, 1))


def test_losses_are_counted_from_the_last_progress(ray_session: Session, tmp_path: Path) -> None:
    work = partial(one_step_at_a_time, tmp_path)

    results = run_group(ray_session, work, workers=1, progress=float)

    assert results == [LOSSES + 2]


def test_a_group_that_makes_no_progress_is_given_up(ray_session: Session) -> None:
    with pytest.raises(ReplicasKeepDying, match=f"{LOSSES + 1} times in a row"):
        run_group(ray_session, die_at_step_one, workers=1, progress=float)


def test_members_that_need_not_talk_are_not_joined(ray_session: Session) -> None:
    assert run_group(ray_session, alone, workers=2, joined=False) == [(0, False), (1, False)]


def test_a_member_has_the_threads_memory_and_gpus_that_it_reserves(ray_session: Session) -> None:
    reserved = Resources(cpus=2, memory_mb=64)

    seen = run_group(ray_session, environment, workers=1, threads=3, resources=reserved)

    assert seen == [({3}, "", 2.0, 64 * 2.0**20)]


def test_a_group_that_can_never_be_placed_is_refused(ray_session: Session) -> None:
    with pytest.raises(NotEnoughResources, match="do not fit"):
        run_group(ray_session, alone, workers=99)
