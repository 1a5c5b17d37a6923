"""A command that sleeps past its lease, loses its manifest or its export's rows: the store is the
one of an undisturbed run to the byte, or the command is refused; nothing in between.

With the real lease of 30 s and the real command line.
"""

import shutil
import time

import psutil
import pytest

from actlake.storage import Site, open_store, verify
from actlake.storage.errors import StoreNotFound
from actlake.storage.ledger import read_state
from actlake.storage.location import locate

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
SITE = Site(9)


def family(driver):
    first = psutil.Process(driver.process.pid)
    return [first, *first.children(recursive=True)]


def signal_all(processes, name):
    for process in processes:
        try:
            getattr(process, name)()
        except psutil.NoSuchProcess:
            continue


def committed(folder):
    try:
        store = open_store(folder)
    except StoreNotFound:
        return 0
    return len(store.committed()) if store.sites else 0


def is_laying_out(folder):
    if not (folder / "rows.zarr/tokens").is_dir():
        return False
    assert not read_state(locate(folder)).corpora, "it was laid out before it could be suspended"
    return True


def is_writing(folder):
    return committed(folder) >= 3


@pytest.mark.parametrize("moment", [is_laying_out, is_writing])
def test_a_harvest_that_sleeps_while_another_takes_over_changes_nothing_when_it_wakes_up(
    moment, tmp_path, start, actlake, harvest_arguments, smollm2_store, tree
):
    folder = tmp_path / "store"
    sleeper = start(*harvest_arguments(folder))
    deadline = time.monotonic() + 240
    while not moment(folder):
        assert time.monotonic() < deadline, "the moment did not come"
    asleep = family(sleeper)
    signal_all(asleep, "suspend")
    try:
        status, out = actlake(*harvest_arguments(folder))
        assert status == 0, out
        assert tree(folder) == tree(smollm2_store)
    finally:
        signal_all(reversed(asleep), "resume")
    out = sleeper.wait()

    assert sleeper.process.returncode not in (0, None), out
    assert tree(folder) == tree(smollm2_store), out
    assert verify(open_store(folder)).is_whole
    if moment is is_laying_out:
        assert "another driver has taken it over" in " ".join(out.split())


@pytest.mark.parametrize("deed", ["harvest", "export"])
def test_a_store_whose_manifest_is_lost_is_gone_on_with_and_loses_nothing(
    deed, tmp_path, actlake, harvest_arguments, smollm2_store, tree
):
    folder = tmp_path / "store"
    shutil.copytree(smollm2_store, folder)
    whole = tree(folder)
    (folder / "store.json").unlink()

    if deed == "harvest":
        status, out = actlake(*harvest_arguments(folder))
        assert status == 0, out
    else:  # of another store into this folder: refused
        status, out = actlake("export", str(smollm2_store), str(folder), "--splits", "train")
        assert status == 1, out
        assert "is another than was asked for" in " ".join(out.split())

    assert "is made again from the ledger" in " ".join(out.split())
    assert tree(folder) == whole


def test_an_export_with_damaged_rows_is_repaired_or_left_as_it_is(
    tmp_path, actlake, smollm2_store, tree
):
    parent, folder = tmp_path / "parent", tmp_path / "export"
    shutil.copytree(smollm2_store, parent)
    status, out = actlake("export", str(parent), str(folder), "--splits", "train")
    assert status == 0, out
    whole = tree(folder)
    rows = next((folder / "rows.zarr/acts" / str(SITE)).glob("c.*"))
    data = bytearray(rows.read_bytes())
    data[100] ^= 1
    rows.write_bytes(data)
    damaged = tree(folder)
    parent.rename(tmp_path / "moved")

    status, out = actlake("verify", str(folder), "--repair")
    assert status == 1, out
    assert tree(folder) == damaged

    status, out = actlake("verify", str(folder), "--repair", "--parent", str(tmp_path / "moved"))
    assert status == 0, out
    assert tree(folder) == whole
