"""``actlake transport``: read the config, call `fit_transport`, say how it ended."""

from collections.abc import Sequence

from rich.console import Console

from actlake.jobs import transport
from actlake.jobs.transport.config import TransportConfig
from actlake.platform.cluster.errors import WorkStopped
from actlake.platform.config import read_command

_EXAMPLES = (
    "actlake transport --store runs/smollm2 --out runs/transport",
    "actlake transport --store runs/smollm2 --out runs/transport --plan",
    "actlake transport --config examples/transport_smollm2.yaml",
    "actlake transport --store runs/smollm2 --out runs/near "
    "--pairs '{layers: [2, 4, 8], k: [1, 2]}' --offsets 0,1 --moments.workers 2",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    config, flags = read_command(
        TransportConfig,
        arguments,
        command="actlake transport",
        description=(
            "Fit linear maps between the stored sites of a model, all pairs in one pass over the "
            "rows, and test how much they carry over. Killed at any moment, the same command "
            "goes on from its last checkpoint."
        ),
        examples=_EXAMPLES,
        flags={"plan": "Print what would be done and needed, and stop."},
    )
    out = Console()
    if "plan" in flags:
        out.print(str(transport.plan_transport(config)), highlight=False, soft_wrap=True)
        return 0
    try:
        result = transport.fit_transport(config)
    except WorkStopped as stopped:
        out.print(str(stopped), highlight=False, soft_wrap=True)
        return 143
    out.print(closing_line(result), highlight=False, soft_wrap=True)
    return 0


def closing_line(result: "transport.TransportResult") -> str:
    """How a fit ended, for a person."""
    if result.was_there:
        return f"{result.folder} is complete already; nothing was done"
    numbers = result.metrics
    return (
        f"{len(result.pairs):,} pairs: test R² {numbers['r2/min']:.3f} to {numbers['r2/max']:.3f}, "
        f"mean {numbers['r2/mean']:.3f}\nThe report is {result.report}"
    )
