"""Processes that work on one thing together: they sum, they fail and begin again as one."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from actlake.platform.cluster import Member, NotEnoughResources, Session, run_group
from actlake.storage.errors import ActlakeError

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


def wait_for_stop(folder: Path, member: Member) -> bool:
    (folder / f"up-{member.rank}").touch()
    return member.stop.wait(60)


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


def test_a_stop_reaches_every_member(ray_session: Session, tmp_path: Path) -> None:
    def both_are_up(rank: int, news: object) -> None:
        raise AssertionError("nothing is reported")

    ray_session.stop.set()

    stopped = run_group(
        ray_session, partial(wait_for_stop, tmp_path), workers=2, joined=False,
        on_report=both_are_up,
    )  # fmt: skip

    assert stopped == [True, True]


def test_members_that_need_not_talk_are_not_joined(ray_session: Session) -> None:
    assert run_group(ray_session, alone, workers=2, joined=False) == [(0, False), (1, False)]


def test_a_group_that_can_never_be_placed_is_refused(ray_session: Session) -> None:
    with pytest.raises(NotEnoughResources, match="do not fit"):
        run_group(ray_session, alone, workers=99)
