"""The ledger against a plain dict, whatever is merged when."""

import itertools
import secrets
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.storage import Site, SiteSchema
from actlake.storage.errors import AlreadyCommitted, FormatTooNew, LeaseLost, SiteNotStored
from actlake.storage.fence import Token
from actlake.storage.ledger import LedgerWriter, read_shards, read_state
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.ledger_state import LedgerState
from actlake.storage.location import LocalFolder

SITES = [Site(0), Site(3), Site(3, "mlp_out")]
ROWS = SiteSchema(dim=6, dtype="float16")


def record(site=SITES[0], unit=0, salt=0):
    return ShardRecord(site, unit, 1000 + salt, 2**31 + salt, 80, salt, nan=salt % 3)


def writer(location, *, fan_out=32, sites=SITES):
    state = read_state(location)
    files = location.writer(Token(state.epoch + 1, secrets.token_hex(4)))
    files.begin()
    made = LedgerWriter(location, files, state, fan_out=fan_out)
    made.append({"kind": "open", "epoch": made.state.epoch + 1, "owner": {"pid": 1}})
    if not made.state.groups:
        entries = [{"name": str(site), "schema": ROWS.as_json()} for site in sites]
        made.append({"kind": "sites", "sites": entries, "request": {"n": 1}})
    return made


def entries(location):
    return sorted(key for key in location.list("ledger") if key.endswith(".json"))


shards = st.lists(st.tuples(st.sampled_from(SITES), st.integers(0, 12)), max_size=5, unique=True)
steps = st.lists(
    st.tuples(st.sampled_from(["commit", "commit", "reopen", "merge_all"]), shards),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(steps, st.sampled_from([2, 3, 4]))
def test_the_ledger_says_what_a_dict_of_its_commits_says(steps, fan_out):
    with TemporaryDirectory() as folder:
        location = LocalFolder(Path(folder))
        ledger, expected = writer(location, fan_out=fan_out), {}

        for salt, (step, shards) in enumerate(steps):
            if step == "commit":
                new = {key: record(*key, salt) for key in shards if key not in expected}
                ledger.commit(new.values())
                expected |= new
            elif step == "merge_all":
                ledger.merge_all()
            else:
                ledger = writer(location, fan_out=fan_out)

        state = read_state(location)
        assert {(s, u) for s, units in state.covered.items() for u in units} == set(expected)
        assert (state.last, state.epoch) == (ledger.state.last, ledger.state.epoch)
        assert (state.sites, len(state.groups)) == (tuple(sorted(SITES)), 1)
        assert state.covered == ledger.state.covered
        found = list(read_shards(location, SITES))
        assert len(found) == len(expected)
        assert {(r.site, r.unit): r for r in found} == expected


def test_commits_are_merged_so_that_few_files_are_left(tmp_path):
    location = LocalFolder(tmp_path)
    ledger = writer(location, fan_out=4)

    for unit in range(120):
        ledger.commit([record(unit=unit)])

    assert len(entries(location)) < 4 * 4  # fewer than 4 of each power of 4
    assert read_state(location).covered[SITES[0]].runs() == [(0, 120)]
    ledger.merge_all()
    assert entries(location) == [f"ledger/{ledger.state.last:08d}.json"]


def test_numerics_and_requests_survive_merging(tmp_path):
    location = LocalFolder(tmp_path)
    ledger = writer(location, fan_out=2)
    ledger.append({"kind": "numerics", "numerics": {"torch": "2.6"}})
    for unit in range(9):
        ledger.commit([record(unit=unit).computed_with(unit % 2)])
    ledger.append({"kind": "numerics", "numerics": {"torch": "2.7"}})

    state = read_state(location)

    assert state.numerics == [{"torch": "2.6"}, {"torch": "2.7"}]
    assert state.groups[0].request == {"n": 1}
    assert [r.numerics for r in read_shards(location, SITES)] == [unit % 2 for unit in range(9)]


def test_a_unit_cannot_be_committed_twice(tmp_path):
    ledger = writer(LocalFolder(tmp_path))
    ledger.commit([record(unit=3)])

    with pytest.raises(AlreadyCommitted, match=r"Unit 3 of resid_post.0 is committed[\s\S]*hint:"):
        ledger.commit([record(unit=4), record(unit=3)])
    assert list(ledger.state.covered[SITES[0]]) == [3]


def test_a_site_that_was_not_announced_cannot_be_committed(tmp_path):
    ledger = writer(LocalFolder(tmp_path))

    with pytest.raises(SiteNotStored, match=r"mlp_in.7 was not announced[\s\S]*add_sites"):
        ledger.commit([record(Site(7, "mlp_in"))])
    assert read_state(LocalFolder(tmp_path)).last == 2


@pytest.mark.parametrize("commits", [1, 5, 40])
def test_a_stale_driver_cannot_append_however_much_was_merged_since(tmp_path, commits):
    location = LocalFolder(tmp_path)
    stale = writer(location, fan_out=2)
    later = writer(location, fan_out=2)
    for unit in range(commits):
        later.commit([record(unit=unit)])
    before = {key: location.read(key) for key in location.list("ledger")}

    with pytest.raises(LeaseLost, match=r"Another driver has taken over[\s\S]*hint:"):
        stale.commit([record(unit=99)])

    assert {key: location.read(key) for key in location.list("ledger")} == before
    assert 99 not in read_state(location).covered[SITES[0]]


@pytest.mark.parametrize("fan_out", [2, 3, 4])
@pytest.mark.parametrize("commits", [1, 2, 3, 5, 8, 40])
def test_a_driver_that_slept_after_an_entry_cannot_write_the_next(tmp_path, commits, fan_out):
    class Sleepy(LocalFolder):
        asleep = False

        def list(self, prefix=""):
            if self.asleep:  # between writing an entry and looking who else was there
                self.asleep = False
                later = writer(LocalFolder(tmp_path), fan_out=fan_out)
                for unit in range(commits):
                    later.commit([record(unit=unit)])
            return super().list(prefix)

    location = Sleepy(tmp_path)
    stale = writer(location, fan_out=fan_out)
    location.asleep = True

    def append_two():
        for unit in (98, 99):
            stale.append({"kind": "units", "shards": [record(unit=unit).as_json()]})

    with pytest.raises(LeaseLost):
        append_two()
    assert not location.asleep
    assert 99 not in read_state(LocalFolder(tmp_path)).covered[SITES[0]]


def test_an_entry_of_an_unknown_kind_asks_for_a_newer_version():
    with pytest.raises(FormatTooNew, match=r"unknown kind, 'quantised'\nhint: .* newer actlake"):
        LedgerState().apply({"kind": "quantised"})


def test_a_million_units_are_opened_from_few_files_in_little_memory(tmp_path, monkeypatch):
    location = LocalFolder(tmp_path)
    ledger = writer(location, sites=SITES[:1])
    edges = [*range(0, 990_000, 33_000), *range(990_000, 10**6 + 1, 1000)]
    for first, stop in itertools.pairwise(edges):  # the first 30 are merged, ten are not
        ledger.commit(record(unit=unit) for unit in range(first, stop))
    files_read = []
    monkeypatch.setattr(
        LocalFolder,
        "read",
        lambda self, key, read=LocalFolder.read: files_read.append(key) or read(self, key),
    )

    tracemalloc.start()
    state = read_state(location)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert state.covered[SITES[0]].runs() == [(0, 10**6)]
    assert len(files_read) <= 2 * 32
    assert not [key for key in files_read if key.endswith(".parquet")]
    assert peak_bytes < 30e6
