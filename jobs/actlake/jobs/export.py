"""``actlake export``: copy chosen sites, splits or rows of a store into a new one."""

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from actlake.jobs.saying import say
from actlake.storage import open_store
from actlake.storage.export import export_store
from actlake.storage.provenance import shortened

_EXAMPLES = (
    "actlake export runs/smollm2 runs/layer9 --sites resid_post.9",
    "actlake export runs/smollm2 runs/held-out --splits test",
    "actlake export runs/smollm2 runs/paris --where \"text like '%Paris%'\"",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="actlake export",
        description="Copy a part of a store into a new store. Contexts stay whole: choosing "
        "documents or rows chooses the contexts that hold them. Killed, the same command goes on.",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in _EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", help="path or URL of the store to copy from")
    parser.add_argument("to", help="path of the new store")
    parser.add_argument("--sites", type=_names, help="sites, separated by commas (all)")
    parser.add_argument("--splits", type=_names, help="splits, separated by commas (all)")
    parser.add_argument("--documents", type=_names, help="document ids, separated by commas")
    parser.add_argument("--where", help="SQL over the token and document tables, true of a row")
    options = parser.parse_args(arguments)
    bar = Console(stderr=True)
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=bar,
        disable=not bar.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None)
        result = export_store(
            open_store(options.store),
            options.to,
            sites=options.sites,
            splits=options.splits,
            documents=options.documents,
            where=options.where,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    store = result.store
    said = (
        f"{store.url} holds {result.rows:,} rows in {result.contexts:,} contexts, "
        f"fingerprint {shortened(store.fingerprint)}"
        if result.units_done or result.restored
        else f"{store.url} is complete already; nothing was done"
    )
    say(said)
    return 0


def _names(written: str) -> list[str]:
    return [name.strip() for name in written.split(",") if name.strip()]
