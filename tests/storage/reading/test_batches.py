"""Batches: every row once an epoch, the same for the same seed, and resumable bit for bit."""

import inspect
import json
import logging
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlake.storage import Lease, Site, mapped, open_store
from actlake.storage.arrays import RowArray
from actlake.storage.errors import (
    FormatTooNew,
    InvalidBatches,
    SiteNotStored,
    StateMismatch,
    UnknownSplit,
)
from actlake.storage.location import LocalFolder
from actlake.storage.reading.batches import BatchOptions, read_batches
from actlake.storage.reading.gathering import GatherReader
from actlake.storage.reading.mixing import MixingPlan

SITE = Site(3)
SHUFFLES = ("exact", "pool", "none")
GOLDEN = [
    [168, 96, 170, 172, 165, 127],
    [169, 126, 164, 44, 41, 171],
    [167, 121, 47, 40, 163, 120],
    [197, 100, 160, 43, 175, 199],
]
relaxed = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows_of(batches):
    return [batch.rows.tolist() for batch in batches]


def flat(lists):
    return list(chain.from_iterable(lists))


def eligible(known, *, units=range(11), split="train"):
    kept = ~known.excluded & np.isin(np.arange(known.rows) // 24, list(units))
    return np.flatnonzero(kept & (known.split == split if split else True))


@pytest.fixture(params=["mapped", "zarr"])
def store(request, full):
    return open_store(full, path=request.param)


# Which rows.


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("epoch", [0, 1])
def test_each_row_comes_once_an_epoch_with_its_own_activations(known, store, shuffle, epoch):
    batches = list(
        store.batches(
            SITE, 7, split="train", shuffle=shuffle, pool_rows=40, epochs=2, last="ragged"
        )
    )

    of_epoch = [batch for batch in batches if batch.epoch == epoch]
    rows = np.concatenate([batch.rows for batch in of_epoch])
    np.testing.assert_array_equal(np.sort(rows), eligible(known))
    assert {len(batch) for batch in of_epoch[:-1]} == {7}
    assert len(of_epoch[-1]) == (len(rows) % 7 or 7)
    for batch in batches:
        np.testing.assert_array_equal(batch.acts, known.acts[SITE][batch.rows])
    assert [batch.step for batch in batches] == list(range(len(batches)))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_without_a_ragged_batch_all_are_of_one_size(known, store, shuffle):
    batches = list(store.batches(SITE, 16, shuffle=shuffle, pool_rows=40, epochs=3))

    assert {len(batch) for batch in batches} == {16}
    assert len(batches) == 3 * (len(eligible(known, split=None)) // 16)


def test_endless_batches_go_on_into_the_next_epoch(store):
    batches = list(islice(store.batches(SITE, 50, seed=1), 10))

    assert [batch.epoch for batch in batches] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert rows_of(batches[:4]) != rows_of(batches[4:8])


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_several_sites_come_aligned(known, store, shuffle):
    batch = next(store.batches(["resid_pre.1", "resid_post.3"], 16, shuffle=shuffle))

    assert list(batch.acts) == [Site(1, "resid_pre"), Site(3)]
    np.testing.assert_array_equal(batch["resid_pre.1"], known.acts[Site(0)][batch.rows])
    np.testing.assert_array_equal(batch[SITE], known.acts[SITE][batch.rows])


def test_in_order_is_the_order_of_the_store(known, store):
    batches = store.batches(SITE, 16, shuffle="none", epochs=1, last="ragged", exclude=None)

    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(known.rows))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_predicate_keeps_rows_out(known, store, shuffle):
    batches = store.batches(
        SITE, 8, shuffle=shuffle, where="position between 2 and 6", epochs=1, last="ragged"
    )

    rows = np.concatenate([batch.rows for batch in batches])
    expected = ~known.excluded & (known.positions >= 2) & (known.positions <= 6)
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(expected))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_elements_are_as_stored_unless_another_type_is_asked_for(
    make_known, folder, dtype, shuffle
):
    known = make_known(dtype=dtype)
    known.build(folder)
    known.fill(folder)
    store = open_store(folder)

    stored = next(store.batches(SITE, 8, shuffle=shuffle))
    as_float = next(store.batches(SITE, 8, shuffle=shuffle, dtype="float32"))

    assert stored.acts.dtype == store[SITE].dtype
    np.testing.assert_array_equal(stored.acts, known.acts[SITE][stored.rows])
    assert as_float.acts.dtype == np.float32
    np.testing.assert_array_equal(as_float.acts, stored.acts.astype(np.float32))


# The way to shuffle.


def test_a_mapped_store_is_shuffled_exactly_and_says_so(full, caplog):
    with caplog.at_level(logging.INFO, logger="actlake"):
        batches = open_store(full).batches(SITE, 8)

    assert batches.order.shuffle == "exact"
    assert "exact, the store is memory-mapped" in caplog.text


def test_a_store_that_cannot_be_mapped_is_mixed_in_a_pool(full, caplog):
    with caplog.at_level(logging.INFO, logger="actlake"):
        batches = open_store(full, path="zarr").batches(SITE, 8)

    assert batches.order.shuffle == "pool"
    assert "pool, acts/resid_post.3 is read through Zarr" in caplog.text


@pytest.mark.parametrize("turn", [{"rank": 1, "world_size": 2}, {"stride": (1, 2)}])
def test_ranks_that_open_a_store_while_it_grows_agree_on_its_rows_or_are_refused(
    known, folder, turn
):
    known.build(folder)
    known.fill(folder, skip=(1, 5, 10))
    whole = list(open_store(folder).batches(SITE, 8, epochs=1))
    pinned = open_store(folder).batches(SITE, 8, epochs=1).state_dict()
    known.fill(folder, skip=tuple(set(range(11)) - {1, 10}))  # the harvest goes on

    with pytest.raises(InvalidBatches, match=r"10 of 11 units of .* committed[\s\S]*hint: wait"):
        open_store(folder).batches(SITE, 8, epochs=1, **turn)
    parts = rows_of(open_store(folder).batches(SITE, 8, epochs=1, state=pinned, **turn))

    if "stride" in turn:
        assert parts == rows_of(whole)[1::2]
    else:
        assert parts == [batch.rows[4:].tolist() for batch in whole]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_machine_that_refuses_to_map_a_store_does_not_change_its_order(
    full, monkeypatch, resumed
):
    """As under `ulimit -v`: another order than that of the next machine would be read."""
    state = open_store(full).batches(SITE, 8).state_dict() if resumed else None

    def refuse(*_):
        raise mapped.CannotMap("Cannot allocate memory")

    monkeypatch.setattr(mapped, "_mmap", refuse)

    with pytest.raises(InvalidBatches, match=r"may not map as much[\s\S]*hint: .*ulimit -v unlim"):
        open_store(full).batches(SITE, 8, state=state)
    assert next(open_store(full).batches(SITE, 8, shuffle="pool")).acts.shape == (8, 6)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_order_is_the_same_however_the_store_is_read(full, shuffle):
    how = {"seed": 4, "shuffle": shuffle, "pool_rows": 48, "epochs": 2}

    mapped = rows_of(open_store(full, path="mapped").batches(SITE, 8, **how))
    zarr = rows_of(open_store(full, path="zarr").batches(SITE, 8, **how))

    assert mapped == zarr


@pytest.mark.parametrize("shuffle", ["exact", "pool"])
def test_seed_and_epoch_change_the_order_and_nothing_else_does(store, shuffle):
    how = {"shuffle": shuffle, "pool_rows": 48, "epochs": 1, "last": "ragged"}

    first = np.concatenate(rows_of(store.batches(SITE, 8, seed=0, **how)))
    again = np.concatenate(rows_of(store.batches(SITE, 13, seed=0, **how)))
    other = np.concatenate(rows_of(store.batches(SITE, 8, seed=1, **how)))

    assert first.tolist() == again.tolist()  # also cut into other batches
    assert first.tolist() != other.tolist()


# Determinism.


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_batches(store, shuffle, threads):
    how = {"shuffle": shuffle, "pool_rows": 40, "epochs": 2, "last": "ragged"}

    alone = list(store.batches(SITE, 8, **how))
    with store.batches(SITE, 8, threads=threads, **how) as batches:
        together = list(batches)

    assert rows_of(alone) == rows_of(together)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.acts, two.acts)


@relaxed
@given(
    shuffle=st.sampled_from(SHUFFLES),
    steps=st.integers(0, 70),
    batch=st.integers(1, 30),
    pool_rows=st.integers(1, 300),
    threads=st.integers(0, 2),
    last=st.sampled_from(["drop", "ragged"]),
)
def test_a_resumed_reader_goes_on_bit_for_bit(
    full, shuffle, steps, batch, pool_rows, threads, last
):
    store = open_store(full)
    how = {"shuffle": shuffle, "pool_rows": pool_rows, "split": "train", "last": last}
    unbroken = list(islice(store.batches(SITE, batch, **how), steps + 20))

    first = store.batches(SITE, batch, threads=threads, **how)
    begun = list(islice(first, steps))
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    resumed = store.batches(SITE, batch, **how | {"shuffle": "auto", "state": state})
    after = list(islice(resumed, 20))

    assert rows_of(begun + after) == rows_of(unbroken)
    for one, two in zip(begun + after, unbroken, strict=True):
        assert one.acts.tobytes() == two.acts.tobytes()
        assert (one.epoch, one.step) == (two.epoch, two.step)


@relaxed
@given(
    shuffle=st.sampled_from(SHUFFLES),
    before=st.sampled_from([1, 2, 3, 4, 6]),
    after=st.sampled_from([1, 2, 3, 4, 6]),
    steps=st.integers(0, 8),
)
def test_ranks_share_the_same_batches_also_when_their_number_changes(
    full, shuffle, before, after, steps
):
    store = open_store(full)
    how = {"shuffle": shuffle, "pool_rows": 60, "epochs": 1, "last": "ragged"}
    whole = rows_of(store.batches(SITE, 12, **how))

    def shared(world_size, state, count):
        readers = [
            store.batches(SITE, 12, rank=rank, world_size=world_size, state=state, **how)
            for rank in range(world_size)
        ]
        parts = zip(*(rows_of(islice(reader, count)) for reader in readers), strict=True)
        return [flat(part) for part in parts], [reader.state_dict() for reader in readers]

    begun, states = shared(before, None, steps)
    rest, _ = shared(after, states[-1], None)

    assert begun + rest == whole
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_worker_processes_take_turns_on_the_same_batches(store, shuffle):
    how = {"shuffle": shuffle, "pool_rows": 60, "epochs": 2}
    whole = rows_of(store.batches(SITE, 12, **how))

    parts = [rows_of(store.batches(SITE, 12, stride=(i, 3), **how)) for i in range(3)]

    assert [parts[step % 3][step // 3] for step in range(len(whole))] == whole


# While a harvest runs.


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_only_committed_units_are_read(known, folder, shuffle):
    known.build(folder)
    known.fill(folder, skip=(1, 5, 10))
    store = open_store(folder)

    batches = store.batches(SITE, 8, shuffle=shuffle, pool_rows=60, epochs=1, last="ragged")

    rows = np.sort(np.concatenate(rows_of(batches)))
    units = set(range(11)) - {1, 5, 10}
    np.testing.assert_array_equal(rows, eligible(known, units=units, split=None))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_resumed_reader_sees_the_units_it_saw_before_and_a_new_one_sees_all(
    known, folder, shuffle
):
    known.build(folder)
    known.fill(folder, skip=(1, 5))
    how = {"shuffle": shuffle, "pool_rows": 60, "epochs": 1, "last": "ragged"}
    before = open_store(folder).batches(SITE, 8, **how)
    begun = rows_of(islice(before, 3))
    with Lease.acquire(LocalFolder(folder)) as lease:
        known.write(lease, open_store(folder), 5)
    store = open_store(folder)

    rest = rows_of(store.batches(SITE, 8, state=before.state_dict(), **how))
    anew = rows_of(store.batches(SITE, 8, **how))

    assert rest == rows_of(before)
    assert (
        sorted(flat(begun + rest))
        == eligible(known, units=set(range(11)) - {1, 5}, split=None).tolist()
    )
    assert len(flat(anew)) > len(flat(begun + rest))


def test_what_is_committed_meanwhile_is_seen_by_the_next_batches_of_the_same_store(known, folder):
    known.build(folder)
    known.fill(folder, skip=(1, 5))
    store = open_store(folder)
    before = store.batches(SITE, 8)

    with Lease.acquire(LocalFolder(folder)) as lease:
        known.write(lease, open_store(folder), 5)

    assert store.batches(SITE, 8).num_rows > before.num_rows


# When something goes wrong.


class Broken(Exception):
    pass


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_after_an_error_the_same_batch_can_be_asked_for_again(store, monkeypatch, shuffle, threads):
    how = {"shuffle": shuffle, "pool_rows": 40, "epochs": 1}
    whole = rows_of(store.batches(SITE, 8, **how))
    left = iter([False, False, True])  # the third read, of a batch or of a chunk, fails once

    def fails_once(method):
        def read(*arguments, **options):
            if next(left, False):
                raise Broken
            return method(*arguments, **options)

        return read

    for name in ("take", "chunk"):
        monkeypatch.setattr(RowArray, name, fails_once(getattr(RowArray, name)))
    given, errors = [], 0
    with store.batches(SITE, 8, threads=threads, **how) as batches:
        for _ in range(len(whole) + 1):
            assert batches.state_dict()["step"] == len(given)
            try:
                given.append(next(batches).rows.tolist())
            except Broken:
                errors += 1
            except StopIteration:
                break

    assert errors == 1
    assert given == whole


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_closed_batches_say_so_and_where_they_were(store, shuffle, threads):
    batches = store.batches(SITE, 8, shuffle=shuffle, pool_rows=40, threads=threads)
    next(batches)

    batches.close()

    with pytest.raises(InvalidBatches, match=r"closed\nhint: make others that go on"):
        next(batches)
    assert batches.state_dict()["step"] == 1


# Statistics.


@pytest.mark.parametrize("exclude", ["default", None])
def test_statistics_are_of_the_rows_of_an_epoch(known, folder, exclude):
    known.build(folder)
    known.fill(folder, skip=(4,))
    batches = open_store(folder).batches(
        SITE, 8, split="test", exclude=exclude, epochs=1, last="ragged"
    )
    values = known.acts[SITE][np.concatenate(rows_of(batches))].astype(np.float64)

    moments = batches.moments(SITE)

    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-10)


def test_statistics_under_a_predicate_are_refused(full):
    batches = open_store(full).batches(SITE, 8, where="position > 3")

    with pytest.raises(InvalidBatches, match="kept by split and exclusion, not for position > 3"):
        batches.moments(SITE)


# Bad input.


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"rows_per_batch": 0}, InvalidBatches, "rows_per_batch must be a number from 1"),
        ({"rows_per_batch": 2.5}, InvalidBatches, "rows_per_batch must be a number from 1"),
        ({"rows_per_batch": 300}, InvalidBatches, r"300 rows cannot be filled: .*\n.*ragged"),
        ({"pool_rows": -1}, InvalidBatches, "pool_rows must be a number from 1, and is -1"),
        ({"epochs": 0}, InvalidBatches, "epochs must be"),
        ({"shuffle": "exakt"}, InvalidBatches, "no shuffle='exakt'\nhint: did you mean 'exact'"),
        ({"last": "keep"}, InvalidBatches, "no last='keep'"),
        ({"exclude": "bos"}, InvalidBatches, "no exclude='bos'"),
        ({"rank": 2, "world_size": 2}, InvalidBatches, "rank 2 is not one of 2"),
        ({"world_size": 3}, InvalidBatches, r"8 rows cannot be shared .* 3 ranks\n.*each make 9"),
        ({"threads": -1}, InvalidBatches, "threads must be a number from 0, and is -1"),
        ({"threads": 1.5}, InvalidBatches, "threads must be a number from 0, and is 1.5"),
        ({"rows_per_batch": True}, InvalidBatches, "rows_per_batch must be a number from 1"),
        ({"seed": None}, InvalidBatches, "seed must be a whole number, and is None"),
        ({"seed": "x"}, InvalidBatches, "seed must be a whole number, and is 'x'"),
        ({"rank": 0.5}, InvalidBatches, "rank must be a whole number, and is 0.5"),
        ({"stride": 3}, InvalidBatches, "stride must be two numbers, and is 3"),
        ({"stride": (3, 3)}, InvalidBatches, "stride 3 is not one of 3"),
        ({"dtype": "nonsense"}, InvalidBatches, "'nonsense' is no element type"),
        ({"shuffle": None}, InvalidBatches, "no shuffle=None"),
        ({"sites": []}, InvalidBatches, "No site was asked for"),
        ({"sites": [SITE, 7]}, InvalidBatches, "7 is not a site"),
        ({"sites": "resid_post.2"}, SiteNotStored, "did you mean"),
        ({"split": "trian"}, UnknownSplit, "did you mean 'train'"),
        ({"state": {"epoch": 3}}, StateMismatch, "it lacks committed, format"),
        ({"state": 5}, StateMismatch, "it lacks committed, epoch"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(full, how, error, words):
    arguments = {"sites": SITE, "rows_per_batch": 8} | how

    with pytest.raises(error, match=words):
        open_store(full).batches(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "order.seed: stored 0, asked 1"),
        ({"rows_per_batch": 16}, "order.rows_per_batch: stored 8, asked 16"),
        ({"shuffle": "none"}, 'order.shuffle: stored "exact", asked "none"'),
        ({"split": "test"}, 'order.split: stored null, asked "test"'),
        ({"exclude": None}, 'order.exclude: stored "default", asked null'),
        ({"where": "position > 2"}, "order.where: stored null"),
        ({"sites": [Site(0)]}, r"order.sites: stored \[\"resid_post.3\"\], asked"),
    ],
)
def test_a_state_of_other_settings_is_refused_with_the_difference(full, change, words):
    store = open_store(full)
    state = store.batches(SITE, 8).state_dict()
    arguments = {"sites": SITE, "rows_per_batch": 8, "state": state} | change

    with pytest.raises(StateMismatch, match=words):
        store.batches(**arguments)


def test_a_state_of_another_store_is_refused(make_known, full, tmp_path):
    other = make_known(seed=1)
    other.build(tmp_path / "other")
    other.fill(tmp_path / "other")
    state = open_store(full).batches(SITE, 8).state_dict()

    with pytest.raises(StateMismatch, match=r"stores.0.fingerprint: stored"):
        open_store(tmp_path / "other").batches(SITE, 8, state=state)


def test_a_state_from_the_future_is_refused(full):
    store = open_store(full)
    state = store.batches(SITE, 8).state_dict() | {"format": 99}

    with pytest.raises(FormatTooNew, match="format 99"):
        store.batches(SITE, 8, state=state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": {}}, r"order is \{\}"),
        ({"committed": []}, "committed units of 0 stores; there are 1"),
        ({"committed": [[3]]}, r"committed is \[\[3\]\]"),
        ({"format": "1"}, "format is '1'"),
        ({"epoch": "a"}, "epoch is 'a'"),
        ({"step": -1}, "step is -1"),
        ({"stores": []}, r"stores.0: stored \"\(nothing\)\""),
    ],
)
def test_a_state_that_was_tampered_with_is_refused_with_what_is_wrong(full, change, words):
    store = open_store(full)
    state = store.batches(SITE, 8).state_dict() | change

    with pytest.raises(StateMismatch, match=words):
        store.batches(SITE, 8, state=state)


def test_a_state_is_plain_json_and_nobody_elses(full):
    batches = open_store(full).batches(SITE, np.int64(8), seed=np.int64(3), pool_rows=np.int32(40))
    next(batches)

    state = batches.state_dict()
    assert json.loads(json.dumps(state)) == state
    state["order"]["seed"] = 99

    assert batches.state_dict()["order"]["seed"] == 3


def test_a_resumed_reader_still_says_why_it_shuffles_as_it_does(full):
    store = open_store(full, path="zarr")
    before = store.batches(SITE, 8)

    after = store.batches(SITE, 8, state=before.state_dict())

    assert after.reason == before.reason == "acts/resid_post.3 is read through Zarr, chunk by chunk"


def test_a_predicate_that_answers_otherwise_on_resume_is_noticed(full):
    store = open_store(full)
    answers = iter([3, 4])

    def later(columns):
        return columns["position"] >= next(answers)

    state = store.batches(SITE, 8, where=later).state_dict()

    with pytest.raises(StateMismatch, match="Other rows are selected now"):
        store.batches(SITE, 8, where=later, state=state)


def test_units_whose_records_were_lost_since_are_named(known, full):
    store = open_store(full)
    state = store.batches(SITE, 8).state_dict()
    for entry in sorted((full / "ledger").glob("*.json"))[-2:]:  # an older copy was restored
        entry.unlink()

    with pytest.raises(StateMismatch, match=r"2 units of .* not committed any more"):
        open_store(full).batches(SITE, 8, state=state)


def test_a_ragged_batch_may_hold_all_there_is(known, full):
    batches = list(open_store(full).batches(SITE, 1000, epochs=1, last="ragged"))

    assert [len(batch) for batch in batches] == [len(eligible(known, split=None))]


def test_the_options_are_those_of_read_batches():
    parameters = inspect.signature(read_batches).parameters.values()

    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == set(BatchOptions.__annotations__)


# The pool.


def test_the_order_of_the_pool_is_fixed_for_good(full):
    """Saved states go on with it: another order is another format of states."""
    batches = open_store(full).batches(SITE, 6, shuffle="pool", pool_rows=70, seed=3)

    assert rows_of(islice(batches, 4)) == GOLDEN


def test_a_pool_of_its_own_is_as_large_as_asked_for_but_for_a_chunk_a_block(full):
    store = open_store(full, path="zarr")
    batches = store.batches(SITE, 4, shuffle="pool", pool_rows=100, exclude=None)
    next(batches)

    (pool,) = batches._reader._pool.values()
    blocks = batches._reader._plan.num_parts + 2
    assert 60 < len(pool) <= 100 + blocks * store.chunk_rows([SITE])


def test_a_mapped_store_needs_no_pool_of_its_own_and_hears_which_chunks_come(full, monkeypatch):
    store = open_store(full)
    heard = []
    expect = RowArray.expect

    def hearing(array, start, stop):
        heard.append(start // store.chunk_rows([SITE]))
        expect(array, start, stop)

    monkeypatch.setattr(RowArray, "expect", hearing)
    batches = store.batches(SITE, 8, shuffle="pool", pool_rows=70, epochs=1, last="ragged")

    seen = set()
    for batch in batches:
        seen |= set((batch.rows // store.chunk_rows([SITE])).tolist())
        assert seen <= set(heard)

    assert len(heard) == len(set(heard)) == store[SITE].num_chunks
    assert isinstance(batches._reader, GatherReader)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=200).filter(any),
    pool_rows=st.integers(1, 3000),
    seed=st.integers(0, 5),
    batch_rows=st.integers(1, 500),
)
def test_the_pool_gives_out_each_row_once_and_holds_few(counts, pool_rows, seed, batch_rows):
    counts = np.array(counts)
    plan = MixingPlan(counts, pool_rows=pool_rows, seed=seed, epoch=0)
    names = [
        [(chunk, i) for chunk in plan.block_chunks(block).tolist() for i in range(counts[chunk])]
        for block in range(plan.num_blocks)
    ]

    given_out = []
    for number in range(plan.num_rounds):
        members = [names[block][i] for block, which in plan.members(number) for i in which]
        assert sorted(plan.round_order(number)) == list(range(len(members)))
        given_out += members
    total = int(counts.sum())
    assert sorted(given_out) == [(c, i) for c in range(len(counts)) for i in range(counts[c])]
    assert plan.round_edges[-1] == total

    most = plan.blocks_at_once(batch_rows)
    largest = int(counts.max())
    if batch_rows <= min(np.diff(plan.round_edges)):
        assert most <= plan.num_parts + 2
        assert most * plan.block_sizes.max() <= max(pool_rows, 3 * largest) + most * largest


@pytest.mark.parametrize("begun", [False, True])
def test_threads_that_stayed_behind_in_a_fork_are_not_waited_for(store, in_a_fork, begun):
    batches = store.batches(SITE, 8, threads=2)
    if begun:
        next(batches)

    answer = in_a_fork(lambda: next(batches))

    assert isinstance(answer, InvalidBatches)
    assert "made in another process" in str(answer)
    assert "hint: " in str(answer)
    assert len(next(batches)) == 8


def test_batches_without_threads_go_on_in_a_fork(store, in_a_fork):
    batches = store.batches(SITE, 8)
    next(batches)

    rows = in_a_fork(lambda: next(batches).rows)

    np.testing.assert_array_equal(rows, next(batches).rows)
