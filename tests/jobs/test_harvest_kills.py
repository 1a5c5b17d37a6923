"""Kill anything at any time, run the same command again: the store is the same to the byte."""

import random
import re
import signal
import time
from functools import partial

import psutil
import pytest

from actlake.storage import open_store, verify
from actlake.storage.store import StoreNotFound

pytestmark = pytest.mark.ray
UNITS = 24


def committed(store):
    """Units that are committed for all sites."""
    try:
        opened = open_store(store)
    except StoreNotFound:
        return 0
    return len(opened.committed()) if opened.sites else 0


def grown(store, before):
    return committed(store) > before


@pytest.fixture
def killed_and_resumed(tmp_path, start, wait_for, harvest_arguments):
    """Run a harvest through `actor_kills` and `driver_kills`, each in the middle of a unit."""

    def run(*, actor_kills, driver_kills, seed=0, extra=()):
        rng = random.Random(seed)
        store = tmp_path / "store"
        interrupted = 0
        for _ in range(driver_kills):
            before = committed(store)
            driver = start(*harvest_arguments(store), *extra)
            wait_for(partial(grown, store, before), "no unit was committed")
            time.sleep(rng.uniform(0, 0.3))
            at_kill = committed(store)
            driver.kill()
            driver.process.communicate()
            interrupted += committed(store) == at_kill < UNITS
        driver = start(*harvest_arguments(store), *extra)
        for _ in range(actor_kills):
            before = committed(store)
            wait_for(partial(grown, store, before), "no unit was committed")
            wait_for(driver.actors, "no actor is alive")
            time.sleep(rng.uniform(0, 0.1))
            driver.actors()[0].kill()
        out = driver.wait()
        assert driver.process.returncode == 0, out
        interrupted += len(re.findall(r"^.*Unit requeued", out, re.MULTILINE))
        return store, interrupted, out

    return run


def test_actors_and_drivers_killed_inside_units_leave_the_same_bytes(
    killed_and_resumed, smollm2_store, tree
):
    store, interrupted, out = killed_and_resumed(actor_kills=3, driver_kills=2)

    assert interrupted >= 3, out
    assert tree(store) == tree(smollm2_store)
    assert verify(open_store(store)).is_whole


def test_a_harvest_asked_to_stop_ends_cleanly_and_goes_on_later(
    tmp_path, start, wait_for, harvest_arguments, smollm2_store, tree
):
    store = tmp_path / "store"
    driver = start(*harvest_arguments(store))
    wait_for(lambda: committed(store) > 0, "no unit was committed")

    driver.process.send_signal(signal.SIGTERM)
    out = driver.wait()

    assert driver.process.returncode == 143, out
    assert "the same command goes on from here" in out
    assert 0 < committed(store) < UNITS
    assert verify(open_store(store)).is_whole
    again = start(*harvest_arguments(store))
    out = again.wait()
    assert again.process.returncode == 0, out
    assert tree(store) == tree(smollm2_store)


def test_a_second_harvest_on_one_store_is_refused(
    tmp_path, start, actlake, wait_for, harvest_arguments
):
    store = tmp_path / "store"
    first = start(*harvest_arguments(store))
    wait_for(lambda: committed(store) > 0, "no unit was committed")
    actors = first.actors()
    for actor in actors:
        actor.suspend()  # the first cannot finish; its driver is alive and well
    try:
        status, out = actlake(*harvest_arguments(store))
    finally:
        first.kill()
        first.process.communicate()

    assert status == 1
    assert f"Another driver is writing to {store}: process {first.process.pid}" in out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_leave_the_same_bytes(killed_and_resumed, smollm2_store, tree):
    interrupted = 0
    for seed in range(4):
        store, count, out = killed_and_resumed(actor_kills=3, driver_kills=2, seed=seed)
        interrupted += count
        assert tree(store) == tree(smollm2_store), out
        for path in sorted(store.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    assert interrupted >= 12


def test_nothing_is_left_running(smollm2_store):
    mine = psutil.Process().children(recursive=True)

    alive = [p for p in mine if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in alive if "harvest" in " ".join(p.cmdline())]
