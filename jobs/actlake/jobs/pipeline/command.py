"""``actlake run``: read a pipeline, check all of its steps, show it or run it."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlake.jobs.pipeline.config import PipelineConfig, StepConfig
from actlake.jobs.pipeline.errors import InvalidPipeline
from actlake.jobs.pipeline.graph import Step, order
from actlake.jobs.pipeline.running import PipelineRun, is_done
from actlake.jobs.saying import say
from actlake.jobs.steps import resolved_config, step_kind
from actlake.platform.config import read_command
from actlake.platform.config.yaml_text import Written, yaml_text
from actlake.platform.writable import check_writable
from actlake.storage import ActlakeError

_EXAMPLES = (
    "actlake run examples/pipeline_smollm2.yaml",
    "actlake run examples/pipeline_smollm2.yaml --plan",
    "actlake run pipeline.yaml --parallel 2 --steps.harvest.config.replicas 2",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 when every step is done, 1 when one failed, 143 when stopped."""
    config, flags = read_command(
        PipelineConfig,
        with_config(arguments),
        command="actlake run",
        description=(
            "Run harvest, sae, transport and probe steps as soon as their inputs are there, and "
            "skip what is done. Each step is the command itself, with its own log. A step that "
            "fails stops those that need its result; killed at any moment, the same command "
            "goes on."
        ),
        examples=_EXAMPLES,
        flags={"plan": "Print the steps, what they wait for and what is done, and stop."},
    )
    steps = resolve_steps(config)
    for step in steps:
        check_writable(step.output)
    if "plan" in flags:
        say(plan_text(steps))
        return 0
    run = PipelineRun(steps, config.parallel, Path(config.logs).expanduser(), tell=_say)
    outcomes = run.run()
    counts = {
        words: list(outcomes.values()).count(words) for words in dict.fromkeys(outcomes.values())
    }
    sys.stdout.write(", ".join(f"{count} {words}" for words, count in counts.items()) + "\n")
    if "failed" in counts:
        return 1
    return 143 if "stopped" in counts else 0


def with_config(arguments: Sequence[str]) -> list[str]:
    """``actlake run pipeline.yaml`` for ``actlake run --config pipeline.yaml``."""
    if arguments and not arguments[0].startswith("-"):
        return ["--config", *arguments]
    return list(arguments)


def inlined_yaml(arguments: Sequence[str]) -> str:
    """A pipeline as one file: every step's whole configuration is in it, and names no file."""
    config = read_command(PipelineConfig, with_config(arguments), command="actlake run")[0]
    steps = {
        step.name: {
            "command": step.command,
            "config": dict(step.config),
            "after": list(config.steps[step.name].after),
        }
        for step in resolve_steps(config)
    }
    plain = {"parallel": config.parallel, "logs": config.logs, "steps": steps}
    return "".join(f"{key}: {yaml_text(value)}\n" for key, value in plain.items())


def resolve_steps(config: PipelineConfig) -> tuple[Step, ...]:
    """Read every step's configuration as its command would, and put the steps in order.

    Raises
    ------
    ActlakeError
        Anything wrong with any step, before the first is started; its name is in the message.
    """
    return order({n: (_resolve(n, step), step.after) for n, step in config.steps.items()})


def _resolve(name: str, step: StepConfig) -> Step:
    kind = step_kind(step.command)
    plain, given = _split(step.config, "")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as inline:
        for key, value in plain.items():
            inline.write(f"{key}: {yaml_text(value)}\n")
        inline.flush()
        files = [part for file in (*step.files, inline.name) for part in ("--config", file)]
        try:
            config = resolved_config(step.command, [*files, *given])
        except ActlakeError as error:
            words = str(error).replace(inline.name, f"steps.{name}.config")
            raise InvalidPipeline(f"Step {name}: {words}") from error
    return Step(name, step.command, config, str(config[kind.output]))


def _split(config: Mapping[str, Any], above: str) -> tuple[dict[str, Any], list[str]]:
    """What a file said, and what the command line said as options of the step's own command.

    Only the command knows the types of its keys, which text of a command line waits for.
    """
    plain: dict[str, Any] = {}
    given: list[str] = []
    for key, value in config.items():
        if isinstance(value, Written):
            given.append(f"--{above}{key}={value}")
        elif isinstance(value, Mapping):
            plain[key], inside = _split(value, f"{above}{key}.")
            given += inside
        else:
            plain[key] = value
    return plain, given


def plan_text(steps: Sequence[Step]) -> str:
    """The graph, a line a step, with what is done."""
    width = max(len(step.name) for step in steps)
    lines = []
    done: set[str] = set()
    for step in steps:
        if set(step.waits_for) <= done and is_done(step):
            done.add(step.name)
        waits = [name for name in step.waits_for if name not in done]
        state = "done" if step.name in done else f"after {', '.join(waits)}" if waits else "ready"
        lines.append(f"{step.name:<{width}}  {step.command:<9}  {state:<8}  {step.output}")
    return "\n".join([*lines, f"{len(done)} of {len(steps)} steps are done"])


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
