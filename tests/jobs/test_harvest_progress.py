"""What is shown of a harvest, and that showing it never ends it."""

import io
import json
import logging

import pytest
from rich.console import Console

from actlake.jobs.harvest.metering import ORDER, StageUse
from actlake.jobs.harvest.progress import HarvestProgress, Tally
from actlake.jobs.harvest.worker import UnitReceipt
from actlake.storage.location import LocalFolder


def tally() -> Tally:
    return Tally(total_rows=10_000, total_units=100, rows_before=0, units_before=0)


def progress(folder, tally, **options):
    return HarvestProgress(
        tally, LocalFolder(folder), console=Console(file=io.StringIO()), **options
    )


def receipt() -> UnitReceipt:
    use = StageUse(dict.fromkeys(ORDER, 1.0), cpu_s=1.0, memory_bytes=2**20)
    return UnitReceipt(
        records=[], num_bytes=10, num_tokens=100, compute_s=1.0, write_s=0.1, norms={},
        numerics={}, use=use,
    )  # fmt: skip


def test_a_status_that_cannot_be_written_is_logged_once_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "log").write_text("a file where a folder should be")
    shown = progress(tmp_path, tally())

    with caplog.at_level(logging.WARNING), shown.showing():
        shown.update()

    (record,) = caplog.records
    assert "log/status.json cannot be written" in record.getMessage()


def test_an_error_is_not_hidden_by_a_status_that_cannot_be_written(tmp_path):
    (tmp_path / "log").write_text("a file where a folder should be")

    with pytest.raises(ZeroDivisionError), progress(tmp_path, tally()).showing():
        _ = 1 / 0


def test_actors_are_logged_one_by_one_at_the_end_and_not_for_every_unit(tmp_path):
    counted, seen = tally(), []
    shown = progress(tmp_path, counted, gauges=seen.append)

    with shown.showing():
        counted.count(100, [receipt()], replica=3)
        shown.update()
        each = shown.numbers()
    last = shown.numbers()

    assert each["harvest/units"] == 1
    assert not [name for name in each if "replica_" in name]
    assert last["harvest/replica_3/tokens_per_s"] > 0
    assert last.keys() == seen[-1].keys()
    status = json.loads((tmp_path / "log" / "status.json").read_text())
    assert status["running"] is False
    assert [row["replica"] for row in status["actors"]] == [3]


def test_nothing_is_kept_of_replicas_that_are_gone(tmp_path):
    counted = tally()
    for replica in range(50):
        counted.count(100, [receipt()], replica=replica)
        counted.actors.gone(replica)

    assert counted.actors.rates() == {}
    assert "replica" not in str(counted)
