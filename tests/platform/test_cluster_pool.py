"""The pool on real Ray, with real deaths: processes are killed with SIGKILL."""

import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray import cloudpickle

from actlake.platform.cluster import (
    Gauges,
    NotEnoughResources,
    PoolEvent,
    ReplicasKeepDying,
    ReplicaSpec,
    ReplicaStartFailed,
    Resources,
    Send,
    Session,
    StageSpec,
    UnitTiming,
    WorkerFailed,
    run_chain,
    run_units,
)
from actlake.storage.errors import StoreMismatch, StoreNotWritable

pytestmark = pytest.mark.ray

# Workers run in processes that cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NUM_LAYERS = 3
NUM_BATCHES = 6


@dataclass(frozen=True)
class Mishap:
    """What goes wrong in the middle of one unit, in the stage with one layer."""

    kind: str
    unit: int | None
    """None is every unit."""
    layer: int = 0
    always: bool = False


class Layers:
    """Runs layers [first, stop) on the batches of a unit; writes one file a unit and layer."""

    def __init__(self, folder: Path, first: int, stop: int, mishap: Mishap | None = None) -> None:
        self.folder = folder
        self.layers = range(first, stop)
        self.mishap = mishap
        self.rows: dict[tuple[int, int], list[np.ndarray]] = {}
        self.note("pid", f"{os.getpid()}\n")

    def run(self, unit: int, send: Send | None) -> dict[str, int]:
        self.note("executed", f"{unit}\n")
        for batch in range(NUM_BATCHES):
            hidden = np.full((NUM_BATCHES, 5_000), unit * 0.1 + batch, dtype=np.float64)
            self.forward(unit, batch, hidden, send)
        return self.finish(unit)

    def receive(self, unit: int, message: tuple[int, np.ndarray], send: Send | None) -> None:
        batch, hidden = message
        self.forward(unit, batch, hidden.copy(), send)

    def forward(self, unit: int, batch: int, hidden: np.ndarray, send: Send | None) -> None:
        for layer in self.layers:
            rows = self.rows.setdefault((unit, layer), [])
            assert len(rows) == batch, "batches of a unit must arrive in order"
            hidden = np.sin(hidden) * 1.7 + layer
            rows.append(hidden)
            if batch == NUM_BATCHES // 2 and self.mishap:
                self.go_wrong(unit, layer, self.mishap)
        if send is not None:
            send((batch, hidden))

    def finish(self, unit: int) -> dict[str, int]:
        for layer in self.layers:
            path = self.folder / f"unit-{unit}-layer-{layer}.bin"
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(np.concatenate(self.rows.pop((unit, layer))).tobytes())
            part.rename(path)
        return {"first": self.layers.start, "pid": os.getpid()}

    def go_wrong(self, unit: int, layer: int, mishap: Mishap) -> None:
        if layer != mishap.layer or mishap.unit not in (unit, None):
            return
        if not mishap.always and (self.folder / "mishap").exists():
            return
        self.note("mishap", f"{os.getpid()}\n")
        match mishap.kind:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                time.sleep(60)
            case "pause":
                time.sleep(0.2)
            case "full disk":
                raise StoreNotWritable("No space left\nhint: make room")
            case "stubborn":
                raise Stubborn(1, 2)
            case "launch failure":
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            case "ECC":
                raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
            case "cuBLAS":
                raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling …")
            case "NCCL":
                raise torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:27")
            case "out of memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            case "cuBLAS out of memory":
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …")
            case "a bug":
                raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    def note(self, name: str, words: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(words)


class Stubborn(Exception):
    """An exception that cannot be rebuilt from its args."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def refuse() -> Layers:
    raise StoreNotWritable("Nothing can be written at /x\nhint: another place")


def refuse_second(folder: Path) -> Layers:
    """Works for everybody but the second who asks."""
    (folder / f"asked-{os.getpid()}").touch()
    if len(list(folder.glob("asked-*"))) == 2:
        return refuse()
    return Layers(folder, 0, NUM_LAYERS, Mishap("pause", unit=None, always=True))


def lacks_a_package() -> Layers:
    raise ModuleNotFoundError("No module named 'gptqmodel'")


def has_a_wrong_option() -> Layers:
    raise TypeError("unexpected keyword 'attn'")


def full_at_first(folder: Path) -> Layers:
    """Somebody else is on the device when the first worker comes."""
    worker = Layers(folder, 0, NUM_LAYERS)
    if len(pids(folder)) == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return worker


def die_at_start() -> Layers:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def replica(
    folder: Path, num_stages: int = 1, mishap: Mishap | None = None, **options: Any
) -> ReplicaSpec:
    bounds = [NUM_LAYERS * i // num_stages for i in range(num_stages + 1)]
    return ReplicaSpec(
        stages=tuple(
            StageSpec(
                make=Layers,
                kwargs={"folder": folder, "first": a, "stop": b, "mishap": mishap},
                resources=Resources(cpus=0.5),
            )
            for a, b in itertools.pairwise(bounds)
        ),
        **options,
    )


class Commits:
    """What the pool said."""

    def __init__(self) -> None:
        self.units: list[int] = []
        self.receipts: dict[int, list[dict[str, int]]] = {}
        self.timings: list[UnitTiming] = []
        self.events: list[PoolEvent] = []

    def done(self, unit: int, receipts: list[dict[str, int]], timing: UnitTiming) -> None:
        self.units.append(unit)
        self.receipts[unit] = receipts
        self.timings.append(timing)

    def kinds(self) -> Counter[str]:
        return Counter(event.kind for event in self.events)


@pytest.fixture
def commits() -> Commits:
    return Commits()


@pytest.fixture
def expected(tmp_path: Path) -> Callable[[Path, int], None]:
    """Compares a folder with what one process makes of the same units."""

    def compare(folder: Path, num_units: int) -> None:
        alone = tmp_path / "alone"
        alone.mkdir()
        worker = Layers(alone, 0, NUM_LAYERS)
        for unit in range(num_units):
            run_chain([worker], unit)
        assert contents(folder) == contents(alone)

    return compare


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where workers write; when the test is over, none of them may be running."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert_all_gone(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def pids(folder: Path) -> list[int]:
    noted = folder / "pid"
    return [int(line) for line in noted.read_text().split()] if noted.exists() else []


def assert_all_gone(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while running := [pid for pid in pids(folder) if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, f"still running: {running}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("num_replicas", "num_stages", "messages"), [(1, 1, 4), (2, 1, 4), (2, 2, 4), (1, 3, 1)]
)
def test_every_layout_commits_each_unit_once_and_writes_the_same_bytes(
    ray_session: Session,
    folder: Path,
    commits: Commits,
    expected: Callable[[Path, int], None],
    num_replicas: int,
    num_stages: int,
    messages: int,
) -> None:
    result = run_units(
        ray_session,
        iter(range(8)),
        replica(folder, num_stages, messages_in_flight=messages),
        replicas=num_replicas,
        in_flight=num_stages + 1,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert result.complete
    assert result.done == 8
    assert sorted(commits.units) == list(range(8))
    firsts = [NUM_LAYERS * i // num_stages for i in range(num_stages)]
    assert all([r["first"] for r in rs] == firsts for rs in commits.receipts.values())
    assert {timing.attempt for timing in commits.timings} == {1}
    assert commits.kinds()["replica_lost"] == 0
    expected(folder, 8)


@pytest.mark.parametrize(
    ("num_stages", "layer"), [(1, 0), (2, 2), pytest.param(3, 1, marks=pytest.mark.slow)]
)
def test_a_stage_killed_in_the_middle_of_a_unit_costs_nothing_but_time(
    ray_session: Session,
    folder: Path,
    commits: Commits,
    expected: Callable[[Path, int], None],
    num_stages: int,
    layer: int,
) -> None:
    spec = replica(folder, num_stages, Mishap("wait", unit=2, layer=layer))
    killer = threading.Thread(target=kill_who_waits, args=(folder,))
    killer.start()

    result = run_units(
        ray_session,
        range(5),
        spec,
        replicas=1,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    killer.join()
    assert result.complete
    assert sorted(commits.units) == [0, 1, 2, 3, 4]
    assert result.replicas_lost == 1
    assert result.requeued >= 1
    assert (folder / "executed").read_text().split().count("2") == 2
    lost = next(event for event in commits.events if event.kind == "replica_lost")
    assert "ActorDiedError" in lost.reason
    expected(folder, 5)


def kill_who_waits(folder: Path) -> None:
    """SIGKILL to the process that says it is in the middle of the unit."""
    noted = folder / "mishap"
    while not (noted.exists() and noted.read_text().endswith("\n")):
        time.sleep(0.02)
    os.kill(int(noted.read_text()), signal.SIGKILL)


def test_a_unit_that_kills_its_process_is_set_aside_and_the_others_are_done(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    result = run_units(
        ray_session,
        range(6),
        replica(folder, 1, Mishap("die", unit=1, always=True)),
        replicas=2,
        max_attempts=2,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert not result.complete
    assert sorted(commits.units) == [0, 2, 3, 4, 5]
    assert list(result.failed) == [1]
    assert len(result.failed[1]) == 2
    assert commits.kinds()["unit_failed"] == 1
    assert (folder / "executed").read_text().split().count("1") == 2


@pytest.mark.slow
def test_a_run_whose_every_unit_kills_its_process_gives_up(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    spec = replica(folder, 1, Mishap("die", unit=None, always=True))

    with pytest.raises(ReplicasKeepDying, match="not one unit was finished") as raised:
        run_units(ray_session, range(10**7), spec, replicas=1, max_attempts=1, on_done=commits.done)

    assert "hint: this is the machines" in str(raised.value)
    assert commits.units == []


@pytest.mark.parametrize(("num_stages", "layer"), [(1, 0), (3, 2)])
def test_an_error_of_ours_in_a_worker_arrives_as_itself_and_is_not_retried(
    ray_session: Session, folder: Path, commits: Commits, num_stages: int, layer: int
) -> None:
    spec = replica(folder, num_stages, Mishap("full disk", unit=1, layer=layer))

    with pytest.raises(StoreNotWritable) as raised:
        run_units(ray_session, range(4), spec, replicas=1, on_done=commits.done)

    assert str(raised.value) == "No space left\nhint: make room"
    assert type(raised.value) is StoreNotWritable
    assert "in go_wrong" in raised.value.__notes__[0]
    assert (folder / "executed").read_text().split().count("1") == 1


def test_an_exception_that_cannot_travel_arrives_with_its_words(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    spec = replica(folder, 1, Mishap("stubborn", unit=0))

    with pytest.raises(WorkerFailed, match="Stubborn: 1 and 2"):
        run_units(ray_session, range(2), spec, replicas=1, on_done=commits.done)


def test_an_error_of_ours_in_a_constructor_is_raised_at_once(
    ray_session: Session, commits: Commits
) -> None:
    spec = ReplicaSpec(stages=(StageSpec(make=refuse),))

    with pytest.raises(StoreNotWritable, match="hint: another place"):
        run_units(
            ray_session,
            range(2),
            spec,
            replicas=1,
            on_done=commits.done,
            on_event=commits.events.append,
        )

    assert commits.kinds() == {"replica_starting": 1}


def test_replicas_that_die_at_the_start_end_the_run_with_the_cause(
    ray_session: Session, commits: Commits
) -> None:
    spec = ReplicaSpec(stages=(StageSpec(make=die_at_start),))

    with pytest.raises(ReplicaStartFailed, match=r"3 times in a row") as raised:
        run_units(
            ray_session,
            range(2),
            spec,
            replicas=1,
            on_done=commits.done,
            on_event=commits.events.append,
        )

    assert "ActorDiedError" in str(raised.value)
    assert commits.kinds()["replica_lost"] == 3


@pytest.mark.parametrize(
    "kind",
    ["launch failure", "ECC", "cuBLAS", "NCCL", "out of memory", "cuBLAS out of memory"],
)
@pytest.mark.parametrize(("num_stages", "layer"), [(1, 0), (2, 2)])
def test_a_fault_of_a_device_costs_its_replica_and_no_unit(
    ray_session: Session,
    folder: Path,
    commits: Commits,
    expected: Callable[[Path, int], None],
    kind: str,
    num_stages: int,
    layer: int,
) -> None:
    result = run_units(
        ray_session,
        range(8),
        replica(folder, num_stages, Mishap(kind, unit=3, layer=layer)),
        replicas=2 // num_stages,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert result.complete
    assert sorted(commits.units) == list(range(8))
    assert result.replicas_lost == 1
    lost = next(event for event in commits.events if event.kind == "replica_lost")
    says = "Out of memory" if "memory" in kind else "The accelerator failed"
    assert lost.reason.startswith(says)
    assert "hint: is there enough memory" not in str(lost)
    expected(folder, 8)


def test_a_unit_that_breaks_every_device_is_set_aside_with_the_reason(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    result = run_units(
        ray_session,
        range(5),
        replica(folder, 1, Mishap("out of memory", unit=2, always=True)),
        replicas=2,
        max_attempts=2,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert sorted(commits.units) == [0, 1, 3, 4]
    assert list(result.failed) == [2]
    assert all("CUDA out of memory. Tried to allocate 2.00 GiB." in why for why in result.failed[2])
    assert commits.kinds()["node_avoided"] == 1  # the only node: it is used all the same


def test_a_device_that_fails_at_every_unit_ends_the_run_and_is_named(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    with pytest.raises(ReplicasKeepDying) as raised:
        run_units(
            ray_session,
            range(40),
            replica(folder, 1, Mishap("ECC", unit=None, always=True)),
            replicas=1,
            max_attempts=1,
            on_done=commits.done,
        )

    assert "uncorrectable ECC error encountered" in str(raised.value)
    assert str(raised.value).count("hint: ") == 1
    assert "nvidia-smi" in str(raised.value)


def test_an_error_that_is_no_fault_of_a_device_is_raised_and_not_retried(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    spec = replica(folder, 1, Mishap("a bug", unit=1, always=True))

    with pytest.raises(RuntimeError, match="The size of tensor a"):
        run_units(ray_session, range(4), spec, replicas=1, on_done=commits.done)

    assert (folder / "executed").read_text().split().count("1") == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lacks_a_package, "ModuleNotFoundError: No module named 'gptqmodel'"),
        (has_a_wrong_option, "TypeError: unexpected keyword 'attn'"),
    ],
)
def test_a_worker_that_can_never_be_made_is_tried_once_and_not_blamed_on_memory(
    ray_session: Session, commits: Commits, make: Callable[[], Layers], words: str
) -> None:
    with pytest.raises(WorkerFailed, match=words) as raised:
        run_units(
            ray_session,
            range(2),
            ReplicaSpec(stages=(StageSpec(make=make),)),
            replicas=1,
            on_done=commits.done,
            on_event=commits.events.append,
        )

    assert commits.kinds() == {"replica_starting": 1}
    assert "memory" not in str(raised.value)


def test_a_device_that_is_full_at_the_start_is_tried_again(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    stage = StageSpec(make=full_at_first, kwargs={"folder": folder})

    result = run_units(
        ray_session,
        range(3),
        ReplicaSpec(stages=(stage,)),
        replicas=1,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert result.complete
    assert commits.kinds()["replica_lost"] == 1


def test_a_unit_that_hangs_loses_its_replica_and_is_done_by_the_next(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    result = run_units(
        ray_session,
        range(4),
        replica(folder, 2, Mishap("wait", unit=1, layer=2)),
        replicas=1,
        unit_timeout_s=1.5,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert result.complete
    assert sorted(commits.units) == [0, 1, 2, 3]
    lost = next(event for event in commits.events if event.kind == "replica_lost")
    assert lost.reason == "no unit finished within 1.5 s"


@pytest.mark.parametrize("num_stages", [1, 2])
def test_time_that_a_commit_takes_is_not_held_against_replicas(
    ray_session: Session, folder: Path, commits: Commits, num_stages: int
) -> None:
    def slow(unit: int, receipts: list[Any], timing: UnitTiming) -> None:
        commits.done(unit, receipts, timing)
        time.sleep(2.0 if unit in (3, 4) else 0.0)

    result = run_units(
        ray_session,
        range(10),
        replica(folder, num_stages),
        replicas=2,
        unit_timeout_s=1.0,
        on_done=slow,
        on_event=commits.events.append,
    )

    assert result.complete
    assert result.replicas_lost == 0, commits.events
    assert sorted(commits.units) == list(range(10))


def test_a_replica_that_cannot_start_is_given_up_while_another_works(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    stage = StageSpec(make=refuse_second, kwargs={"folder": folder}, resources=Resources(cpus=0.5))

    result = run_units(
        ray_session,
        range(40),
        ReplicaSpec(stages=(stage,)),
        replicas=2,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert result.complete
    assert sorted(commits.units) == list(range(40))
    (why,) = result.given_up
    assert "Nothing can be written at /x" in why
    assert "given up, and its node avoided" in str(
        next(event for event in commits.events if event.kind == "replica_lost")
    )


def test_of_replicas_none_of_which_can_start_the_last_ones_error_ends_the_run(
    ray_session: Session, commits: Commits
) -> None:
    stage = StageSpec(make=refuse, resources=Resources(cpus=0.5))

    with pytest.raises(StoreNotWritable, match="Nothing can be written at /x"):
        run_units(
            ray_session,
            range(40),
            ReplicaSpec(stages=(stage,)),
            replicas=3,
            on_done=commits.done,
            on_event=commits.events.append,
        )

    assert commits.kinds()["replica_starting"] == 3
    assert not commits.units


def test_a_node_that_was_given_up_is_tried_again_when_nothing_else_is_left(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    stage = StageSpec(make=refuse_second, kwargs={"folder": folder}, resources=Resources(cpus=0.5))

    def kill_the_other(unit: int, receipts: list[dict[str, int]], timing: UnitTiming) -> None:
        commits.done(unit, receipts, timing)
        if commits.kinds()["replica_lost"] == 1:
            os.kill(receipts[0]["pid"], signal.SIGKILL)

    result = run_units(
        ray_session,
        range(40),
        ReplicaSpec(stages=(stage,)),
        replicas=2,
        on_done=kill_the_other,
        on_event=commits.events.append,
    )

    assert result.complete
    assert result.replicas_lost == 2
    assert len(result.given_up) == 1


def test_a_replica_whose_results_do_not_match_is_given_up_and_costs_no_unit_an_attempt(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    def same_process(unit: int, receipts: list[dict[str, int]], timing: UnitTiming) -> None:
        used = {receipts[0]["pid"] for receipts in commits.receipts.values()}
        if used and receipts[0]["pid"] not in used:
            raise StoreMismatch("other numerics")
        commits.done(unit, receipts, timing)

    result = run_units(
        ray_session,
        range(60),
        replica(folder, 1, Mishap("pause", unit=None, always=True)),
        replicas=2,
        max_attempts=1,
        on_done=same_process,
        on_event=commits.events.append,
    )

    assert result.complete
    assert sorted(commits.units) == list(range(60))
    assert len(result.given_up) == 1
    assert "other numerics" in result.given_up[0]


def test_a_mismatch_of_the_only_replica_ends_the_run(ray_session: Session, folder: Path) -> None:
    def refuse(unit: int, receipts: list[Any], timing: UnitTiming) -> None:
        raise StoreMismatch("other numerics")

    with pytest.raises(StoreMismatch, match="other numerics"):
        run_units(ray_session, range(5), replica(folder), replicas=1, on_done=refuse)


def test_a_commit_that_raises_ends_the_run_and_leaves_nothing_running(
    ray_session: Session, folder: Path
) -> None:
    def full(unit: int, receipts: list[Any], timing: UnitTiming) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_units(ray_session, range(50), replica(folder, 2), replicas=2, on_done=full)

    assert len(pids(folder)) >= 2  # the second replica may not have got so far
    assert_all_gone(folder)
    deadline = time.monotonic() + 10
    while (free := ray_session.free().cpus) != 4:
        assert time.monotonic() < deadline, f"only {free} CPUs are free"
        time.sleep(0.05)


def test_a_stop_finishes_what_is_in_flight_and_hands_out_no_more(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    def stop_at_third(unit: int, receipts: list[Any], timing: UnitTiming) -> None:
        commits.done(unit, receipts, timing)
        if len(commits.units) == 3:
            ray_session.stop.set()

    result = run_units(
        ray_session, range(10**7), replica(folder), replicas=1, on_done=stop_at_third
    )

    assert result.stopped
    assert not result.complete
    executed = {int(unit) for unit in (folder / "executed").read_text().split()}
    assert executed == set(commits.units)
    assert len(executed) in (3, 4)


def test_a_stop_waits_no_longer_than_it_may(
    ray_session: Session, folder: Path, commits: Commits
) -> None:
    spec = replica(folder, 1, Mishap("wait", unit=0))
    waiting = threading.Thread(target=stop_when_waiting, args=(folder, ray_session))
    waiting.start()
    began = time.monotonic()

    result = run_units(
        ray_session, range(3), spec, replicas=1, drain_s=0.5, in_flight=1, on_done=commits.done
    )

    waiting.join()
    assert result.stopped
    assert commits.units == []
    assert time.monotonic() - began < 20


def stop_when_waiting(folder: Path, cluster: Session) -> None:
    while not (folder / "mishap").exists():
        time.sleep(0.02)
    cluster.stop.set()


def test_more_than_the_cluster_has_is_refused_before_anything_starts(
    ray_session: Session, commits: Commits
) -> None:
    spec = ReplicaSpec(stages=(StageSpec(make=Layers, resources=Resources(cpus=3)),))

    with pytest.raises(NotEnoughResources, match=r"asked: 2 x \(3 CPU\)[\s\S]+there: 4 CPU"):
        run_units(
            ray_session,
            range(2),
            spec,
            replicas=2,
            on_done=commits.done,
            on_event=commits.events.append,
        )

    assert commits.events == []


def test_no_units_start_no_replicas(ray_session: Session, commits: Commits) -> None:
    result = run_units(
        ray_session,
        [],
        replica(Path("unused")),
        replicas=2,
        on_done=commits.done,
        on_event=commits.events.append,
    )

    assert result.complete
    assert commits.events == []


def test_gauges_of_a_lost_replica_go_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[tuple[str, str], float] = {}

    class Gauge:
        """Ray's keeps the last value of every set of labels; so does this."""

        def __init__(self, name: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            kept[self.name, tags["replica"]] = value

    monkeypatch.setattr("actlake.platform.cluster.gauges.Gauge", Gauge)
    gauges = Gauges({"store": "f00d"})

    gauges.set({"harvest/replica_0/tokens_per_s": 8.0, "harvest/replica_1/tokens_per_s": 9.0})
    gauges.set({"harvest/replica_1/tokens_per_s": 7.0})

    name = "actlake_harvest_tokens_per_s"
    assert kept == {(name, "0"): 0.0, (name, "1"): 7.0}
