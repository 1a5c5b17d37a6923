"""``actlake harvest``: read the config, call `harvest`, say how it ended.

Torch and Ray are imported once the config is read: ``--help`` and mistakes are answered at once.
"""

from collections.abc import Sequence

from actlake.jobs import harvest
from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.saying import say
from actlake.platform.config import read_command

_EXAMPLES = (
    "actlake harvest --config examples/harvest_smollm2.yaml",
    "actlake harvest --config examples/harvest_smollm2.yaml --plan",
    "actlake harvest --config examples/harvest_smollm2.yaml --corpus.max_tokens 20000 "
    "--sites resid_post.3,resid_post.6 --replicas 2",
    "actlake harvest --store runs/pythia --model.name EleutherAI/pythia-70m "
    "--sites resid_post.3 --corpus.source.path 'texts/**/*.txt'",
    "actlake harvest --store runs/pythia --model.name EleutherAI/pythia-70m "
    "--sites resid_post.3 --corpus.source.path 'more/**/*.txt' --append",
    "actlake harvest --store runs/chat --model.name HuggingFaceTB/SmolLM2-135M-Instruct "
    "--sites resid_post.9 --corpus.source.path chat.jsonl --corpus.source.messages_column messages "
    "--corpus.splits.by pair",
    "actlake harvest --store runs/generated --model.name HuggingFaceTB/SmolLM2-135M-Instruct "
    "--sites resid_post.9 --corpus.source.path out.parquet --corpus.source.ids_column tokens",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    config, flags = read_command(
        HarvestConfig,
        arguments,
        command="actlake harvest",
        description=(
            "Run a corpus through a language model and store the activations at chosen sites. "
            "Killed at any moment, the same command goes on where it stopped."
        ),
        examples=_EXAMPLES,
        flags={
            "plan": "Print what would be done and needed, and stop.",
            "append": "Add this corpus to a finished store, and harvest all of its sites for it.",
        },
    )
    append = "append" in flags
    if "plan" in flags:
        say(harvest.plan(config, append=append))
        return 0
    result = harvest.harvest(config, append=append)
    for why in result.given_up:
        say(f"Given up: {why}")
    say(closing_line(result))
    if result.stopped:
        return 143
    return 0 if result.complete else 1


def closing_line(result: "harvest.HarvestResult") -> str:
    """How a harvest ended, for a person."""
    if result.failed:
        units = ", ".join(map(str, sorted(result.failed)[:5]))
        unit, reasons = next(iter(result.failed.items()))
        return (
            f"{len(result.failed)} units were given up ({units}); unit {unit}: {reasons[-1]}\n"
            f"{result.store} is valid without them; the same command tries them again"
        )
    if result.stopped:
        return f"Stopped; {result.store} is valid, and the same command goes on from here"
    if result.damaged:
        (site, unit), why = next(iter(result.damaged.items()))
        return (
            f"{len(result.damaged)} committed shards of {result.store} are missing or cut short, "
            f"and could not be computed again; {site}, unit {unit}: {why}\n"
            "hint: repair them where and how the store was begun (`actlake verify --repair`), or "
            "harvest to another path"
        )
    if result.restored and not result.units_done:
        return f"{result.store} is complete: {result.restored:,} damaged shards were computed again"
    if not result.units_done:
        return f"{result.store} is complete already; nothing was done"
    rate = result.rows / result.seconds if result.seconds else 0.0
    return f"{result.store} is complete: {result.units_done:,} units in {result.seconds:,.0f} s" + (
        f" ({rate:,.0f} tokens/s)" if rate and rate < 1e9 else ""
    )
