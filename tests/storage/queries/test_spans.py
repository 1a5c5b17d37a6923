"""A token belongs to a span of characters if the two overlap, and to nothing beside the text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actlake.storage.querying.spans import TokenExtents


def naive(chars, special, length):
    """Which characters each token covers, the slow way."""
    covered = []
    for place, (start, beside) in enumerate(zip(chars, special, strict=True)):
        later = [c for c in chars if c > start]
        known = [c for c in chars[place + 1 :] if c >= 0]
        if start < 0 or (beside and known and known[0] == start):
            covered.append(set())
        else:
            covered.append(set(range(start, min(later, default=length))))
    return covered


@st.composite
def documents(draw):
    steps = draw(st.lists(st.integers(0, 4), min_size=1, max_size=20))
    chars = np.cumsum(steps) - steps[0] + draw(st.integers(0, 2))
    length = int(chars[-1]) + draw(st.integers(0, 4))
    unknown = draw(st.lists(st.booleans(), min_size=len(chars), max_size=len(chars)))
    chars = np.where(unknown, -1, chars)
    special = draw(st.lists(st.booleans(), min_size=len(chars), max_size=len(chars)))
    return chars, np.array(special), length


@given(document=documents(), spans=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90))))
def test_a_span_has_the_tokens_that_overlap_it(document, spans):
    chars, special, length = document
    covered = naive(chars.tolist(), special.tolist(), length)
    begins, ends = np.array(spans, np.int64).reshape(-1, 2).T

    extents = TokenExtents.of(chars, special, length=length)
    first, last = extents.overlapping(begins, ends)

    for (begin, end), a, b in zip(spans, first.tolist(), last.tolist(), strict=True):
        expected = [t for t, own in enumerate(covered) if own & set(range(begin, end))]
        assert extents.tokens[a:b].tolist() == expected


def test_pieces_of_one_character_all_belong_to_a_span_on_it():
    chars = np.array([0, 1, 1, 1, 2])

    extents = TokenExtents.of(chars, np.zeros(5, bool), length=3)

    first, last = extents.overlapping(np.array([1]), np.array([2]))
    assert extents.tokens[first[0] : last[0]].tolist() == [1, 2, 3]


def test_a_token_that_ends_within_a_character_belongs_to_a_span_on_it():
    """As " Å" is cut by some tokenizers: the space and a byte, another byte."""
    chars = np.array([0, 2, 3, 4])
    within = np.array([False, True, False, False])

    extents = TokenExtents.of(chars, np.zeros(4, bool), length=6, within=within)

    first, last = extents.overlapping(np.array([3, 4, 2]), np.array([6, 6, 3]))
    of_spans = [extents.tokens[a:b].tolist() for a, b in zip(first, last, strict=True)]
    assert of_spans == [[1, 2, 3], [3], [1]]


def test_a_beginning_of_text_and_a_separator_belong_to_no_span():
    chars = np.array([0, 0, 5, 9])
    special = np.array([True, False, False, True])

    extents = TokenExtents.of(chars, special, length=9)

    first, last = extents.overlapping(np.array([0]), np.array([9]))
    assert extents.tokens[first[0] : last[0]].tolist() == [1, 2]
