"""Which worker keeps the others back, and how it is told."""

from actlake.jobs.sae.means import EXCHANGING, SPEED, WAITING
from actlake.jobs.sae.speeds import Speeds


def heard(*news: tuple[float, float, float], share: bool) -> Speeds:
    speeds = Speeds(share=share)
    for rank, (rows, waiting, exchanging) in enumerate(news):
        speeds.hear(rank, {"step": 5, SPEED: rows, WAITING: waiting, EXCHANGING: exchanging})
    return speeds


def test_of_workers_that_share_rows_the_slowest_is_the_one_that_waits_least_for_the_others() -> (
    None
):
    speeds = heard((1000, 0.02, 0.45), (1000, 0.4, 0.05), (1000, 0.02, 0.44), share=True)

    assert speeds.slowest == 1
    assert str(speeds) == (
        "1,000 rows/s, waiting for rows rank 0: 2%, rank 1: 40%, rank 2: 2%; rank 1 is the slowest"
    )


def test_of_workers_with_saes_of_their_own_the_slowest_has_the_fewest_rows() -> None:
    speeds = heard((1000, 0.1, 0), (600, 0.1, 0), share=False)

    assert speeds.slowest == 1
    assert str(speeds).startswith("1,600 rows/s")


def test_nobody_is_the_slowest_among_equals() -> None:
    assert heard((1000, 0.1, 0.20), (1000, 0.1, 0.22), share=True).slowest is None
    assert heard((1000, 0.1, 0), (990, 0.1, 0), share=False).slowest is None
    assert heard((1000, 0.1, 0), share=True).slowest is None


def test_news_without_a_speed_change_nothing() -> None:
    speeds = heard((1000, 0.1, 0), share=True)

    speeds.hear(0, {"step": 6})

    assert str(speeds) == "1,000 rows/s, waiting for rows 10%"
    assert str(Speeds(share=True)) == ""
