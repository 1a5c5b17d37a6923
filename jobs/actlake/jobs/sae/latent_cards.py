"""A latent as a part of a page: its contexts with highlighted tokens, values, promoted tokens."""

from collections.abc import Sequence

from actlake.jobs.report_page import EMPTY, Html, card, element, joined, number
from actlake.jobs.sae.contexts import ActiveContext, LatentPage
from actlake.jobs.sae.promoted import TokenLogit

_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍"})
_FAINTEST = 0.08

STYLE = """
.contexts{list-style:none;margin:.4rem 0 0;padding:0}
.contexts li{display:grid;grid-template-columns:4.5rem 1fr;gap:.7rem;padding:.3rem 0;
border-top:1px solid var(--line)}
.contexts .text{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.84rem;
line-height:1.75;white-space:pre-wrap;overflow-wrap:anywhere}
.contexts .value{color:var(--dim);font-variant-numeric:tabular-nums;text-align:right;
font-size:.84rem;line-height:1.75}
.text span{border-radius:3px;padding:.1em 0}.text b{font-weight:600;text-decoration:underline;
text-decoration-color:rgb(var(--mark));text-underline-offset:.22em}
.about{display:flex;flex-wrap:wrap;gap:.2rem 1.6rem;align-items:end;color:var(--dim);
font-size:.88rem}
.about svg{display:block}.about rect{fill:rgb(var(--mark))}
.tokens{display:flex;flex-wrap:wrap;gap:.25rem;margin:.35rem 0;font-size:.84rem}
.tokens code{background:var(--shade);border:1px solid var(--line);border-radius:5px;
padding:.05rem .4rem;white-space:pre}.tokens small{color:var(--dim);margin-left:.35rem}
.tokens em{color:var(--dim);font-style:normal;min-width:5.6rem}
.lineage{display:grid;grid-template-columns:repeat(auto-fill,minmax(26rem,1fr));gap:1rem}
.lineage article{margin:0}
"""


def latent_card(latent: LatentPage) -> Html:
    """The card of one latent."""
    about = element(
        "div",
        element("span", f"active in {_share(latent.density)} of rows"),
        element("span", f"largest {number(latent.max_active, 2)}"),
        element("span", f"mean {number(latent.mean_active, 2)}"),
        histogram(latent),
        class_="about",
    )
    tokens = EMPTY
    if latent.tokens is not None:
        tokens = joined(
            [
                _tokens("promotes", latent.tokens.promoted),
                _tokens("suppresses", latent.tokens.suppressed),
            ]
        )
    shown = [_context(one, latent.max_active) for one in latent.contexts]
    return card(
        f"Latent {latent.latent:,}", about, tokens, element("ul", *shown, class_="contexts")
    )


def _context(context: ActiveContext, largest: float) -> Html:
    text = joined(
        _piece(piece.text, piece.value / largest if largest else 0.0, piece.value, at_peak)
        for piece, at_peak in (
            (piece, place == context.peak) for place, piece in enumerate(context.pieces)
        )
    )
    return element(
        "li",
        element("span", f"{context.value:.2f}", class_="value"),
        element("span", text, class_="text", title=f"{context.document}, row {context.row:,}"),
    )


def _piece(text: str, share: float, value: float, at_peak: bool) -> Html:
    shown: str = text.translate(_VISIBLE)
    if at_peak:
        shown = element("b", shown)
    if share == 0:
        return joined([shown])
    opacity = min(1.0, _FAINTEST + 0.72 * abs(share))
    style = f"background:rgba(var(--mark),{opacity:.2f})"
    return element("span", shown, style=style, title=f"{value:.3f}")


def _tokens(what: str, tokens: Sequence[TokenLogit]) -> Html:
    shown = (
        element(
            "span",
            element("code", token.text.translate(_VISIBLE).replace(" ", "␣")),
            element("small", f"{token.logit:+.2f}"),
        )
        for token in tokens
    )
    return element("div", element("em", what), *shown, class_="tokens")


def histogram(latent: LatentPage, *, width: int = 180, height: int = 36) -> Html:
    """The values where it is active, as a small drawing."""
    most = max([1, *latent.counts.tolist()])
    each = width / max(1, len(latent.counts))
    bars = "".join(
        f'<rect x="{place * each:.1f}" y="{height - height * count / most:.1f}" '
        f'width="{max(0.5, each - 1):.1f}" height="{height * count / most:.1f}"/>'
        for place, count in enumerate(latent.counts.tolist())
        if count
    )
    low, high = float(latent.edges[0]), float(latent.edges[-1])
    label = f"values from {low:.2f} to {high:.2f}, {int(latent.counts.sum()):,} rows"
    return Html(
        f'<svg width="{width}" height="{height}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{bars}</svg>"
    )


def _share(density: float) -> str:
    return f"{100 * density:.2f} %" if density >= 1e-3 else f"{density:.1e}"
