"""A store and a plain model of it, driven by hypothesis through the same life."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actlake.storage import (
    Lease,
    Site,
    add_sites,
    open_store,
    restore_unit,
    verify,
    write_unit,
)
from actlake.storage.fence import FolderWriter
from actlake.storage.location import LocalFolder, locate

SITES = [Site(0), Site(3), Site(5, "mlp_out")]
units = st.integers(0, 10)


class Crash(Exception):
    """The writer dies here."""


class DyingFolder(LocalFolder):
    """Dies before, or in the middle of, the n-th file."""

    def __init__(self, root, *, files):
        super().__init__(root)
        self.files = files

    def writer(self, token):
        return DyingWriter(self, token)


class DyingWriter(FolderWriter):
    def __init__(self, folder, token):
        super().__init__(folder.root, token)
        self._folder = folder

    def ensure(self, key, parts):
        if self._folder.files == 0:
            (self._staging / "c.9.x").write_bytes(b"".join(map(bytes, parts))[:50])
            raise Crash
        self._folder.files -= 1
        super().ensure(key, parts)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="actlake-machine-"))
        self.folder = self.scratch / "store"
        self.committed = {}  # site -> units, what the store should say

    @initialize(dtype=st.sampled_from(["float16", "bfloat16", "float32", "int8"]))
    def create(self, dtype):
        self.known = self.make_known(dtype=dtype)
        rng = np.random.default_rng(1)
        values = rng.normal(size=(len(SITES), self.known.rows, self.known.dim))
        are = self.known.rows_are
        self.acts = {s: are.decode(are.encode(v)) for s, v in zip(SITES, values, strict=True)}
        self.known.build(self.folder)
        self.start_driver()

    def start_driver(self):
        self.lease = Lease.acquire(locate(self.folder))
        self.store = open_store(self.folder)

    def rows_of(self, unit, sites):
        extent = self.store.schema.unit_extent(unit)
        return {site: self.acts[site][extent.slice()] for site in sites}

    @rule(site=st.sampled_from(SITES))
    def announce(self, site):
        add_sites(self.lease, self.store, {site: self.known.rows_are}, {})
        self.committed.setdefault(site, set())

    @precondition(lambda self: self.committed)
    @rule(unit=units, data=st.data())
    def write(self, unit, data):
        known = sorted(self.committed)
        wanted = data.draw(st.sets(st.sampled_from(known), min_size=1))
        sites = [site for site in wanted if unit not in self.committed[site]]
        records = write_unit(self.store, unit, self.rows_of(unit, sites), token=self.lease.token)
        self.lease.ledger.commit(records)
        for site in sites:
            self.committed[site].add(unit)

    @precondition(lambda self: self.committed)
    @rule(unit=units, files=st.integers(0, 9), data=st.data())
    def crash_while_writing(self, unit, files, data):
        site = data.draw(st.sampled_from(sorted(self.committed)))
        if unit in self.committed[site]:
            return
        dying = open_store(DyingFolder(self.folder, files=files))
        try:
            write_unit(dying, unit, self.rows_of(unit, [site]), token=self.lease.token)
        except Crash:
            assert files < 3 + self.known.rows_are.has_scales

    @rule()
    def restart(self):
        self.lease.release()
        self.start_driver()

    @precondition(lambda self: any(self.committed.values()))
    @rule(data=st.data())
    def damage_and_repair(self, data):
        site = data.draw(st.sampled_from(sorted(s for s, units in self.committed.items() if units)))
        unit = data.draw(st.sampled_from(sorted(self.committed[site])))
        path = self.folder / self.store.refresh().spec(site).shard_key(unit)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(content))

        store = open_store(self.folder)
        (damage,) = verify(store).damaged
        record = damage.record
        assert (record.site, record.unit, damage.rows_are_whole) == (site, unit, False)
        rows = self.rows_of(unit, [site])
        assert restore_unit(store, unit, rows, [record], token=self.lease.token) == [record]

    @rule()
    def merge(self):
        self.lease.ledger.merge_all()

    @precondition(lambda self: self.committed)
    @rule(path=st.sampled_from(["mapped", "zarr"]), seed=st.integers(0, 99))
    def read(self, path, seed):
        store = open_store(self.folder, path=path)
        rows = np.random.default_rng(seed).integers(0, self.known.rows, 40)
        for site, units in self.committed.items():
            expected = self.acts[site].astype(np.float32)
            unit_of = np.arange(self.known.rows) // 24
            expected[~np.isin(unit_of, sorted(units))] = np.nan
            taken = store[site].take(rows, missing="nan").astype(np.float32)
            whole = store[site].read(0, self.known.rows, missing="nan").astype(np.float32)
            np.testing.assert_array_equal(taken, expected[rows])
            np.testing.assert_array_equal(whole, expected)

    @invariant()
    def the_store_says_what_the_model_says(self):
        if not hasattr(self, "store"):
            return
        store = open_store(self.folder)
        assert {site: set(units) for site, units in store.ledger.covered.items()} == self.committed

    @rule()
    def is_whole(self):
        report = verify(open_store(self.folder))
        assert report.problems == ()
        assert report.shards == sum(map(len, self.committed.values()))

    def teardown(self):
        if hasattr(self, "lease"):
            self.lease.release()
        shutil.rmtree(self.scratch)


def test_a_store_lives_as_a_plain_model_of_it_does(make_known):
    machine = type("Machine", (StoreMachine,), {"make_known": staticmethod(make_known)})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )
