"""Extents and sets of units against plain Python."""

from hypothesis import given
from hypothesis import strategies as st

from actlake.storage import Extent, UnitSet
from actlake.storage.extents import block_extent, num_blocks

units = st.integers(0, 40)
runs = st.tuples(units, units)
steps = st.lists(st.tuples(st.sampled_from(["add", "discard"]), runs), max_size=30)
sets = st.sets(units)


def unit_set(members):
    made = UnitSet()
    for unit in members:
        made.add(unit)
    return made


@given(steps)
def test_a_unit_set_holds_what_a_set_of_integers_holds(steps):
    ours, theirs = UnitSet(), set()

    for step, (start, stop) in steps:
        getattr(ours, step)(start, stop)
        theirs = theirs | {*range(start, stop)} if step == "add" else theirs - {*range(start, stop)}

        assert list(ours) == sorted(theirs)
        assert len(ours) == len(theirs)
        assert [unit for unit in range(-1, 42) if unit in ours] == sorted(theirs)


@given(steps)
def test_the_runs_of_a_unit_set_are_sorted_and_never_touch(steps):
    ours = UnitSet()

    for step, (start, stop) in steps:
        getattr(ours, step)(start, stop)

    flat = [edge for run in ours.runs() for edge in run]
    assert flat == sorted(set(flat))


@given(sets, sets)
def test_unit_sets_combine_like_sets(a, b):
    union, difference = unit_set(a), unit_set(a)
    union.update(unit_set(b))
    difference.difference_update(unit_set(b))

    assert union == unit_set(a | b)
    assert difference == unit_set(a - b)
    assert unit_set(a).intersection(unit_set(b)) == unit_set(a & b)


@given(sets, units)
def test_what_is_missing_is_all_the_rest(members, total):
    missing = unit_set(range(total)).without(unit_set(members))

    assert list(missing) == sorted({*range(total)} - members)
    assert missing.runs() == list(unit_set(members).gaps(total))


@given(sets, runs)
def test_a_unit_set_says_whether_it_holds_all_or_any_units_of_a_run(members, run):
    start, stop = sorted(run)
    asked = set(range(start, stop))

    if asked:
        assert unit_set(members).covers(start, stop) == (asked <= members)
        assert unit_set(members).meets(start, stop) == bool(asked & members)


def test_ten_million_units_are_one_run():
    assert UnitSet([(0, 10**7)]).runs() == [(0, 10**7)]
    assert len(UnitSet([(0, 10**7)])) == 10**7


@given(st.integers(1, 50), st.integers(0, 500))
def test_blocks_hold_every_item_once(block, total):
    extents = [
        block_extent(i, block=block, total=total)
        for i in range(num_blocks(block=block, total=total))
    ]

    assert [i for extent in extents for i in range(extent.start, extent.stop)] == list(range(total))
    assert all(len(extent) == block for extent in extents[:-1])


@given(runs, runs)
def test_extents_meet_where_both_are(a, b):
    a, b = Extent(*sorted(a)), Extent(*sorted(b))

    both = a.intersect(b)

    assert [i for i in range(45) if i in both] == [i for i in range(45) if i in a and i in b]
