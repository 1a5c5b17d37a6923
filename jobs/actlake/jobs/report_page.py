"""A report as one HTML file that needs nothing else: no network, no fonts, no pictures beside it.

    page("SAEs of SmolLM2", [
        section("Result", facts({"store": "1a2b…"}), figures({"loss": png})),
        section("Table", table(["SAE", "FVU"], [["topk", number(0.12)]])),
    ])

What is plain `str` is text and is escaped, wherever it comes from; only `Html` is taken as
markup, and only this module and `Html(...)` make it.
"""

import base64
import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from actlake.platform.tracking import Tracker


class Html(str):
    """Text that is markup already. `Html("<b>")` says so of a literal; never of data."""

    __slots__ = ()


EMPTY = Html("")


def escape(text: str) -> Html:
    """Text as markup; what is `Html` already stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other, text among them escaped."""
    return Html(escape(between).join(map(escape, parts)))


def element(tag: str, *parts: str, **attributes: str) -> Html:
    """``<tag name="value">parts</tag>``; ``class_`` stands for ``class``."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
    )
    return Html(f"<{tag}{written}>{joined(parts)}</{tag}>")


def number(value: float, digits: int = 4) -> str:
    """A number for people; – where there is none."""
    return f"{value:,.{digits}f}" if np.isfinite(value) else "–"


def paragraph(*parts: str) -> Html:
    """A paragraph of text."""
    return element("p", *parts)


def facts(known: Mapping[str, str]) -> Html:
    """Names and what they are, one a line."""
    lines = (
        element("tr", element("th", name), element("td", value)) for name, value in known.items()
    )
    return element("table", *lines, class_="facts")


def table(head: Sequence[str], body: Iterable[Sequence[str]], *, caption: str = "") -> Html:
    """A table; a click on a column's head sorts by it. Cells that read as numbers align right."""
    top = element("thead", element("tr", *(element("th", name) for name in head)))
    rows = element("tbody", *(element("tr", *map(_cell, row)) for row in body))
    whole = element("table", top, rows, class_="data")
    note = element("div", caption, class_="caption") if caption else EMPTY
    return element("div", whole, note, class_="scroll")


# 12 · 1,234.5 · 1.2e-3 · 12 % · 0.5 ± 0.1 · –
_NUMBER = re.compile(r"[-+−]?[\d,.]+(e[-+]?\d+)?( ?%| ?± ?[\d,.]+)?|–|")


def _cell(content: str) -> Html:
    is_number = not isinstance(content, Html) and _NUMBER.fullmatch(content)
    return element("td", content, class_="number") if is_number else element("td", content)


def figure(name: str, png: bytes, *, caption: str = "") -> Html:
    """A picture, inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    picture = Html(f'<img alt="{html.escape(name)}" src="{source}">')
    return element("figure", picture, *([element("figcaption", caption)] if caption else []))


def figures(drawn: Mapping[str, bytes], captions: Mapping[str, str] | None = None) -> Html:
    """Pictures beside each other."""
    captions = captions or {}
    shown = (figure(name, png, caption=captions.get(name, "")) for name, png in drawn.items())
    return element("div", *shown, class_="figures") if drawn else EMPTY


def section(title: str, *parts: str, folded: bool | None = None) -> Html:
    """A part of the page with a heading, listed in the page's contents.

    Parameters
    ----------
    folded
        Whether it is closed at first; None for a section that cannot be folded.
    """
    name = _anchor(title)
    if folded is None:
        return element("section", element("h2", title), *parts, id=name)
    opened = Html("" if folded else " open")
    summary = element("summary", element("h2", title))
    return Html(f'<details id="{name}"{opened}>{summary}{joined(parts)}</details>')


def card(title: str, *parts: str) -> Html:
    """A framed part within a section."""
    return element("article", element("h3", title), *parts)


def warnings(found: Iterable[str]) -> Html:
    """A section of warnings; nothing where there are none."""
    items = [element("li", warning) for warning in found]
    return section("Warnings", element("ul", *items, class_="warnings")) if items else EMPTY


def page(title: str, sections: Iterable[Html], *, lead: str = "", style: str = "") -> str:
    """The whole page.

    Parameters
    ----------
    sections
        From `section`; anything else stands between them.
    lead
        A sentence under the title.
    style
        CSS of this report's own, after the common one.
    """
    sections = _with_places(sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1>"
        + (f'<p class="lead">{escape(lead)}</p>' if lead else "")
        + _contents(sections)
        + f"</header><main>{joined(sections)}</main><script>{_SORT}</script></body></html>\n"
    )


def publish(
    folder: Path, content: str, drawn: Mapping[str, bytes], tracker: Tracker, *, step: int
) -> Path:
    """Write ``report.html`` and ``pictures/*.png``, hand both to the tracker; the page's path."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, png in drawn.items():
        (pictures / f"{name}.png").write_bytes(png)
        tracker.image(f"pictures/{name}", png, step=step)
    path = folder / "report.html"
    path.write_text(content, encoding="utf-8")
    tracker.html("report", content, step=step)
    return path


_HEADING = re.compile(r'<(?:section|details) id="([^"]*)"[^>]*>(?:<summary>)?<h2>(.*?)</h2>', re.S)


def _contents(sections: Sequence[Html]) -> Html:
    found = [match for part in sections for match in _HEADING.findall(part)]
    if len(found) < 3:
        return EMPTY
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return Html(f"<nav>{links}</nav>")


_PLACE = re.compile(r'(<(?:section|details) id=")([^"]*)"')


def _with_places(sections: Iterable[Html]) -> list[Html]:
    """The same, with the second and later of one title under a name of their own."""
    used: Counter[str] = Counter()

    def numbered(place: re.Match[str]) -> str:
        name = place[2]
        used[name] += 1
        return place[0] if used[name] == 1 else f'{place[1]}{name}.{used[name]}"'

    return [Html(_PLACE.sub(numbered, part)) for part in sections]


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


_STYLE = """
:root{color-scheme:light dark;--ink:#1d232b;--dim:#667180;--line:#dfe3e8;--paper:#fff;
--shade:#f5f7f9;--accent:#2f5d8a;--mark:47,93,138}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#98a2ae;--line:#343b44;--paper:#15181c;
--shade:#1d2127;--accent:#8fb8e0;--mark:120,170,225}}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);
background:var(--paper);max-width:78rem;margin:0 auto;padding:2rem 1.25rem 5rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.015em}
h2{font-size:1.2rem;margin:2.4rem 0 .7rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:0 0 .5rem}
.lead{color:var(--dim);font-size:1.05rem;margin:.2rem 0 1rem;max-width:60rem}
p{max-width:60rem}a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;padding:.55rem 0;
border-block:1px solid var(--line);font-size:.9rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
section,details{scroll-margin-top:1rem}
summary{cursor:pointer}summary h2{display:inline-block;margin:1.6rem 0 .7rem}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600}.data{min-width:30rem}.data thead th{color:var(--dim);cursor:pointer;
white-space:nowrap;position:sticky;top:0;background:var(--paper)}
.data thead th[data-order="1"]::after{content:" ▴"}
.data thead th[data-order="-1"]::after{content:" ▾"}
.data tbody tr:hover{background:var(--shade)}td.number{text-align:right;white-space:nowrap}
.scroll{overflow:auto;max-height:42rem;margin:.8rem 0}.caption{color:var(--dim);font-size:.85rem;
margin-top:.4rem}
.facts th{color:var(--dim);font-weight:500;white-space:nowrap;padding-left:0}
.facts td{overflow-wrap:anywhere}
.figures{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}figure{margin:0;max-width:36rem}
img{max-width:100%;display:block;background:#fff;border:1px solid var(--line);border-radius:8px}
figcaption{color:var(--dim);font-size:.85rem;margin-top:.35rem}
article{border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem;margin:1rem 0;
background:var(--paper)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.88em}
.warnings li{margin:.25rem 0}
@media print{nav,script{display:none}.scroll{max-height:none}details{display:block}}
"""

# Sorts a table by the column whose head is clicked: numbers as numbers, – last.
_SORT = """
for(const head of document.querySelectorAll("table.data thead th"))head.onclick=()=>{
const body=head.closest("table").tBodies[0],at=head.cellIndex,order=head.dataset.order==="-1"?1:-1;
for(const other of head.parentNode.children)delete other.dataset.order;head.dataset.order=order;
const value=row=>{const text=row.cells[at].textContent.trim(),n=parseFloat(text.replace(/,/g,""));
return isNaN(n)?(text==="–"||text===""?null:text):n};
[...body.rows].map(row=>[value(row),row]).sort(([a],[b])=>a===null?1:b===null?-1:
typeof a==="number"&&typeof b==="number"?order*(a-b):order*String(a).localeCompare(String(b)))
.forEach(([,row])=>body.append(row))}
"""
