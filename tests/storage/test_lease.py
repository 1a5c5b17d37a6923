"""One driver a store: refused while another lives, taken over when it is dead, never both."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from actlake.storage import Lease, Site, add_sites, open_store
from actlake.storage import lease as lease_module
from actlake.storage.clock import SystemClock
from actlake.storage.errors import LeaseLost, StoreExists, StoreLocked
from actlake.storage.fence import FolderWriter, Token
from actlake.storage.ledger import LedgerWriter, read_state
from actlake.storage.location import LocalFolder, locate
from actlake.storage.processes import is_gone, this_process

HOLD = """
import sys, time
from actlake.storage import Lease
from actlake.storage.location import locate
lease = Lease.acquire(locate(sys.argv[1]))
print(lease.token.epoch, flush=True)
time.sleep(60)
"""
RACE = """
import sys
from actlake.storage import Lease
from actlake.storage.errors import StoreLocked
from actlake.storage.location import locate
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = Lease.acquire(locate(sys.argv[1]), give_up_s=60)
except StoreLocked:
    print("refused", flush=True)
else:
    print("won", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def location(folder):
    return locate(folder)


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT_S", 0.05)


def other_host(location, *, epoch=1):
    """A driver of another machine has opened the store, and is silent since."""
    owner = {"host": "node7", "boot": "another", "pids": "pid:[1]", "pid": 4711, "started": 1}
    writer = location.writer(Token(epoch, "0" * 16))
    writer.begin()
    LedgerWriter(location, writer, read_state(location)).append(
        {"kind": "open", "epoch": epoch, "owner": owner}
    )
    return writer


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "1"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.usefixtures("quick_beats")
def test_a_second_driver_is_refused_while_the_first_lives(location):
    with (
        Lease.acquire(location),
        pytest.raises(StoreLocked, match=rf"process {os.getpid()} on \S+ \(epoch 1\)\nhint: wait"),
    ):
        Lease.acquire(location)


@pytest.mark.usefixtures("quick_beats")
def test_a_lease_that_was_given_back_is_taken_at_once(location):
    with Lease.acquire(location) as first:
        pass

    with Lease.acquire(location, give_up_s=60) as second:
        assert (first.token.epoch, second.token.epoch) == (1, 2)


def test_a_file_beside_the_leases_that_is_none_is_left_alone(folder, location):
    with Lease.acquire(location):
        pass
    stray = folder / "ledger" / "lease-of-life"
    stray.write_text("")

    with Lease.acquire(location):
        pass

    assert stray.exists()


def test_the_lease_of_a_killed_process_is_taken_over_at_once(folder, location):
    end(hold(folder))
    started = time.monotonic()

    with Lease.acquire(location, give_up_s=60) as lease:
        assert lease.token.epoch == 2
    assert time.monotonic() - started < 30


def test_a_stopped_process_counts_as_alive_until_it_is_given_up(folder, location):
    process = hold(folder)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with Lease.acquire(location, give_up_s=0.3) as lease:
            assert lease.token.epoch == 2
    finally:
        end(process)


def test_a_silent_driver_on_another_machine_is_given_up(location):
    other_host(location)

    with Lease.acquire(location, give_up_s=0.2) as lease:
        assert lease.token.epoch == 2


def test_the_same_process_number_in_another_container_does_not_count_as_dead(location, monkeypatch):
    owner = this_process() | {"pid": 2**22 + 1}
    assert is_gone(owner)

    assert not is_gone(owner | {"pids": "pid:[7]"})
    assert not is_gone(owner | {"boot": "another"})


def test_a_process_number_that_is_used_again_counts_as_dead():
    owner = this_process()

    assert not is_gone(owner)
    assert is_gone(owner | {"started": owner["started"] - 1})


def test_a_driver_that_was_taken_over_can_commit_nothing_more(location):
    stale = Lease.acquire(location)
    stale.release()
    with Lease.acquire(location):
        with pytest.raises(LeaseLost, match=r"\(epoch 1\) of .* is over: another[\s\S]*\nhint:"):
            stale.ledger.commit([])
        with pytest.raises(LeaseLost, match=r"lease \(epoch 1\) of .* was taken over"):
            stale.token.check(location)


def test_a_stale_driver_that_ends_leaves_a_later_one_writing(folder, location):
    stale = Lease.acquire(location)
    with Lease.acquire(location, give_up_s=0) as later:
        stale.release()

        later.writer.create("key", [b"whole"])
    assert location.read("key") == b"whole"
    assert not (folder / "partial").exists()


@pytest.mark.parametrize("challengers", [2, 8])
def test_of_challengers_that_race_exactly_one_wins(location, challengers, monkeypatch):
    other_host(location)
    barrier = threading.Barrier(challengers)
    won, lost = [], []

    def challenge():
        try:
            won.append(Lease.acquire(location, give_up_s=0))
        except StoreLocked as error:
            lost.append(error)

    # All have judged the last driver dead before the first of them opens the store.
    judge = lease_module._wait_until_over
    monkeypatch.setattr(
        lease_module, "_wait_until_over", lambda *a, **k: judge(*a, **k) or barrier.wait() < 0
    )
    threads = [threading.Thread(target=challenge) for _ in range(challengers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in won:
        lease.release()

    assert (len(won), len(lost)) == (1, challengers - 1)
    assert read_state(location).epoch == 2


def test_processes_that_race_for_a_new_store_leave_exactly_one_driver(folder):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate()

    assert sorted(outcomes) == ["refused", "refused", "won"]


def test_a_worker_that_sees_another_disk_is_told_so(location, tmp_path):
    with Lease.acquire(location) as lease:
        lease.token.check(location)

        with pytest.raises(LeaseLost, match=r"cannot be seen at .*node-local\nhint: .* same files"):
            lease.token.check(locate(tmp_path / "node-local"))


def test_a_folder_with_other_files_is_not_made_a_store(folder, location):
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "mine").write_text("precious")

    for _ in range(2):
        with pytest.raises(
            StoreExists, match=r"holds other files, and no .* store\nhint: .* empty"
        ):
            Lease.acquire(location)
    assert (folder / "tokenizer" / "mine").read_text() == "precious"
    assert [path.name for path in folder.iterdir()] == ["tokenizer"]


def test_files_that_killed_writers_left_half_written_are_swept(folder, location):
    end(hold(folder))
    (staging,) = (folder / "partial").iterdir()
    (staging / "c.3.0.abc").write_bytes(b"half a shard")

    with Lease.acquire(location):
        pass

    assert sorted(path.name for path in folder.iterdir()) == ["ledger"]
    leases = [path.name for path in (folder / "ledger").glob("lease-*")]
    assert leases == ["lease-000002"]


def test_a_holder_that_commits_and_ends_while_one_waits_is_followed_not_fought(known, folder):
    known.build(folder)
    holder = Lease.acquire(LocalFolder(folder))
    waiting = threading.Thread(target=lambda: acquired.append(Lease.acquire(LocalFolder(folder))))
    acquired: list[Lease] = []

    waiting.start()
    time.sleep(0.3)  # it has read the ledger and waits for a beat
    add_sites(holder, open_store(folder), {Site(0): known.rows_are}, {})
    holder.release()
    waiting.join(timeout=30)

    assert len(acquired) == 1
    assert acquired[0].token.epoch == holder.token.epoch + 1
    acquired[0].release()


def test_a_heartbeat_goes_on_whatever_goes_wrong_and_says_so(location, monkeypatch, caplog):
    class Stepped(SystemClock):
        def repeat(self, deed, *, every_s):
            self.beat = deed
            return lambda: None

    location.clock = clock = Stepped()
    with Lease.acquire(location) as lease:
        before = location.read(lease.token.lease_key)
        with monkeypatch.context() as broken:
            broken.setattr(FolderWriter, "replace", lambda *_, **__: [][0])
            assert clock.beat()
        assert "could not be renewed: list index out of range" in caplog.text

        assert clock.beat()
        assert location.read(lease.token.lease_key) != before
        with Lease.acquire(locate(location.url), give_up_s=0):
            assert not clock.beat()
    assert "was taken over" in caplog.text
