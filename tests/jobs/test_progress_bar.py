"""Progress as lines of a log, where there is no terminal."""

import logging

import pytest
from rich.console import Console

from actlake.jobs import progress_bar
from actlake.jobs.progress_bar import progress


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_log_has_a_line_every_ten_seconds_with_speed_and_time_to_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    caplog.set_level(logging.INFO, logger="actlake")

    with progress(
        Console(quiet=True), "rows", 10_000, done=2_000, words=lambda: "all is well"
    ) as advance:
        for _ in range(12):
            clock.now += 2.0
            advance(100)

    assert [record.getMessage() for record in caplog.records] == [
        "2,500 of 10,000 rows, 50/s, all is well, 2:30 to go",
        "3,000 of 10,000 rows, 50/s, all is well, 2:20 to go",
    ]


def test_slow_things_have_a_speed_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    caplog.set_level(logging.INFO, logger="actlake")

    with progress(Console(quiet=True), "sites", 3) as advance:
        clock.now += 60
        advance(1)

    assert caplog.messages == ["1 of 3 sites, 0.017/s, 2:00 to go"]
