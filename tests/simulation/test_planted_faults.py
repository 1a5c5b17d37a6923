"""Faults that a driver could really have are planted, and the simulation finds each."""

import logging

import pytest
from simulation import system
from simulation.exploration import all_schedules, player
from simulation.scenarios import ALL
from simulation.schedules import Act
from simulation.seams import Seams
from simulation.stage import Stage

from actlake.storage import durable
from actlake.storage.fence import FolderWriter
from actlake.storage.ledger import LedgerWriter
from actlake.storage.object_store import S3Folder
from actlake.storage.object_writer import BucketWriter


@pytest.fixture
def begin(monkeypatch, caplog):
    """Make what a scenario begins with, and what it may end in, while no fault is planted yet."""

    def begin(scenario):
        caplog.set_level(logging.ERROR, logger="actlake")
        stage = Stage(Seams())  # one of its own: it remembers how stores end
        stage.seams.install(monkeypatch)
        stage.begun(scenario.name, scenario.flavour, scenario.begin)
        for recipe in scenario.recipes:
            stage.truth(scenario.flavour, recipe)
        return stage

    return begin


def first_broken(stage, scenario, act, *, within):
    """The promises that the first schedule breaks which breaks any."""
    outcomes = all_schedules(player(stage, scenario), decisions=1, acts=[act])
    for runs, outcome in enumerate(outcomes, 1):
        if outcome.faults:
            assert runs <= within
            return "\n".join(outcome.faults)
    raise AssertionError(f"{runs} schedules, and no promise is broken")


def test_files_that_are_not_synced_are_missed_when_the_power_is_cut(begin, monkeypatch):
    class WithoutSync(system.SimulatedOs):
        @staticmethod
        def fsync(handle):
            if system.is_folder(handle):
                system.SimulatedOs.fsync(handle)

    scenario = ALL["two-go-on-folder"]
    stage = begin(scenario)
    monkeypatch.setattr(durable, "os", WithoutSync)

    broken = first_broken(stage, scenario, Act.POWER_LOSS, within=20)

    assert "the command, given again, ends with StoreDamaged" in broken


def test_a_unit_that_is_committed_before_it_is_written_is_missed_by_a_reader(begin, monkeypatch):
    waiting = []
    write, commit = FolderWriter.ensure_all, LedgerWriter.commit

    def write_later(writer, files):
        waiting.append((writer, [(key, list(parts)) for key, parts in files]))

    def commit_first(ledger, shards):
        commit(ledger, shards)
        while waiting:
            write(*waiting.pop())

    scenario = ALL["two-go-on-folder"]
    stage = begin(scenario)
    monkeypatch.setattr(FolderWriter, "ensure_all", write_later)
    monkeypatch.setattr(LedgerWriter, "commit", commit_first)

    broken = first_broken(stage, scenario, Act.SUSPEND, within=150)

    assert "R is told of damage where there is none" in broken


def test_a_driver_that_does_not_end_earlier_ones_has_its_rows_taken_away(begin, monkeypatch):
    scenario = ALL["two-go-on-folder"]
    stage = begin(scenario)
    monkeypatch.setattr(FolderWriter, "fence", lambda writer: None)

    broken = first_broken(stage, scenario, Act.SUSPEND, within=50)

    assert "A deleted rows.zarr/acts/resid_post.0/c.1.0 although units are committed" in broken


def test_an_object_that_is_put_over_another_falsifies_a_finished_store(begin, monkeypatch):
    def put(place, key, data):
        place.write(key, [data])
        return place.tag(key)

    scenario = ALL["two-corpora-bucket"]
    stage = begin(scenario)
    monkeypatch.setattr(S3Folder, "create", put)

    broken = first_broken(stage, scenario, Act.SUSPEND, within=50)

    assert "A changed rows.zarr/tokens/id/c.0 although units are committed" in broken


def test_metadata_that_is_replaced_whatever_it_is_by_then_is_that_of_an_earlier_store(
    begin, monkeypatch
):
    replace = BucketWriter.replace

    def careless(writer, key, parts, *, seen=None):
        return replace(writer, key, parts)

    scenario = ALL["two-append-others-bucket"]
    stage = begin(scenario)
    monkeypatch.setattr(BucketWriter, "replace", careless)

    broken = first_broken(stage, scenario, Act.SUSPEND, within=150)

    assert "A changed rows.zarr/" in broken
    assert "zarr.json although units are committed" in broken
