"""What stands between a worker and Ray, in one process and without a cluster."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actlake.platform.cluster import (
    ClusterMismatch,
    InvalidClusterConfig,
    ReplicaSpec,
    Resources,
    Send,
    StageSpec,
    WorkerFailed,
    run_chain,
)
from actlake.platform.cluster.stage_actor import StageActor, _Turnstile, portable
from actlake.storage.errors import ActlakeError


class Doubler:
    """Doubles what it receives and sends it on; its receipt is the sum of what it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def run(self, unit: int, send: Send | None) -> int:
        for number in range(3):
            self.receive(unit, unit + number, send)
        return self.finish(unit)

    def receive(self, unit: int, message: int, send: Send | None) -> None:
        self.seen.append(message)
        if send is not None:
            send(2 * message)

    def finish(self, unit: int) -> int:
        return sum(self.seen)


class Awkward(ActlakeError):
    """Needs more than its words to be made."""

    def __init__(self, path: str, *, size: int) -> None:
        super().__init__(f"{path} has {size} bytes\nhint: fewer")


def test_a_chain_in_one_process_passes_messages_down_and_receipts_up() -> None:
    receipts = run_chain([Doubler(), Doubler(), Doubler()], 1)

    assert receipts == [6, 12, 24]


def test_messages_pass_in_the_order_of_their_numbers_whichever_thread_comes_first() -> None:
    turnstile = _Turnstile()
    passed: list[int] = []

    def pass_through(number: int) -> None:
        with turnstile.turn(number):
            passed.append(number)

    with ThreadPoolExecutor(8) as threads:
        for number in reversed(range(8)):
            threads.submit(pass_through, number)
            time.sleep(0.005)

    assert passed == list(range(8))
    assert turnstile.passed == 8


def test_a_message_that_fails_lets_none_of_those_behind_it_through() -> None:
    turnstile = _Turnstile()
    errors: list[BaseException] = []

    def wait_behind() -> None:
        try:
            with turnstile.turn(1):
                pass
        except ValueError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait_behind)
    waiting.start()
    with pytest.raises(ValueError, match="bad batch"), turnstile.turn(0):
        raise ValueError("bad batch")
    waiting.join(5)

    assert [str(error) for error in errors] == ["bad batch"]
    assert turnstile.passed == 0


def test_a_node_with_other_code_than_the_drivers_does_no_work() -> None:
    made: list[Doubler] = []

    with pytest.raises(ClusterMismatch, match="than the driver \\(0123abcd\\)"):
        StageActor(None, 1).start(
            lambda: made.append(Doubler()), {}, 1, "0123abcd", "object_store", "group", 0, 1
        )

    assert made == []


def test_an_exception_that_can_be_rebuilt_travels_as_itself_with_its_traceback() -> None:
    with pytest.raises(FileNotFoundError) as raised:
        Path("no-such-folder", "unit-3").read_bytes()

    sent = portable(raised.value)

    assert type(sent) is FileNotFoundError
    assert sent.filename == raised.value.filename
    assert "test_cluster_stage.py" in sent.__notes__[0]


def test_an_exception_that_cannot_be_rebuilt_travels_as_its_words() -> None:
    sent = portable(Awkward("unit-3", size=0))

    assert type(sent) is WorkerFailed
    assert str(sent) == "Awkward: unit-3 has 0 bytes\nhint: fewer"


@pytest.mark.parametrize(
    "make",
    [
        lambda: StageSpec(make=Doubler, threads=0),
        lambda: StageSpec(make=Doubler, resources=Resources(cpus=0)),
        lambda: ReplicaSpec(stages=()),
        lambda: ReplicaSpec(stages=(StageSpec(make=Doubler),), messages_in_flight=0),
        lambda: Resources(cpus=-1),
    ],
)
def test_sizes_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(InvalidClusterConfig):
        make()
