"""``actlake transport``: read the config, call `fit_transport`, say how it ended."""

from collections.abc import Sequence

from actlake.jobs import transport
from actlake.jobs.job_command import run_command
from actlake.jobs.transport.config import TransportConfig

_EXAMPLES = (
    "actlake transport --store runs/smollm2 --out runs/transport",
    "actlake transport --store runs/smollm2 --out runs/transport --plan",
    "actlake transport --config examples/transport_smollm2.yaml",
    "actlake transport --store runs/smollm2 --out runs/near "
    "--pairs '{layers: [2, 4, 8], k: [1, 2]}' --offsets 0,1 --moments.workers 2",
    "actlake transport --store runs/chat --out runs/replies --rows.where \"segment = 'assistant'\"",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_command(
        TransportConfig,
        arguments,
        command="actlake transport",
        description=(
            "Fit linear maps between the stored sites of a model, all pairs in one pass over the "
            "rows, and test how much they carry over. Killed at any moment, the same command "
            "goes on from its last checkpoint."
        ),
        examples=_EXAMPLES,
        plan=lambda config: transport.plan_transport(config),
        run=lambda config: transport.fit_transport(config),
        closing_line=closing_line,
    )


def closing_line(result: "transport.TransportResult") -> str:
    """How a fit ended, for a person."""
    if result.was_there:
        return f"{result.folder} is complete already; nothing was done"
    numbers = result.metrics
    return (
        f"{len(result.pairs):,} pairs: test R² {numbers['r2/min']:.3f} to {numbers['r2/max']:.3f}, "
        f"mean {numbers['r2/mean']:.3f}\nThe report is {result.report}"
    )
