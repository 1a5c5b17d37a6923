"""What the commands of all jobs do alike: read a config, plan or run, say how it ended."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from actlake.jobs.saying import say
from actlake.platform.cluster.errors import WorkStopped
from actlake.platform.config import read_command

STOPPED = 143
"""Exit status of a run that ended in good order when it was asked to: 128 + SIGTERM."""

Config = TypeVar("Config")


def run_command(
    config_type: type[Config],
    arguments: Sequence[str],
    *,
    command: str,
    description: str,
    examples: Sequence[str],
    plan: Callable[[Config], object],
    run: Callable[[Config], Any],
    closing_line: Callable[[Any], str],
) -> int:
    """Run a job's command; its exit status.

    Parameters
    ----------
    plan, run
        What ``--plan`` prints, and the job itself; called with the config that was read. Functions
        that import the job when they are called keep ``--help`` quick.
    closing_line
        How a result of `run` is told to a person.

    Raises
    ------
    ActlakeError
        Whatever the config, the plan or the job refuses.
    """
    config, flags = read_command(
        config_type,
        arguments,
        command=command,
        description=description,
        examples=examples,
        flags={"plan": "Print what would be done and needed, and stop."},
    )
    if "plan" in flags:
        said, status = str(plan(config)), 0
    else:
        try:
            said, status = closing_line(run(config)), 0
        except WorkStopped as stopped:
            said, status = str(stopped), STOPPED
    say(said)
    return status
