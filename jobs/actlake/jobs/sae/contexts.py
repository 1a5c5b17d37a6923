"""What makes a latent fire, as text: its strongest contexts, values, and the tokens it promotes.

    latents = choose_latents(scores.density, 24)
    pages = latent_pages(sae, store, ["resid_post.9"], latents, split="test", head=head)

Whole contexts of a split are searched, spread evenly, up to a number of rows; a context counts
once, by the row in which the latent is strongest. Position 0, special ids and rows that are not
chosen are left out, as in training. Text is decoded with the store's own tokenizer; tokens that
share a character are shown as one.

Shapes:  N rows   S sites   D width   F latents   K latents that are looked at   C contexts
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.chosen_rows import ChosenRows
from actlake.jobs.sae.evaluation import Coder
from actlake.jobs.sae.promoted import Promoted, promoted_tokens
from actlake.platform.models import ModelHead
from actlake.storage import ActivationStore, Extent, Site
from actlake.storage.moments import is_excluded

Array = np.ndarray[Any, Any]
_ROWS_AT_ONCE = 4096
_ENCODED_AT_ONCE = 1024
_BINS = 30


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one token, or of several that share a character, and how active it is."""

    text: str
    value: float


@dataclass(frozen=True, slots=True)
class ActiveContext:
    """What stands around a row in which a latent fires."""

    row: int
    document: str
    """Id of its document."""
    value: float
    """The latent's value at the row."""
    pieces: tuple[Piece, ...]
    peak: int
    """Number of the piece that the row is in."""


@dataclass(frozen=True)
class LatentPage:
    """All that a reader is shown of a latent."""

    latent: int
    density: float
    """Share of the searched rows that count in which it is active."""
    max_active: float
    mean_active: float
    """Mean of its values where it is active."""
    counts: Array
    """(bins,) how many rows have a value in each bin."""
    edges: Array
    """(bins + 1,)."""
    contexts: tuple[ActiveContext, ...]
    """The strongest first."""
    tokens: Promoted | None
    """None where no head was given."""


def choose_latents(density: Array, number: int) -> list[int]:
    """Latents that are active, evenly from the rarest to the most frequent; by number.

    Parameters
    ----------
    density
        (F,) share of rows in which each is active.
    """
    alive = np.flatnonzero(density > 0)
    ordered = alive[np.argsort(density[alive], kind="stable")]
    if not len(ordered) or number < 1:
        return []
    places = np.unique(np.linspace(0, len(ordered) - 1, number).round().astype(int))
    return sorted(ordered[places].tolist())


def latent_pages(
    sae: Coder,
    store: ActivationStore,
    sites: Sequence[str | Site],
    latents: Sequence[int],
    *,
    split: str = "test",
    rows: int = 100_000,
    contexts: int = 6,
    before: int = 24,
    after: int = 8,
    directions: Tensor | None = None,
    head: ModelHead | None = None,
    chosen: ChosenRows | None = None,
    excluded: bool = False,
    device: torch.device | str = "cpu",
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[LatentPage]:
    """Search rows of a split for what makes latents fire.

    Memory: a block of rows and its latents, and the values of `latents` that are not 0.

    Parameters
    ----------
    sites
        What `sae` reads: one site, or those of a crosscoder in its order.
    latents
        Their numbers, as of `choose_latents`.
    rows
        Rows to search, at most.
    contexts
        Contexts to show of each.
    before, after
        Tokens shown to each side, within the context.
    directions
        (F, D) what each latent adds to the residual stream; needed with `head`.
    head
        Of the model, for the promoted tokens.
    chosen
        Rows that count, of the contexts that are searched; None: all.
    excluded
        Whether position 0 and special tokens count too, as where the SAE was trained on them.
    device
        Where `sae` computes.
    on_rows
        Told how many rows have been searched since it was told last.

    Raises
    ------
    UnknownSplit
        The store has no such split.
    SiteNotStored, RowsNotCommitted
        As their names say.
    """
    if not latents:
        return []
    reader = _Reader(
        sae, store, [store.site(site) for site in sites], list(latents), device, chosen, excluded
    )
    search = _Search(len(latents), contexts)
    for block in _blocks(store, split, rows, chosen):
        search.add(reader.active(block.rows), block.rows, block.starts)
        search.num_rows += int(reader.counts(block.rows).sum())
        on_rows(len(block.rows))
    spoken = (
        promoted_tokens(head, store.lookup.vocabulary, directions[list(latents)])
        if head is not None and directions is not None
        else [None] * len(latents)
    )
    return [
        _page(reader, search, place, before=before, after=after, tokens=tokens)
        for place, tokens in enumerate(spoken)
    ]


@dataclass(frozen=True, slots=True)
class _Block:
    rows: Array
    """(N,) of whole contexts, one after the other."""
    starts: Array
    """(C,) where in `rows` each context begins."""


def _blocks(
    store: ActivationStore, split: str, rows: int, chosen_rows: ChosenRows | None
) -> Iterator[_Block]:
    """Contexts of a split with a row that is chosen, spread evenly, until there are `rows` rows."""
    found = store.lookup.contexts_of_split(split)
    if chosen_rows is not None:
        below_start, below_stop = map(chosen_rows.rows.rank, found.T)
        found = found[below_stop > below_start]
    if not len(found):
        return
    mean_length = float((found[:, 1] - found[:, 0]).mean())
    number = max(1, min(len(found), int(rows / mean_length)))
    chosen = found[np.unique(np.linspace(0, len(found) - 1, number).astype(int))]
    lengths = chosen[:, 1] - chosen[:, 0]
    first = 0
    while first < len(chosen):
        fits = np.cumsum(lengths[first:]) <= _ROWS_AT_ONCE
        last = first + max(1, int(fits.sum()))
        extents = [Extent(*edges) for edges in chosen[first:last].tolist()]
        begins = np.concatenate([[0], np.cumsum(lengths[first:last])[:-1]])
        yield _Block(np.concatenate([np.arange(e.start, e.stop) for e in extents]), begins)
        first = last


@dataclass
class _Reader:
    """Values of the chosen latents, for any rows."""

    sae: Coder
    store: ActivationStore
    sites: list[Site]
    latents: list[int]
    device: torch.device | str
    chosen: ChosenRows | None
    excluded: bool

    def active(self, rows: Array) -> Array:
        """(N, K) float32; 0 in rows that do not count."""
        parts = [self._tensor(site, rows) for site in self.sites]
        x = parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)
        with torch.inference_mode():
            parts = [
                self.sae.encode(x[start : start + _ENCODED_AT_ONCE])[:, self.latents]
                for start in range(0, len(x), _ENCODED_AT_ONCE)
            ]
        values: Array = torch.cat(parts).float().cpu().numpy()
        values[~self.counts(rows)] = 0
        return values

    def _tensor(self, site: Site, rows: Array) -> Tensor:
        acts = self.store[site].take(rows).astype(np.float32)
        return torch.from_numpy(acts).to(self.device)

    def counts(self, rows: Array) -> Array:
        """(N,) bool: chosen, and not excluded by default unless that counts too."""
        counts = np.ones(len(rows), bool)
        if not self.excluded:
            ids, positions = (self.store.tokens[name].take(rows) for name in ("id", "position"))
            counts = ~is_excluded(positions, ids, special_ids=self.store.schema.special_ids)
        return counts if self.chosen is None else counts & self.chosen.holds(rows)


@dataclass
class _Search:
    """The strongest contexts and all values of each latent, so far."""

    num_latents: int
    most: int
    peaks: list[Array] = field(default_factory=list)
    """Of each latent, (≤ most, 2) float64: magnitude and row, the strongest first."""
    values: list[list[Array]] = field(default_factory=list)
    num_rows: int = 0
    """Rows that count."""

    def __post_init__(self) -> None:
        self.peaks = [np.zeros((0, 2)) for _ in range(self.num_latents)]
        self.values = [[] for _ in range(self.num_latents)]

    def add(self, active_NK: Array, rows: Array, starts: Array) -> None:
        strength = np.abs(active_NK)
        highest_CK = np.maximum.reduceat(strength, starts, axis=0)
        lengths = np.diff(np.append(starts, len(rows)))
        for k in range(self.num_latents):
            self.values[k].append(active_NK[active_NK[:, k] != 0, k])
            fires = np.flatnonzero(highest_CK[:, k] > 0)
            best = fires[np.argsort(-highest_CK[fires, k], kind="stable")][: self.most]
            found = [
                (
                    float(highest_CK[c, k]),
                    float(
                        rows[starts[c] + strength[starts[c] : starts[c] + lengths[c], k].argmax()]
                    ),
                )
                for c in best
            ]
            both = np.concatenate([self.peaks[k], np.array(found).reshape(-1, 2)])
            self.peaks[k] = both[np.argsort(-both[:, 0], kind="stable")][: self.most]


def _page(
    reader: _Reader, search: _Search, place: int, *, before: int, after: int,
    tokens: Promoted | None,
) -> LatentPage:  # fmt: skip
    values = np.concatenate(search.values[place])
    counts, edges = np.histogram(values, bins=_BINS)
    shown = tuple(
        _context(reader, place, int(row), before=before, after=after)
        for _, row in search.peaks[place]
    )
    return LatentPage(
        latent=reader.latents[place],
        density=len(values) / max(1, search.num_rows),
        max_active=float(np.abs(values).max()) if len(values) else 0.0,
        mean_active=float(values.mean()) if len(values) else 0.0,
        counts=counts,
        edges=edges,
        contexts=shown,
        tokens=tokens,
    )


def _context(reader: _Reader, place: int, row: int, *, before: int, after: int) -> ActiveContext:
    store = reader.store
    context = store.contexts_of(Extent(row, row + 1)).start
    first, last = store.contexts["start"].read(context, context + 2).tolist()
    rows = np.arange(max(first, row - before), min(last, row + after + 1))
    values = reader.active(rows)[:, place]
    spans = readable(store.tokenizer, store.tokens["id"].take(rows).tolist())
    pieces = tuple(
        Piece(text, float(values[a + np.abs(values[a:b]).argmax()])) for a, b, text in spans
    )
    at = row - int(rows[0])
    peak = next(number for number, (a, b, _) in enumerate(spans) if a <= at < b)
    document = store.lookup.document_ids[int(store.tokens["document"].take([row])[0])]
    return ActiveContext(row, str(document), float(values[at]), pieces, peak)


def readable(tokenizer: Any, ids: list[int]) -> list[tuple[int, int, str]]:
    """``(first, last, text)`` of runs of tokens whose texts, joined, are the whole text.

    A byte-level tokenizer may split a character over tokens; those are one run.
    """

    def decode(stop: int) -> str:
        return str(tokenizer.decode(ids[:stop], skip_special_tokens=False))

    whole = decode(len(ids))
    spans, first, done = [], 0, 0
    for stop in range(1, len(ids) + 1):
        text = decode(stop) if stop < len(ids) else whole
        if whole.startswith(text) and len(text) >= done:
            spans.append((first, stop, whole[done : len(text)]))
            first, done = stop, len(text)
    return spans
