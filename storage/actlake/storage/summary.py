"""What a terminal and a notebook show for a store, or for several read as one."""

import html
import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.bar import Bar
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from actlake.storage.printable import printable
from actlake.storage.provenance import shortened
from actlake.storage.querying.labels import attached_names
from actlake.storage.querying.parts import parts_of
from actlake.storage.sites import Site
from actlake.storage.stored_moments import largest_blocks

if TYPE_CHECKING:  # both show summaries
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore, Coverage

# Of moments: more are not read unasked. 10⁶ units are some sixty, unless they are scattered.
_MOST_FILES_TO_READ = 500


@dataclass(frozen=True, slots=True)
class SiteLine:
    """One stored site."""

    site: Site
    coverage: "Coverage"
    num_bytes: int
    """Of its committed rows."""
    mean_norm: float | None
    """Mean norm of the committed rows under the default exclusion; None if not summed up."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A store at a glance."""

    title: str
    url: str
    fingerprint: str
    facts: tuple[tuple[str, str], ...]
    sites: tuple[SiteLine, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every unit of every site is committed."""
        return all(line.coverage.is_complete for line in self.sites)

    def as_text(self, *, width: int = 100) -> str:
        """For a terminal, without colours."""
        out = io.StringIO()
        console = Console(file=out, width=width, color_system=None)
        self.print(console)
        return out.getvalue().rstrip()

    def print(self, console: Console) -> None:
        """Show it on a console."""
        # Text, not str: Rich would read what a path or a name has in brackets as markup.
        url = (printable(self.url), "bold")
        console.print(Text.assemble(f"{self.title} ", url), soft_wrap=True)
        facts = Table.grid(padding=(0, 2))
        facts.add_column(no_wrap=True)
        facts.add_column(overflow="fold")
        for name, value in self.facts:
            facts.add_row(f"  {name}", Text(printable(value)))
        console.print(facts)
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        for column, justify in _COLUMNS.items():
            table.add_column(column, justify=justify)
        table.add_column()  # the norms as bars
        for line, share in zip(self.sites, _norm_shares(self.sites), strict=True):
            bar = Bar(1.0, 0.0, share, width=_BAR_CHARACTERS)
            table.add_row(*_cells(line), bar if share else "")
        if not self.sites:
            console.print("  no sites yet")
        elif _width(table, console) <= console.width:
            console.print(table)
        else:  # a name that is cut off would be another site's
            for line in self.sites:
                words = ", ".join(filter(None, map(str.strip, _cells(line)[1:3])))
                norm = "" if line.mean_norm is None else f", mean norm {line.mean_norm:,.2f}"
                console.print(Text(f"  {line.site}\n    {words}{norm}"), soft_wrap=True)

    def as_html(self) -> str:
        """For a notebook, light or dark: only the bars have a colour of their own."""
        facts = "".join(
            f"<tr><td {_CELL};opacity:.65'>{html.escape(name)}</td>"
            f"<td {_CELL}'>{html.escape(value)}</td></tr>"
            for name, value in self.facts
        )
        sites = "".join(map(_site_row, self.sites, _norm_shares(self.sites)))
        head = "".join(
            f"<th style='text-align:{align};padding:2px 12px 2px 0;opacity:.65;font-weight:400'>"
            f"{html.escape(column.strip())}</th>"
            for column, align in _COLUMNS.items()
        )
        state = "complete" if self.is_complete and self.sites else "incomplete"
        return (
            "<div style='border:1px solid rgba(128,128,128,.35);border-radius:8px;"
            "padding:10px 14px;display:inline-block;line-height:1.4'>"
            f"<div><b>{html.escape(self.title)}</b> <code>{html.escape(self.url)}</code> "
            f"<span style='opacity:.65'>· {state if self.sites else 'no sites yet'}</span></div>"
            f"<table>{facts}</table>"
            + (f"<table><tr>{head}<th></th></tr>{sites}</table>" if self.sites else "")
            + "</div>"
        )


_CELL = "style='text-align:left;padding:1px 12px 1px 0"
_BLUE, _GREEN, _AMBER = "#4c8dd6", "#3fa66b", "#d99a2b"
_BAR_CHARACTERS = 12

_COLUMNS: dict[str, Literal["left", "right"]] = {
    "  site": "left",
    "committed": "left",
    "size": "right",
    "mean norm": "right",
}


def summarize(store: "ActivationStore | ManyStores") -> Summary:
    """Gather what `Summary` shows; reads the ledger's state, moments and contexts, no rows."""
    stores = [part.store for part in parts_of(store)]
    number = len(stores)
    return Summary(
        "Activation store" if number == 1 else f"{number} activation stores read as one:",
        store.url,
        store.fingerprint,
        _facts(stores),
        tuple(_line(store, stores, site) for site in store.sites),
    )


def _facts(stores: Sequence["ActivationStore"]) -> tuple[tuple[str, str], ...]:
    schemas = [store.schema for store in stores]
    model = stores[0].provenance.model.get("name", "unknown model")
    revision = str(stores[0].provenance.model.get("revision", "")).removeprefix("sha256:")[:12]
    labels = sorted({name for store in stores for name in attached_names(store)})
    unit_rows = _listed(f"{s.geometry.unit_rows:,}" for s in schemas)
    specs = [one.spec(site) for one in stores for site in one.sites]
    chunks = _listed(f"{spec.chunk_length:,}" for spec in specs)
    rows_are = [one.schema_of(site) for one in stores for site in one.sites]
    kinds = "".join(dict.fromkeys(f"{schema}, " for schema in rows_are))
    unknown = dict.fromkeys(
        f"{site} ({why})" for store in stores for site, why in store.unknown_sites.items()
    )
    facts = {
        "model": f"{model} {revision}".strip(),
        "rows": f"{sum(s.num_rows for s in schemas):,} tokens in "
        f"{sum(s.num_contexts for s in schemas):,} contexts of up to "
        f"{max(s.context_length for s in schemas)}, "
        f"{sum(s.documents for s in schemas):,} documents",
        "appended": "; ".join(
            f"{len(stretch.rows):,} tokens from row {stretch.rows.start:,}"
            for schema in schemas
            for stretch in schema.stretches[1:]
        ),
        "layout": _listed(s.layout for s in schemas),
        "splits": _splits(stores),
        "stored as": f"{kinds}{sum(s.num_units for s in schemas):,} units of {unit_rows} rows"
        + (f", chunks of {chunks}" if chunks else ""),
        "not readable here": "; ".join(unknown),
        "labels": ", ".join(labels),
        "fingerprint": _listed(shortened(store.fingerprint) for store in stores),
    }
    return tuple((name, value) for name, value in facts.items() if value)


def _splits(stores: Sequence["ActivationStore"]) -> str:
    """The splits, and of all rows the share that each has."""
    rows: Counter[str] = Counter()
    for store in stores:
        rows.update(store.lookup.rows_per_split())
    total = max(1, rows.total())
    return ", ".join(f"{name} {count / total:.1%} of the rows" for name, count in rows.items())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _line(
    store: "ActivationStore | ManyStores", stores: Sequence["ActivationStore"], site: Site
) -> SiteLine:
    coverage = store.coverage(site)
    files = (block for one in stores for block in largest_blocks(one.ledger.covered[site]))
    num_files = sum(1 for _ in itertools.islice(files, _MOST_FILES_TO_READ + 1))
    return SiteLine(
        site,
        coverage,
        coverage.rows * stores[0].schema_of(site).row_bytes,
        store.moments(site).mean_norm if 0 < num_files <= _MOST_FILES_TO_READ else None,
    )


def _norm_shares(lines: Sequence[SiteLine]) -> list[float]:
    """Of each site, its mean norm over the largest; 0 where it is not known or no number."""
    norms = [line.mean_norm or 0.0 for line in lines]
    finite = [norm if math.isfinite(norm) else 0.0 for norm in norms]
    largest = max(finite, default=0.0) or 1.0
    return [norm / largest for norm in finite]


def _cells(line: SiteLine) -> tuple[str, str, str, str]:
    norm = "" if line.mean_norm is None else f"{line.mean_norm:,.2f}"
    return f"  {line.site}", str(line.coverage), human_bytes(line.num_bytes), norm


def _site_row(line: SiteLine, norm_share: float) -> str:
    site, committed, size, norm = (html.escape(cell.strip()) for cell in _cells(line))
    coverage = line.coverage
    share = coverage.units / coverage.total_units
    covered = _bar(share, 60, _GREEN if coverage.is_complete else _AMBER)
    norms = _bar(norm_share, 140, _BLUE)
    numeric = _CELL.replace("left", "right", 1)
    return (
        f"<tr><td {_CELL}'><code>{site}</code></td>"
        f"<td {_CELL}' title='{committed}'>{covered} {share:.0%}</td>"
        f"<td {numeric}'>{size}</td><td {numeric}'>{norm}</td><td {_CELL}'>{norms}</td></tr>"
    )


def _bar(share: float, width: int, colour: str) -> str:
    """A bar on a faint track."""
    filled = round(width * share)
    track = f"<rect width='{width}' height='8' rx='2' fill='currentColor' opacity='.12'/>"
    bar = f"<rect width='{filled}' height='8' rx='2' fill='{colour}'/>"
    return f"<svg width='{width}' height='8' role='img'>{track}{bar}</svg>"


def _width(table: Table, console: Console) -> int:
    """Characters that a table takes where there is room for all of it."""
    options = console.options.update(max_width=10_000)
    return Measurement.get(console, options, table).maximum


def human_bytes(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000: ``92.2 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.95:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} PB"
