"""The disk in memory answers as the file system of this machine does; what power loss leaves."""

import os
import random
from pathlib import Path

import pytest
from simulation.disk import Disk
from simulation.system import SimulatedOs, SimulatedPath

NAMES = ["a", "b", "d", "d/a", "d/b", "e", "e/d", "e/d/a"]


def disk_with_folder():
    disk = Disk()
    root = SimulatedPath(disk, "/root")
    root.mkdir()
    handle = SimulatedOs.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
    SimulatedOs.fsync(handle)
    SimulatedOs.close(handle)
    return disk, root


def do(system, root, deed, name, other, data):
    """What comes of a call: its answer, or the number of its error."""
    path, to = root / name, root / other
    try:
        if deed == "write":
            with path.open("xb", buffering=0) as file:
                system.write(file.fileno(), data)
                system.fsync(file.fileno())
            return None
        if deed == "sync":
            handle = system.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return system.fsync(handle)
            finally:
                system.close(handle)
        answers = {
            "read": lambda: path.read_bytes(),
            "size": lambda: path.stat().st_size if path.is_file() else path.stat() and None,
            "links": lambda: path.stat().st_nlink if path.is_file() else None,
            "exists": lambda: (path.exists(), path.is_file(), path.is_dir()),
            "names": lambda: sorted(child.name for child in path.iterdir()),
            "mkdir": lambda: path.mkdir(),
            "mkdir again": lambda: path.mkdir(exist_ok=True),
            "rmdir": lambda: path.rmdir(),
            "unlink": lambda: path.unlink(),
            "unlink any": lambda: path.unlink(missing_ok=True),
            "link": lambda: system.link(path, to),
            "rename": lambda: path.rename(to) and None,
            "replace": lambda: path.replace(to) and None,
        }
        return answers[deed]()
    except OSError as error:
        return error.errno


DEEDS = ["write"] * 4 + ["mkdir"] * 4 + [
    "read", "size", "links", "exists", "names", "mkdir again", "rmdir", "unlink", "unlink any",
    "link", "link", "rename", "rename", "replace", "sync",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_any_calls_are_answered_as_by_a_real_file_system(seed, tmp_path):
    draw = random.Random(seed)
    disk, root = disk_with_folder()
    for number in range(150):
        deed, name, other = draw.choice(DEEDS), draw.choice(NAMES), draw.choice(NAMES)
        if (
            deed in ("rename", "replace")
            and name != other
            and (f"{other}/".startswith(f"{name}/") or f"{name}/".startswith(f"{other}/"))
        ):
            continue  # into what lies in it, or over what it lies in: systems differ in the error
        data = bytes([number])

        real = do(os, tmp_path, deed, name, other, data)
        simulated = do(SimulatedOs, root, deed, name, other, data)

        assert simulated == real, f"{number}: {deed} {name} {other}"
    assert disk.contents("/root") == {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in Path(tmp_path).rglob("*")
        if path.is_file()
    }


def test_a_power_loss_leaves_synced_files_of_synced_names_and_nothing_else():
    disk, root = disk_with_folder()
    for name in ("both", "file", "name", "neither"):
        with (root / name).open("xb", buffering=0) as file:
            SimulatedOs.write(file.fileno(), b"data")
            if name in ("both", "file"):
                SimulatedOs.fsync(file.fileno())
        if name == "name":
            do(SimulatedOs, root, "sync", "", "", b"")
            (root / "both").rename(root / "moved")

    disk.lose_power()

    assert disk.contents("/root") == {"both": b"data", "file": b"data", "name": b""}


def test_a_file_that_is_open_is_written_wherever_its_name_has_gone():
    disk, root = disk_with_folder()
    (root / "d").mkdir()
    with (root / "d" / "a").open("xb", buffering=0) as file:
        (root / "d").rename(root / "e")
        SimulatedOs.write(file.fileno(), b"late")

    assert disk.contents("/root") == {"e/a": b"late"}
