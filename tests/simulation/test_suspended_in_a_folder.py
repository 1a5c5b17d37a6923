"""Every place at which a process in a folder can be suspended, and another one take over."""

import pytest
from simulation.exploration import check_all
from simulation.scenarios import ALL
from simulation.schedules import Act

SCENARIOS = [name for name in ALL if name.endswith("-folder")]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_process_that_is_suspended_anywhere_breaks_no_promise(name, stage):
    assert check_all(stage, ALL[name], Act.SUSPEND) > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["two-merge-folder", "rows-lost-folder"])
def test_processes_that_are_suspended_twice_anywhere_break_no_promise(name, stage):
    assert check_all(stage, ALL[name], Act.SUSPEND, decisions=2) > 100
