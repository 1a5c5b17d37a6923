"""``actlake info`` and ``actlake verify``: look at a store."""

import argparse
import math
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.text import Text

from actlake.jobs.massive_rows import TOP_SHARE, variance_of_top
from actlake.jobs.saying import say
from actlake.storage import ActivationStore, VerifyReport, open_store
from actlake.storage import verify as verify_store
from actlake.storage.summary import human_bytes, summarize
from actlake.storage.verify import stored_bytes

_MOST_ROWS_ASKED = 2**24
"""Rows of a store whose norms ``info`` reads: some 64 MB a site."""


def info(arguments: Sequence[str]) -> int:
    """Print what a store holds; 0 when every unit of every site is committed, else 3."""
    parser = _parser(
        "info",
        "What a store holds, and how much of it is committed. Exit status 3: not all of it.",
        ("actlake info runs/smollm2",),
    )
    store = open_store(parser.parse_args(arguments).store)
    summary = summarize(store)
    console = Console()
    summary.print(console)
    if said := _variance_of_few(store):
        console.print(Text(f"  {said}"), soft_wrap=True)
    return 0 if summary.is_complete else 3


def _variance_of_few(store: ActivationStore) -> str | None:
    """How much of each site's variance the rows with the largest norms hold.

    None of a store of many rows or of a bucket: norms are read for it, and a few rows a site.
    """
    is_local = store.location.local_path("") is not None
    if not is_local or not 0 < store.schema.num_rows <= _MOST_ROWS_ASKED:
        return None
    shares = [
        (site, variance_of_top(store, site)) for site in store.sites if store.readable([site])
    ]
    said = [f"{share:.0%} at {site}" for site, share in shares if not math.isnan(share)]
    if not said:
        return None
    return f"variance held by the {TOP_SHARE:.1%} of rows with the largest norms: {', '.join(said)}"


def verify(arguments: Sequence[str]) -> int:
    """Check every byte of a store; 0 when it is whole, 1 when not."""
    parser = _parser(
        "verify",
        "Read every byte of a store and check it: checksums, non-finite values, statistics, "
        "tokens against documents. Names the site and unit of what is damaged.",
        (
            "actlake verify runs/smollm2",
            "actlake verify runs/smollm2 --repair",
            "actlake verify runs/test-only --repair --parent s3://my-activations/smollm2",
        ),
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make damaged files again what they were: statistics from whole rows, rows with the "
        "same model, an exported store's from its parent; nothing else is ever written",
    )
    parser.add_argument(
        "--parent", help="where the store is now that this one was exported from, if it has moved"
    )
    parser.add_argument("--model", help="where the model is now, if it has moved")
    options = parser.parse_args(arguments)
    if not options.repair and (options.parent or options.model):
        parser.error("--parent and --model say from what to repair: give --repair too")
    store = open_store(options.store)
    bar = Console(stderr=True)
    with Progress(
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=bar,
        disable=not bar.is_terminal,
    ) as progress:
        task = progress.add_task("", total=stored_bytes(store))
        report = verify_store(store, progress=lambda n: progress.advance(task, n))
    say(report_text(report))
    if report.is_whole or not options.repair:
        return 0 if report.is_whole else 1

    from actlake.jobs.repair import plan_repair, repair

    planned = plan_repair(store, report, parent=options.parent, model=options.model)
    say(str(planned))
    if planned.is_empty:
        return 1
    say(str(repair(planned)))
    again = verify_store(open_store(options.store))
    say(report_text(again))
    return 0 if again.is_whole else 1


def report_text(report: VerifyReport) -> str:
    """What `verify` found, for a person."""
    read = f"{report.shards:,} shards and {human_bytes(report.num_bytes)} read"
    lines = [
        f"Whole: {read}, every checksum right."
        if report.is_whole
        else f"Damaged: {len(report.problems):,} problems; {read}."
    ]
    lines += [f"  {problem}" for problem in report.problems]
    lines += [
        f"  {site}: {len(units):,} units not committed (not a fault; the harvest goes on with them)"
        for site, units in report.missing.items()
    ]
    lines += [
        f"  {site}: the rows of {len(units):,} units were released, on purpose; all else "
        "of them was checked"
        for site, units in report.released.items()
    ]
    lines += [
        f"  {name}: not checked, this actlake cannot read it: {why}"
        for name, why in report.unknown.items()
    ]
    return "\n".join(lines)


def _parser(name: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"actlake {name}",
        description=description,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", help="path or URL of the store")
    return parser
