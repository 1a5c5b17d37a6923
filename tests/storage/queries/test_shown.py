"""What a notebook shows for a store: well-formed, escaped, with coverage and norms."""

from xml.etree import ElementTree

from actlake.storage import Lease, Site
from actlake.storage.location import LocalFolder
from actlake.storage.summary import summarize
from actlake.storage.verify import revoke_shards


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


def test_html_of_an_unfinished_store_says_how_much_is_missing(told):
    with Lease.acquire(LocalFolder(told.folder)) as lease:
        revoke_shards(lease, [(Site(2), 1)])
    store = told.store()
    units = store.schema.num_units

    text = " ".join(parsed(store._repr_html_()).itertext())

    assert "incomplete" in text
    assert f"{(units - 1) / units:.0%}" in text


def test_html_escapes_what_the_store_says_of_itself(told):
    store = told.store()
    store.provenance.model["name"] = "<script>alert(1)</script>"

    page = summarize(store).as_html()

    assert "<script>" not in page
    assert "&lt;script&gt;" in page
