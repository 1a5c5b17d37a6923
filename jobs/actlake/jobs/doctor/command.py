"""``actlake doctor``: run the checks, show a table, say what to do."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actlake.jobs.doctor.check import Check, Finding, run_checks
from actlake.jobs.saying import say
from actlake.platform.config import ConfigError
from actlake.platform.config.yaml_text import parse_yaml

if TYPE_CHECKING:
    from actlake.jobs.doctor.model_map import MeasuredModel
    from actlake.platform.model_map import ModelMap

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def main(arguments: Sequence[str]) -> int:
    """Run the command; 1 when something fails, else 0."""
    options = _parser().parse_args(list(arguments))
    if options.device:
        return _examine_device(options)
    configs = _configs(options.config)
    measured = _measured(options)
    findings = list(run_checks(_checks(options, configs)))
    if measured and not any(f.name == "model access" and f.status == "fail" for f in findings):
        findings += run_checks([("model", measured)])
    if options.json:
        _tell(findings, model=measured.as_json() if measured else None)
    else:
        _show(findings, measured.map if measured else None)
    return _status(findings)


def _examine_device(options: argparse.Namespace) -> int:
    """Run the checks of a device, each told on stderr as it begins: they take minutes."""
    others = ("config", "store", "model", "address")
    if given := [f"--{name}" for name in others if getattr(options, name)]:
        raise ConfigError(
            f"--device checks the device alone, and {' and '.join(given)} is given too\n"
            "hint: run `actlake doctor` once for each"
        )
    import torch

    from actlake.jobs.doctor import machine
    from actlake.jobs.doctor.device.checks import device_checks
    from actlake.platform.models.numerics import resolve_device

    device = resolve_device(options.device)
    progress = Console(stderr=True)
    findings = list(run_checks([("versions", machine.check_versions), ("GPU", machine.check_gpus)]))
    if options.device == "auto" and device.value == "cpu":
        says = f"{device.reason}: what follows is of the CPU"
        hint = "on a GPU node, look at the line above; `--device cpu` asks for the CPU"
        findings.append(Finding("device", "warn", says, hint))
    with device_checks(torch.device(device.value)) as checks:
        for number, check in enumerate(checks, 1):
            say(f"{number} of {len(checks)}: {check[0]}", progress)
            findings += run_checks([check])
    if options.json:
        _tell(findings)
    else:
        _show(findings, None)
    return _status(findings)


def _tell(findings: Sequence[Finding], **more: Any) -> None:
    told = {"findings": [finding.as_json() for finding in findings], **more}
    sys.stdout.write(f"{json.dumps(told, indent=1)}\n")


def _status(findings: Sequence[Finding]) -> int:
    return int(any(finding.status == "fail" for finding in findings))


def _measured(options: argparse.Namespace) -> "MeasuredModel | None":
    """The check of the model that the command line names; None where it names none."""
    if options.random and not options.model:
        raise ConfigError("--random needs --model FAMILY\nhint: such as --model qwen3 --random")
    if not options.model:
        return None
    from actlake.jobs.doctor.model_map import MeasuredModel

    return MeasuredModel(options.model, random=options.random)


def _checks(
    options: argparse.Namespace, configs: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Check]]:
    from actlake.jobs.doctor import access, cluster, machine

    stores = _values(configs, "store", options.store)
    # A job with an `out` only reads its store, unless another step of the pipeline fills it.
    written = _values([config for config in configs if "out" not in config], "store", options.store)
    folders = [place for place in (*stores, *_values(configs, "out")) if "://" not in place]
    anywhere: list[tuple[str, Check]] = [("GPU", machine.check_gpus)]
    for store in stores:
        check = access.check_store if store in written else access.check_read
        anywhere.append(("store access", partial(check, store)))
    named = None if options.random else options.model
    for name, revision in _models(configs, named):
        anywhere.append(("model access", partial(access.check_model, name, revision)))
    yield "versions", machine.check_versions
    yield "threads", machine.check_threads
    yield "memory", machine.check_memory
    yield "disk", partial(machine.check_disk, folders)
    yield from anywhere
    asked = _values(configs, "tracking.wandb")
    yield "W&B", partial(access.check_wandb, asked[0] if asked else "auto")
    addresses = _values(configs, "cluster.address", options.address or _ray_address())
    for address in addresses:
        if address != "local":
            yield "cluster", partial(cluster.check_cluster, address, configs, anywhere)


def _ray_address() -> str | None:
    return os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")


def _configs(files: Sequence[str]) -> list[dict[str, Any]]:
    """Configurations as written; of a pipeline, those of its steps."""
    found = []
    for name in files:
        try:
            content, _ = parse_yaml(Path(name).read_text(encoding="utf-8"), name=name)
        except OSError as error:
            raise ConfigError(
                f"Cannot read {name}: {error.strerror}\nhint: check the path"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{name} holds no keys\nhint: give the configuration of a job")
        steps = content.get("steps")
        if isinstance(steps, dict):
            for step in steps.values():
                inside = step if isinstance(step, dict) else {}
                merged: dict[str, Any] = {}
                for part in (*_configs(inside.get("files") or ()), inside.get("config") or {}):
                    merged |= part
                found.append(merged)
        else:
            found.append(content)
    return found


def _values(configs: Sequence[Mapping[str, Any]], key: str, given: str | None = None) -> list[str]:
    """What the command line gives, or else every value of a dotted key, once."""
    if given:
        return [given]
    found: list[Any] = []
    for config in configs:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found.append(value)
    return list(dict.fromkeys(value for value in found if isinstance(value, str)))


def _models(configs: Sequence[Mapping[str, Any]], given: str | None) -> list[tuple[str, str]]:
    """Names and revisions of the models, each once."""
    if given:
        return [(given, "")]
    models = [config["model"] for config in configs if isinstance(config.get("model"), Mapping)]
    named = [(model.get("name"), model.get("revision") or "") for model in models]
    return list(dict.fromkeys((name, revision) for name, revision in named if name))


def _show(findings: Sequence[Finding], found: "ModelMap | None") -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        words = Text(finding.says)
        if finding.hint:
            words.append(f"\nhint: {finding.hint}", style="bold")
        status = Text(finding.status, style=_COLOURS[finding.status])
        table.add_row(status, Text(finding.name), words)
    console = Console()
    if found:
        from actlake.jobs.doctor.model_map import table as sites

        console.print(sites(found), highlight=False)
        console.print()
    console.print(table, highlight=False)
    counts = {status: sum(f.status == status for f in findings) for status in _COLOURS}
    say(", ".join(f"{number} {status}" for status, number in counts.items()), console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actlake doctor",
        description="Check this machine, and the store, model and cluster that a job will use. "
        "A model that is named is loaded and measured at every site; of a device, twelve checks "
        "say whether it computes, copies and fails as it should. "
        "Changes nothing, asks nothing. Exit status 1 when something fails.",
        epilog="examples:\n  actlake doctor\n  actlake doctor --config harvest.yaml\n"
        "  actlake doctor --model EleutherAI/pythia-70m\n  actlake doctor --model qwen3 --random\n"
        "  actlake doctor --device\n"
        "  actlake doctor --store /shared/stores/x --address http://127.0.0.1:8265 --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE",
        help="a job's configuration, or a pipeline: its stores, model and cluster are checked",
    )  # fmt: skip
    parser.add_argument(
        "--store", help="a store, there or to be: tried with a file that is removed"
    )
    parser.add_argument(
        "--model", metavar="NAME",
        help="a folder, a .gguf file or a name on the hub: loaded, and every site of it measured",
    )  # fmt: skip
    parser.add_argument(
        "--random", action="store_true",
        help="NAME is a family, such as qwen3; a tiny random model of it is measured",
    )  # fmt: skip
    parser.add_argument(
        "--device", nargs="?", const="auto", metavar="NAME",
        help="check cuda, cuda:1, … or cpu, by default the GPU that is here, on random models made "
        "for it: some minutes, some GB of the system's temporary folder; no network, no Ray",
    )  # fmt: skip
    parser.add_argument(
        "--address",
        help="a cluster: its dashboard (http://host:8265) or, on one of its nodes, host:6379",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser
