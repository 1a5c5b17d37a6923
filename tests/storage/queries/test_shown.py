"""What a notebook shows for a store: well-formed, escaped, with coverage and norms."""

import re
from xml.etree import ElementTree

import pytest

from actlake.storage import Site, open_store
from actlake.storage.errors import InvalidQuery
from actlake.storage.summary import summarize


@pytest.fixture
def two_sites(known, folder):
    """A store of two sites, the rows of one three times as long as those of the other."""
    known.acts[Site(3)] = 3 * known.acts[Site(0)]
    known.build(folder)
    known.fill(folder)
    return open_store(folder)


def parsed(page):
    return ElementTree.fromstring(f"<page>{page}</page>")


def test_html_says_what_is_stored_how_much_of_it_and_how_large(told):
    page = parsed(told.store()._repr_html_())
    text = " ".join(page.itertext())

    assert "complete" in text
    assert "resid_post.2" in text
    assert "100%" in text
    assert f"{len(told.ids):,} tokens" in text
    assert len(list(page.iter("svg"))) == 2  # coverage and norm


def test_html_of_an_unfinished_store_says_how_much_is_missing(make_told):
    told = make_told(skip=(1,))
    store = told.store()
    units = store.schema.num_units

    text = " ".join(parsed(store._repr_html_()).itertext())

    assert "incomplete" in text
    assert f"{(units - 1) / units:.0%}" in text


def test_the_bars_of_two_sites_are_as_long_as_their_norms(two_sites):
    bars = [
        [float(rect.get("width")) for rect in picture.iter("rect")]
        for picture in parsed(two_sites._repr_html_()).iter("svg")
    ]

    coverage, norms = bars[::2], bars[1::2]
    assert [filled / track for track, filled in coverage] == [1, 1]
    assert [filled / track for track, filled in norms] == pytest.approx([1 / 3, 1], abs=0.01)


def test_a_terminal_shows_the_norms_as_bars_too(two_sites):
    lines = repr(two_sites).splitlines()

    short, long = (next(line for line in lines if f"resid_post.{n} " in line) for n in (0, 3))
    assert long.count("█") == 12
    assert short.count("█") == 4


def test_a_site_with_no_rows_yet_has_an_empty_bar(known, folder):
    known.build(folder)
    known.fill(folder, (Site(0),), skip=tuple(range(11)))
    store = open_store(folder)

    coverage, norm = parsed(store._repr_html_()).iter("svg")

    assert [picture[1].get("width") for picture in (coverage, norm)] == ["0", "0"]
    assert "█" not in repr(store)


def test_attached_labels_are_listed_by_name(told):
    store = told.store()
    assert "\n  labels " not in repr(store)
    for name in ("marks", "kind"):
        store.attach_labels(name, {"row": [3], "x": [1]}, key="row")

    text = " ".join(parsed(store._repr_html_()).itertext())

    assert "labels kind, marks" in text
    assert "\n  labels       kind, marks" in repr(store)


def test_html_escapes_what_the_store_says_of_itself(told):
    store = told.store()
    store.provenance.model["name"] = "<script>alert(1)</script>"

    page = summarize(store).as_html()

    assert "<script>" not in page
    assert "&lt;script&gt;" in page


HOSTILE = "\x1b]0;owned\x07 \x9b2J \x1b[31mred\rover\u202egnp.exe\u2028\x7f"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def test_what_a_text_says_to_terminals_is_shown_and_not_done(tmp_path, tokenizer, make_told):
    told = make_told(text=HOSTILE)
    store = told.store()
    store.provenance.model["name"] = HOSTILE
    store.attach_labels("mark", {"row": [3], HOSTILE: [HOSTILE]}, key="row")

    found = store.find(regex="owned")
    shown = [
        repr(found),
        repr(found.context()),
        str(found.context()[0]),
        found.context()._repr_html_(),
        repr(store),
        repr(store.labels("mark")),
        repr(store.sql("SELECT text, id FROM documents ORDER BY text LIKE '%owned%' DESC")),
        store.sql(f'SELECT text AS "{HOSTILE}" FROM documents')._repr_html_(),
    ]
    with pytest.raises(InvalidQuery) as refused:
        store.sql("SELECT text::int FROM documents WHERE text LIKE '%owned%'").table()

    for text in [*shown, str(refused.value)]:
        assert not CONTROLS.search(text), text
    assert "owne⟦d⟧␇" in repr(found)
    assert "␛]0;owned␇" in str(refused.value)
    assert found.context()[0].token in HOSTILE  # as data it is what it is
