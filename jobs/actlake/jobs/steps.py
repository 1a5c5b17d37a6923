"""What is known about the commands that read a config: for submitting and for pipelines.

A row says where a command's result lies and how to see that it is done. Everything else about
a command is its own business; its config is read by the command itself.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlake.jobs.cli import COMMANDS
from actlake.platform.cluster import Resources
from actlake.platform.config.yaml_text import parse_yaml
from actlake.storage import ActlakeError, Site, open_store
from actlake.storage.errors import StoreNotFound, nearest

logger = logging.getLogger(__name__)


class UnknownStep(ActlakeError, ValueError):
    """That command cannot be a step of a pipeline, or be submitted."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """A command with a config and a result."""

    output: str
    """Key of the config that says where the result is."""

    is_done: Callable[[Mapping[str, Any]], bool]
    """Whether the result of a whole config is complete; looks at the result, nothing else."""


def _harvest_is_done(config: Mapping[str, Any]) -> bool:
    """Every asked site is whole, and was asked for with this model, text and element type."""
    try:
        store = open_store(config["store"])
    except StoreNotFound:
        return False
    asked = {Site.parse(written).stored for written in config["sites"]}
    if not all(site in store and store.coverage(site).is_complete for site in asked):
        return False
    wanted = {key: config[key] for key in ("model", "corpus", "storage")}
    return all(
        {key: group.request.get(key) for key in wanted} == wanted
        for group in store.ledger.groups
        if asked.intersection(group.sites)
    )


def harvest_demand(config: Mapping[str, Any]) -> Iterator[tuple[list[Resources], int]]:
    """What a harvest reserves at the least: the stages of a replica, and how many replicas.

    Nothing for the configuration of another command. How many threads a process gets by
    default is decided on the cluster; here it counts as one.
    """
    if "sites" not in config or "model" not in config:
        return
    on_gpu = str((config["model"] or {}).get("device") or "").startswith("cuda")
    stage = Resources(cpus=1, gpus=1) if on_gpu else Resources(cpus=config.get("threads") or 1)
    boundaries = (config.get("pipeline") or {}).get("boundaries") or ()
    stages = len(boundaries) + 1 if boundaries else int(config.get("stages") or 1)
    replicas = int(config.get("min_replicas") or config.get("replicas") or 1)
    yield [stage] * stages, replicas


_ELSEWHERE = ("cluster", "tracking", "out", "moments")


def _result_is_done(config: Mapping[str, Any]) -> bool:
    """There is a ``run.json`` that was finished, of this config but for where it was run."""
    from actlake.platform.runs import FILE, RunRecord

    folder = Path(config["out"])
    if not (folder / FILE).is_file():
        return False
    record = RunRecord.load(folder)
    return record.finished is not None and all(
        record.config.get(key) == value for key, value in config.items() if key not in _ELSEWHERE
    )


STEPS: Mapping[str, StepKind] = {
    "harvest": StepKind("store", _harvest_is_done),
    "transport": StepKind("out", _result_is_done),
    "sae": StepKind("out", _result_is_done),
    "probe": StepKind("out", _result_is_done),
}


def step_kind(command: str) -> StepKind:
    """What is known about a command.

    Raises
    ------
    UnknownStep
        It has no config, or there is none of that name.
    """
    there = [name for name in STEPS if name in COMMANDS]
    if command not in there:
        raise UnknownStep(
            f"{command!r} is not a job with a config\n"
            f"there are: {', '.join(there)}\n{nearest(command, there)}"
        )
    return STEPS[command]


def resolved_yaml(command: str, arguments: Sequence[str]) -> str:
    """The whole configuration that `arguments` give a command, as YAML: files, keys, defaults.

    Raises
    ------
    ConfigError
        As the command itself would refuse it.
    """
    printed = io.StringIO()
    run = COMMANDS[command].load()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run([*arguments, "--print-config"])
    return printed.getvalue()


def resolved_config(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """`resolved_yaml`, read."""
    content, _ = parse_yaml(resolved_yaml(command, arguments), name=f"actlake {command}")
    assert isinstance(content, dict), content
    return content


def texts(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a configuration with its dotted key."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for place, value in enumerate(config):
            yield from texts(value, f"{key}[{place}]")
    elif isinstance(config, str):
        yield key, config
