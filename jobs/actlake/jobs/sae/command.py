"""``actlake sae``: read the config, call `train_saes`, say how it ended.

``actlake sae encode SAE STORE`` is in `encode`.
"""

from collections.abc import Sequence

from actlake.jobs import sae
from actlake.jobs.job_command import run_command
from actlake.jobs.sae.config import SAEConfig

_EXAMPLES = (
    "actlake sae --store runs/smollm2 --out runs/sae --sae.site resid_post.9 "
    "--sae.d_sae 4608 --sae.options.k 32",
    "actlake sae --config examples/sae_smollm2.yaml --plan",
    "actlake sae --config examples/sae_sweep.yaml --workers 2 --spread saes",
    "actlake sae --store runs/smollm2 --out runs/jump --sae.site resid_post.9 "
    "--sae.architecture jumprelu --sae.options '{l0_coefficient: 2.0}'",
    "actlake sae --store runs/chat --out runs/replies --sae.site resid_post.9 "
    "--where \"segment = 'assistant'\"",
    "actlake sae encode runs/sae/resid_post.9-topk-4608 runs/smollm2 --out runs/latents",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    if arguments and arguments[0] == "encode":
        from actlake.jobs.sae.encode import main as encode

        return encode(arguments[1:])
    return run_command(
        SAEConfig,
        arguments,
        command="actlake sae",
        description=(
            "Train sparse autoencoders, transcoders and crosscoders on the rows of a store: one, "
            "or many at once on one stream. Killed at any moment, the same command goes on from "
            "its last checkpoint. `actlake sae encode SAE STORE --out F` writes latents of a "
            "store."
        ),
        examples=_EXAMPLES,
        plan=lambda config: sae.plan_saes(config),
        run=lambda config: sae.train_saes(config),
        closing_line=closing_line,
    )


def closing_line(result: "sae.SAEResult") -> str:
    """How a training ended, for a person."""
    if result.was_there:
        return f"{result.out} is complete already; nothing was done"
    lines = []
    for spec in result.specs:
        numbers = {
            name: result.metrics.get(f"{spec.name}/held_out/{name}", float("nan"))
            for name in ("fvu", "l0")
        }
        dead = [
            f"{value:.1%} {name.rpartition('/')[2].replace('_', ' ')}"
            for name, value in result.metrics.items()
            if name.startswith(f"{spec.name}/held_out/dead_in_")
        ]
        lines.append(
            ", ".join([f"{spec.name}: FVU {numbers['fvu']:.4f} at L0 {numbers['l0']:.1f}", *dead])
        )
    return "\n".join([*lines, f"The report is {result.report}"])
