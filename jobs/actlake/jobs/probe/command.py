"""``actlake probe``: read the config, call `train_probes`, say how it ended."""

from collections.abc import Sequence

from actlake.jobs import probe
from actlake.jobs.job_command import run_command
from actlake.jobs.probe.config import ProbeConfig

_EXAMPLES = (
    "actlake probe --config examples/probe_tokens.yaml",
    "actlake probe --config examples/probe_tokens.yaml --plan",
    "actlake probe data place --out runs/data/place   # labelled text: place, sentiment, tokens",
    "actlake probe --store runs/smollm2 --out runs/probes --tasks '[{labels: topic}]'",
    "actlake probe --store runs/smollm2 --out runs/places --tasks '[{labels: places, "
    "column: continent}]' --pooling last --sites resid_post.3,resid_post.9 --workers 2",
    "actlake probe --store runs/chat --out runs/replies --tasks '[{labels: mood}]' "
    "--rows.where \"segment = 'assistant'\"",
)


def _data(arguments: Sequence[str]) -> int:
    from actlake.jobs.probe.datasets.command import main

    return main(arguments)


def _transfer(arguments: Sequence[str]) -> int:
    from actlake.jobs.probe.transfer import main

    return main(arguments)


_WORDS = {"data": _data, "transfer": _transfer}
"""``actlake probe data`` makes labelled text, ``actlake probe transfer`` compares results."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    if arguments and arguments[0] in _WORDS:
        return _WORDS[arguments[0]](arguments[1:])
    return run_command(
        ProbeConfig,
        arguments,
        command="actlake probe",
        description=(
            "Train linear probes for labels that are attached to a store, at every site, beside "
            "honest controls. Killed at any moment, the same command goes on with the sites that "
            "are not done."
        ),
        examples=_EXAMPLES,
        plan=lambda config: probe.plan_probes(config),
        run=lambda config: probe.train_probes(config),
        closing_line=closing_line,
    )


def closing_line(result: "probe.ProbeResult") -> str:
    """How a run ended, for a person."""
    if result.was_there:
        return f"{result.folder} is complete already; nothing was done"
    layers = {
        name.removesuffix("_layer"): int(layer)
        for name, layer in result.metrics.items()
        if name.endswith("_layer")
    }
    best = [
        f"{name}: {result.metrics[name]:.3f} at layer {layer}" for name, layer in layers.items()
    ]
    return "\n".join([*best, f"The report is {result.report}"])
