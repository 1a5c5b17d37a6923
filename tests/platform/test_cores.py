"""Cores that a process may use are what a container leaves it, for plans as for the doctor."""

import os
from pathlib import Path

import pytest

from actlake.jobs.doctor import machine
from actlake.platform import cores
from actlake.platform.cluster import worker_plan


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def system(root: Path, files: dict[str, str], group: str = "0::/\n") -> Path:
    """A system whose ``/proc`` and ``/sys`` say this."""
    for name, content in {"proc/self/cgroup": group, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


OLD = "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"
SYSTEMS = {
    "no quota": ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, "0::/\n", 8),
    "a container's": ({"sys/fs/cgroup/cpu.max": "300000 100000\n"}, "0::/\n", 3),
    "two and a half": ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, "0::/\n", 2),
    "less than one": ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, "0::/\n", 1),
    "more than there are": ({"sys/fs/cgroup/cpu.max": "9000000 100000\n"}, "0::/\n", 8),
    "of a slice above": (
        {
            "sys/fs/cgroup/user.slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
        },
        "0::/user.slice/job\n",
        2,
    ),
    "a path of outside the container": (
        {"sys/fs/cgroup/cpu.max": "400000 100000\n"},
        "0::/kubepods/pod1/abc\n",
        4,
    ),
    "version 1": (
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "500000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        OLD,
        5,
    ),
    "version 1 without a quota": (
        {
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        OLD,
        8,
    ),
    "no control groups at all": ({}, "", 8),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_quota_of_every_group_counts(name, tmp_path, eight_cores):
    files, group, usable = SYSTEMS[name]

    assert cores.usable_cores(root=system(tmp_path, files, group)) == usable


def test_plans_threads_and_the_doctor_count_alike(monkeypatch, tmp_path, eight_cores):
    contained = system(tmp_path, {"sys/fs/cgroup/cpu.max": "300000 100000\n"})
    counted = cores.usable_cores(root=contained)
    for module in (machine, worker_plan):
        monkeypatch.setattr(module, "usable_cores", lambda: counted)

    assert worker_plan.threads_here(None, 1) == 3
    assert worker_plan.threads_here(None, 2) == 1
    (finding,) = machine.check_threads()
    assert finding.says.startswith("3 of ")


def test_nothing_else_counts_cores():
    """One rule has one owner."""
    packages = [Path(__file__).parents[2] / name for name in ("storage", "platform", "jobs")]
    counting = [
        path.name
        for package in packages
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ("os.cpu_count", "sched_getaffinity"))
    ]

    assert sorted(counting) == ["cores.py", "machine.py"]  # the latter says how many there are
