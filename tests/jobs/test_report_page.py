"""Pages that need nothing else, in which data is never taken for markup."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.jobs import pictures
from actlake.jobs.report_page import (
    Html,
    card,
    element,
    facts,
    figures,
    number,
    page,
    paragraph,
    publish,
    section,
    table,
    warnings,
)
from actlake.platform.tracking.memory import MemoryTracker

PNG = b"\x89PNG\r\n\x1a\n-made-"
EVIL = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'


class Read(HTMLParser):
    """The tags and the text of a page, and whether every tag is closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@settings(deadline=None)
@given(text=st.text(alphabet="<>&\"'/ab =", max_size=30))
def test_text_stays_text_wherever_it_is_put(text) -> None:
    content = page(
        text,
        [
            section(text, facts({text: text}), table([text], [[text]], caption=text)),
            section("b", card(text, paragraph(text)), element("span", text, title=text)),
            warnings([text]),
        ],
        lead=text,
    )

    plain, found = Read(page("t", [section("s")])), Read(content)
    assert found.count("script") == plain.count("script") == 1
    assert not found.open
    assert {tag for tag, _ in found.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "nav",
        "a", "main", "section", "table", "thead", "tbody", "tr", "th", "td", "div", "article",
        "span", "ul", "li", "script",
    }  # fmt: skip
    titles = [given["title"] for tag, given in found.tags if tag == "span"]
    assert titles == [text]


def test_markup_is_taken_only_from_what_says_that_it_is() -> None:
    shown = element("td", "<b>", Html("<b>bold</b>"), class_='"')

    assert shown == '<td class="&quot;">&lt;b&gt;<b>bold</b></td>'


def test_a_page_needs_no_network_and_holds_its_pictures() -> None:
    content = page(
        "t", [section("One", figures({"a": PNG, "b": PNG}, {"a": EVIL})), section("Two")]
    )

    found = Read(content)
    sources = [given["src"] for tag, given in found.tags if tag == "img"]
    assert len(sources) == 2
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<link", content)
    assert found.count("figcaption") == 1


def test_contents_lead_to_every_section() -> None:
    names = ("Result", "Training & test", "Ünïcode")
    content = page("t", [section(names[0]), section(names[1], folded=True), section(names[2])])

    found = Read(content)
    links = [str(given["href"])[1:] for tag, given in found.tags if tag == "a"]
    places = [given["id"] for tag, given in found.tags if "id" in given]
    assert links == places
    assert len(set(links)) == 3


def test_sections_of_the_same_name_have_places_of_their_own() -> None:
    content = page("t", [section("Latents 🙂"), section("Latents"), section("Latents")])

    places = [given["id"] for _, given in Read(content).tags if "id" in given]
    assert len(set(places)) == 3


@pytest.mark.parametrize(
    ("cell", "right"),
    [
        ("0.1234", True), ("1,234", True), ("0.5 ± 0.1", True), ("12.5 %", True), ("–", True),
        ("-1e-05", True), ("topk", False), ("resid_post.9", False), ("4608 wide", False),
    ],
)  # fmt: skip
def test_numbers_align_right_and_words_left(cell, right) -> None:
    assert ('class="number"' in table(["x"], [[cell]])) is right


def test_a_number_that_is_none_is_a_dash() -> None:
    assert number(float("nan")) == number(float("inf")) == "–"
    assert (number(1234.56789, 2), number(0.5)) == ("1,234.57", "0.5000")


def test_a_report_is_on_disk_and_with_the_tracker(tmp_path) -> None:
    tracker = MemoryTracker()

    path = publish(tmp_path / "out", "<p>page", {"loss": PNG}, tracker, step=3)

    assert path.read_text() == "<p>page"
    assert (tmp_path / "out" / "pictures" / "loss.png").read_bytes() == PNG
    assert tracker.images == [("pictures/loss", 3, PNG)]
    assert tracker.pages == [("report", 3, "<p>page")]


X = np.arange(5.0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.curves({"a": (X, X), "b": (X, X + 1)}, title="t", x="x", y="y"),
        lambda: pictures.points({"a": (X, X)}, title="t", x="x", y="y", labels={"a": "abcde"}),
        lambda: pictures.histogram(np.array([1.0, np.nan, 2.0]), title="t", x="x", y="y"),
        lambda: pictures.histogram({"a": X, "none": X[:0]}, title="t", x="x", y="y", span=(0, 1)),
        lambda: pictures.histogram(X[:0], title="t", x="x", y="y"),
        lambda: pictures.bars({"a": (1.0, 0.5, 1.5), "b": (2.0, np.nan, np.nan)}, title="t", y="y"),
        lambda: pictures.matrix(np.eye(3), "abc", "abc", title="t", x="x", y="y"),
    ],
)  # fmt: skip
def test_the_same_numbers_give_the_same_picture(draw) -> None:
    first = draw()

    assert first.startswith(b"\x89PNG")
    assert first == draw()
