"""Every place at which a process can die, the power be cut, or a call fail."""

import pytest
from simulation.exploration import check_all
from simulation.scenarios import ALL
from simulation.schedules import Act

LONG = (
    "two-begin", "two-corpora", "late-worker", "read-while-filled", "export-folder", "two-append",
    "append-and", "append-to",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name.startswith(LONG) else name for name in ALL],
)
def test_a_process_that_dies_anywhere_or_power_that_is_cut_breaks_no_promise(name, stage):
    assert check_all(stage, ALL[name], Act.CRASH, Act.POWER_LOSS) > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ALL)
def test_a_call_that_fails_anywhere_done_or_not_breaks_no_promise(name, stage):
    assert check_all(stage, ALL[name], Act.FAIL, Act.LOSE_ANSWER, Act.POWER_LOSS_SOME) > 5
