"""find gives the rows that reading everything and looking would give."""

import logging
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from actlake.storage.errors import InvalidQuery, NotInStore, StoreDamaged, UnknownSplit

PLACES = {"first": [0], "last": [-1], "all": slice(None)}


def by_hand(told, pattern, at):
    """Search each text and look at every token's true character span.

    The last token is one that has seen the whole match only if both are in one context.
    """
    return sorted(_by_hand(told, pattern, at)[0])


def of_text(text):
    """A pattern that finds a text wherever it stands, also within itself."""
    return f"(?=({re.escape(text)}))"


def _by_hand(told, pattern, at):
    found, num_across = set(), 0
    context = np.cumsum(told.positions == 0)
    for name, text in dict(zip(told.names, told.texts, strict=True)).items():
        for match in re.finditer(pattern, text):
            span = match.span(match.re.groups)
            if span[0] == span[1]:
                continue
            rows = told.overlapping(name, *span)
            laid = {c for row in rows for c in range(*told.spans[row])}
            if not set(range(*span)) <= laid:
                continue
            if at == "last" and len(set(context[rows])) > 1:
                num_across += 1
            else:
                found.update(np.array(rows)[PLACES[at]].tolist())
    return found, num_across


@pytest.mark.parametrize("at", ["first", "last", "all"])
@pytest.mark.parametrize("cut", [None, 7, 22])
@pytest.mark.parametrize("keep_text", [True, False])
@pytest.mark.parametrize("text", ["New York", "Paris", " is", "🙂", "naïve Z", "k is", "雪", "\n"])
def test_text_is_found_however_it_is_tokenised(shelf, text, at, cut, keep_text):
    told = shelf(cut=cut, keep_text=keep_text)

    rows = told.store().find(text=text, at=at)

    assert rows.rows.tolist() == by_hand(told, of_text(text), at)


@pytest.mark.parametrize("at", ["first", "last", "all"])
@pytest.mark.parametrize("text", ["ana", "a a", "  "])
def test_text_that_stands_within_itself_is_found_each_time(make_told, text, at):
    told = make_told(text="banana, a a a banana    anana")

    rows = told.store().find(text=text, at=at)

    assert rows.rows.tolist() == by_hand(told, of_text(text), at)
    assert len(rows) > 0


@pytest.mark.parametrize("asked", [{"text": " in Fr"}, {"regex": r"is \w+ \w+"}])
def test_what_no_token_has_seen_whole_is_left_out_and_counted(shelf, asked, caplog):
    told = shelf(length=3)
    pattern = of_text(asked["text"]) if "text" in asked else asked["regex"]
    expected, num_across = _by_hand(told, pattern, "last")

    with caplog.at_level(logging.WARNING):
        rows = told.store().find(**asked)

    assert rows.rows.tolist() == sorted(expected)
    assert num_across > 0
    assert f"({num_across} across a context's border left out)" in rows.found_by
    assert f"{num_across} across a context's border left out" in caplog.text
    assert "left out" not in told.store().find(**asked, at="all").found_by


def test_of_a_split_only_its_own_documents_are_read(make_told):
    """The texts of the others may be anything."""
    told = make_told()
    documents = told.folder / "documents.parquet"
    table = pq.read_table(documents)
    pq.write_table(table, documents, row_group_size=1, compression="none")
    torn = bytearray(documents.read_bytes())
    for place in [n for n, split in enumerate(table["split"].to_pylist()) if split == "test"]:
        column = (
            pq.read_metadata(documents).row_group(place).column(table.column_names.index("text"))
        )
        start = column.dictionary_page_offset or column.data_page_offset
        torn[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    documents.write_bytes(torn)

    rows = told.store().find(text="New", split="train")

    assert rows.rows.tolist() == [
        row for row in by_hand(told, "New", "last") if told.splits[row] == "train"
    ]
    with pytest.raises(StoreDamaged, match=r"documents\.parquet"):
        told.store().find(text="New")


@pytest.mark.parametrize("at", ["first", "last", "all"])
@pytest.mark.parametrize("regex", [r"\bNew\s+York\b", r"(?i)york", r"[🙂–]", r"x*", r"class \w"])
def test_a_regular_expression_finds_what_pythons_re_finds(told, regex, at):
    rows = told.store().find(regex=regex, at=at)

    assert rows.rows.tolist() == by_hand(told, regex, at)


@pytest.mark.parametrize("regex", ["^", "(?=Paris)", "x*", r"\b"])
def test_where_all_matches_are_empty_the_log_says_so(told, regex, caplog):
    matches = sum(len(list(re.finditer(regex, text))) for text in set(told.texts))

    with caplog.at_level(logging.WARNING):
        rows = told.store().find(regex=regex)

    assert len(rows) == 0
    (record,) = caplog.records
    assert record.message.startswith(f"All {matches} matches of {regex!r} in ")


@pytest.mark.parametrize("regex", ["Paris|", "London"])
def test_where_a_match_covers_text_or_there_is_none_nothing_is_logged(told, regex, caplog):
    with caplog.at_level(logging.WARNING):
        told.store().find(regex=regex)

    assert caplog.records == []


def test_every_token_of_the_vocabulary_is_found_by_its_name_and_its_number(told):
    store = told.store()

    for name, token in told.tokenizer.get_vocab().items():
        expected = np.flatnonzero(told.ids == token).tolist()
        assert store.find(token=token).rows.tolist() == expected
        if name not in store.lookup.vocabulary.texts.values():
            assert store.find(token=name).rows.tolist() == expected


def test_every_token_is_found_by_the_text_it_stands_for(told):
    store = told.store()
    decoded = [told.tokenizer.decode([t], skip_special_tokens=False) for t in told.ids.tolist()]

    for text in {text for text in decoded if "\ufffd" not in text}:
        expected = [row for row, other in enumerate(decoded) if other == text]
        assert store.find(token=text).rows.tolist() == expected


def test_a_list_of_tokens_finds_any_of_them(told):
    some = np.unique(told.ids)[:3].tolist()

    rows = told.store().find(token=some)

    assert rows.rows.tolist() == np.flatnonzero(np.isin(told.ids, some)).tolist()


def test_numbers_may_be_numpys(told):
    store = told.store()
    token = told.ids[0]

    assert store.find(token=token) == store.find(token=int(token))
    assert store.find(token=np.array([token])) == store.find(token=int(token))
    assert store.find(document_number=np.int64(1)) == store.find(document_number=1)


def test_documents_are_found_by_id_and_by_number(told):
    store = told.store()
    names = np.array(told.names)

    assert store.find(document="york").rows.tolist() == np.flatnonzero(names == "york").tolist()
    assert store.find(document_number=1) == store.find(document="york")
    assert store.find(document_number=[1, 3], document=["york", "snow"]) == store.find(
        document="york"
    )
    both = store.find(document=["again", "code"])
    assert both.rows.tolist() == np.flatnonzero(np.isin(names, ["again", "code"])).tolist()


def test_a_split_is_found(told):
    rows = told.store().find(split="test")

    assert rows.rows.tolist() == np.flatnonzero(np.array(told.splits) == "test").tolist()


def test_criteria_narrow_each_other(told):
    store = told.store()
    alone = [
        store.find(text="Paris", at="all"),
        store.find(split="train"),
        store.find(document=["again", "paris"]),
        store.find(where="position > 3"),
        store.find(regex="[Pi]", at="all"),
    ]

    together = store.find(
        text="Paris",
        at="all",
        split="train",
        document=["again", "paris"],
        where="position > 3",
        regex="[Pi]",
    )

    expected = set(alone[0]).intersection(*alone[1:])
    assert set(together) == expected
    assert len(expected) > 1


def test_what_occurs_nowhere_is_no_rows_and_no_error(told):
    assert len(told.store().find(text="London")) == 0
    assert repr(told.store().find(text="London")) == "no rows: text 'London'"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, r"nothing to look for\nhint: give at least one of token, text, regex, document"),
        ({"text": ""}, "An empty text stands everywhere"),
        ({"regex": "("}, r"'\(' is not a regular expression: missing \)"),
        ({"text": "a", "at": "middle"}, "at is 'last', 'first' or 'all', not 'middle'"),
        ({"token": []}, "token is an empty list"),
        ({"token": [" is", 1.5]}, r"A token is named .* not by 1\.5, of type float\nhint: give"),
        ({"token": b"is"}, "not by b'is', of type bytes"),
        ({"token": True}, "not by True, of type bool"),
        ({"document": 1.5}, r"A document is named .* not by 1\.5"),
        ({"document": ["paris", None]}, "not by None, of type NoneType"),
        ({"text": 5}, r"text is 5, of type int\nhint: give it as text"),
        ({"regex": 5}, "regex is 5, of type int"),
        ({"regex": b"Paris"}, "regex is b'Paris', of type bytes"),
        ({"regex": re.compile(b"Paris")}, "regex is b'Paris', of type bytes"),
        ({"regex": ""}, "An empty pattern matches everywhere"),
        ({"regex": re.compile("")}, "An empty pattern matches everywhere"),
        (
            {"document_number": "york"},
            r"document_number is a whole number, not 'york', of type str",
        ),
        ({"document_number": [True]}, "document_number is a whole number, not True"),
        ({"document_number": []}, "document_number is an empty list"),
        ({"where": "document = 3"}, r'"document" not found[\s\S]*document_number'),
        ({"split": 5}, "split is 5, of type int"),
        ({"where": 5}, "where is 5, of type int"),
        ({"where": ""}, r"An empty predicate .*\nhint: leave where out"),
        ({"at": ["last"], "text": "a"}, r"at is .* not \['last'\]"),
        ({"where": "position <"}, "where='position <' is not valid SQL"),
        ({"where": "positoin < 3"}, r'"positoin" not found[\s\S]*hint: there are tokens\(row, id'),
        ({"where": "1; select 2"}, "is not valid SQL"),
    ],
)
def test_a_question_without_sense_is_refused_with_a_hint(told, asked, words):
    with pytest.raises(InvalidQuery, match=words):
        told.store().find(**asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"token": " Pariss"}, r"is not a token of .*; it is the 2 tokens ' Paris' 's'\nhint: did"),
        ({"token": ""}, "hint: a token has at least one character"),
        ({"token": 4000}, "There is no token 4000; the store's tokenizer has 3"),
        ({"document": "parid"}, r"no document 'parid' in .*\nhint: did you mean 'paris'\?"),
        ({"document": 3}, r"no document '3' in .*\nhint: .*; document_number=3 asks for"),
        ({"document_number": 6}, r"no document number 6; .* has 6\nhint: documents are numbered"),
        ({"document_number": -1}, "no document number -1"),
    ],
)
def test_an_unknown_token_or_document_names_the_nearest(told, asked, words):
    with pytest.raises(NotInStore, match=words):
        told.store().find(**asked)


def test_an_unknown_split_names_the_nearest(told):
    with pytest.raises(UnknownSplit, match=r"no split 'tset' in [\s\S]*did you mean 'test'"):
        told.store().find(split="tset")


def test_text_that_was_not_kept_and_cannot_be_decoded_is_refused_not_guessed(make_told):
    told = make_told(keep_text=False)
    store = told.store()
    vocabulary = store.lookup.vocabulary
    wrong = dict(vocabulary.texts)
    wrong[int(told.ids[0])] = "other"
    vocabulary.texts = wrong  # as of a tokenizer that rewrites what it reads

    with pytest.raises(InvalidQuery, match=r"made without text[\s\S]*corpus\.keep_text"):
        store.find(text="Paris")
