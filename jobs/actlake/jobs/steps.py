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
from actlake.platform.cluster.config import ResourcesConfig
from actlake.platform.cluster.resources import Placement, Resources, check_demand
from actlake.platform.config import from_dict
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
    """Whether the result of a whole config is complete, and still that of its inputs."""


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


def _transport_is_done(config: Mapping[str, Any]) -> bool:
    from actlake.jobs.transport.opening import what_decides

    return _result_is_done(
        "transport", config, what_decides, lambda w: _stores(w, where=w["rows"]["where"])
    )


def _sae_is_done(config: Mapping[str, Any]) -> bool:
    from actlake.jobs.sae.config import SAEConfig
    from actlake.jobs.sae.opening import identity

    def decides(written: Mapping[str, Any]) -> object:
        return identity(from_dict(SAEConfig, written), {})

    return _result_is_done("sae", config, decides, lambda w: _stores(w, where=w["where"]))


def _probe_is_done(config: Mapping[str, Any]) -> bool:
    from actlake.jobs.chosen_rows import choose_rows
    from actlake.jobs.probe.config import ProbeConfig
    from actlake.jobs.probe.identity import NOT_THE_RESULT, inputs_of, what_decides

    def inputs(written: Mapping[str, Any]) -> dict[str, str | None]:
        asked = from_dict(ProbeConfig, written)
        store = open_store(asked.store)
        read = inputs_of(asked, store, choose_rows(store, asked.rows.where), sites=())
        return {name: given.fingerprint for name, given in read.items()}

    return _result_is_done("probe", config, lambda w: what_decides(w, NOT_THE_RESULT), inputs)


def _result_is_done(
    job: str,
    config: Mapping[str, Any],
    decides: Callable[[Mapping[str, Any]], object],
    inputs: Callable[[Mapping[str, Any]], Mapping[str, str | None]],
) -> bool:
    """There is a finished ``run.json`` of the same job, and of inputs that are still the same.

    Parameters
    ----------
    decides
        The part of a config that the result depends on: the job's own rule.
    inputs
        Fingerprints of what a config reads, as it is now.
    """
    from actlake.jobs.stored_as import dtypes_as_recorded
    from actlake.platform.runs import FILE, RunRecord

    folder = Path(config["out"]).expanduser()
    if not (folder / FILE).is_file():
        return False
    record = RunRecord.load(folder)
    if record.finished is None or record.job != job or decides(record.config) != decides(config):
        return False
    now = {**inputs(config), **dtypes_as_recorded(record.inputs, config)}
    return {name: given.fingerprint for name, given in record.inputs.items()} == now


def _stores(config: Mapping[str, Any], *, where: str | None) -> dict[str, str | None]:
    """Fingerprints of the stores of a config, and of the rows of the first that are chosen."""
    from actlake.jobs.chosen_rows import choose_rows, inputs_of_rows

    stores = {key: open_store(config[key]) for key in ("store", "target_store") if config.get(key)}
    rows = inputs_of_rows(choose_rows(stores["store"], where))
    return {
        **{key: store.fingerprint for key, store in stores.items()},
        **{key: given.fingerprint for key, given in rows.items()},
    }


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job reserves on a cluster at the least."""

    stages: Sequence[Resources]
    replicas: int
    placement: Placement = "pack"

    def check(self, nodes: Sequence[Resources]) -> None:
        """Refuse what these nodes can never hold.

        Raises
        ------
        NotEnoughResources
            Says what is asked and what is there.
        """
        check_demand(nodes, self.stages, placement=self.placement, replicas=self.replicas)

    def __str__(self) -> str:
        each = " then ".join(map(str, self.stages))
        return f"{self.replicas} x ({each})"


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A cluster that is not joined: what `plan_workers` asks of one."""

    resources: Sequence[Resources]
    embedded: bool = False

    def nodes(self) -> list[Resources]:
        return list(self.resources)


def demand(config: Mapping[str, Any], nodes: Sequence[Resources]) -> Demand | None:
    """What a job of this config reserves on these nodes; None for one that starts its own cluster.

    The config may be a whole one, or only what was written.
    """
    if (config.get("cluster") or {}).get("address") == "local":
        return None
    if "sites" in config and "model" in config:
        return _harvest_demand(config, nodes)
    moments = config.get("moments") or {}
    workers = int(config.get("workers") or moments.get("workers") or 1)
    trains = isinstance(config.get("sae"), Mapping) or config.get("saes") or config.get("grid")
    each = _reserved(
        config, nodes, workers=workers, threads=config.get("threads") or moments.get("threads"),
        device=config.get("device") or ("auto" if trains or "tasks" in config else "cpu"),
    )  # fmt: skip
    # Those who train SAEs must all be there; who takes parts of the rows or sites takes turns.
    return Demand([each], workers if trains else 1)


def _harvest_demand(config: Mapping[str, Any], nodes: Sequence[Resources]) -> Demand:
    pipeline = config.get("pipeline") or {}
    boundaries = pipeline.get("boundaries") or ()
    stages = len(boundaries) + 1 if boundaries else int(config.get("stages") or 1)
    placement: Placement = pipeline.get("placement") or "pack"
    replicas = int(config.get("replicas") or 1)
    each = _reserved(
        config, nodes, workers=replicas * stages, threads=config.get("threads"),
        device=(config["model"] or {}).get("device") or "auto", stages=stages, placement=placement,
    )  # fmt: skip
    return Demand([each] * stages, int(config.get("min_replicas") or replicas), placement)


def _reserved(config: Mapping[str, Any], nodes: Sequence[Resources], **how: Any) -> Resources:
    """What each process of a job reserves."""
    from actlake.platform.cluster.worker_plan import plan_workers

    asked = from_dict(ResourcesConfig, config.get("resources") or {})
    return plan_workers(_Cluster(nodes), asked, **how).resources


STEPS: Mapping[str, StepKind] = {
    "harvest": StepKind("store", _harvest_is_done),
    "transport": StepKind("out", _transport_is_done),
    "sae": StepKind("out", _sae_is_done),
    "probe": StepKind("out", _probe_is_done),
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
