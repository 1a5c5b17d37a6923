import logging

import pytest
from simulation.seams import Seams
from simulation.stage import Stage

from actlake.storage import moments_file


@pytest.fixture(scope="session")
def whole_stage():
    """What all scenes share, for a whole session: undisturbed stores are made once."""
    return Stage(Seams())


@pytest.fixture
def stage(whole_stage, monkeypatch, caplog):
    """A stage on which the product runs on simulated storage, clocks and processes."""
    caplog.set_level(logging.ERROR, logger="actlake")  # thousands of takeovers are no news
    monkeypatch.setattr(moments_file, "FAN_OUT", 2)  # stores are small, and have totals too
    whole_stage.seams.install(monkeypatch)
    return whole_stage
