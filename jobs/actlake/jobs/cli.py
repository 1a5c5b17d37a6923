"""The command line: ``actlake <command>``. One table of commands; each is a plain function.

Answers go to stdout, everything else to stderr. An error that actlake refuses is printed
without a traceback and ends with status 1; a run that ends in good order at SIGTERM or Ctrl-C with
143; a second Ctrl-C with 130.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actlake.jobs.interrupted import STATUS, ends_at_once
from actlake.jobs.saying import show_what_can_be_shown
from actlake.platform.telemetry import turn_off_telemetry
from actlake.storage import ActlakeError
from actlake.storage.errors import in_words
from actlake.storage.printable import printable_lines

logger = logging.getLogger(__name__)

Run = Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Command:
    """One word after ``actlake``."""

    does: str
    load: Callable[[], Run]
    """Imports the command only when it is run: torch alone takes seconds."""


def _harvest() -> Run:
    from actlake.jobs.harvest.command import main

    return main


def _info() -> Run:
    from actlake.jobs.stores import info

    return info


def _export() -> Run:
    from actlake.jobs.export import main

    return main


def _verify() -> Run:
    from actlake.jobs.stores import verify

    return verify


def _demo() -> Run:
    from actlake.jobs.demo import main

    return main


def _sae() -> Run:
    from actlake.jobs.sae.command import main

    return main


def _transport() -> Run:
    from actlake.jobs.transport.command import main

    return main


def _submit() -> Run:
    from actlake.jobs.submission.command import main

    return main


def _jobs() -> Run:
    from actlake.jobs.submission.jobs_command import main

    return main


def _run() -> Run:
    from actlake.jobs.pipeline.command import main

    return main


def _cluster() -> Run:
    from actlake.jobs.cluster_command import main

    return main


def _doctor() -> Run:
    from actlake.jobs.doctor.command import main

    return main


def _probe() -> Run:
    from actlake.jobs.probe.command import main

    return main


COMMANDS = {
    "cluster": Command("start a Ray cluster that only its owner can use", _cluster),
    "demo": Command("the whole path on a small real model, on this machine, in minutes", _demo),
    "doctor": Command("what is wrong with this machine or a cluster, and what to do", _doctor),
    "export": Command("copy chosen sites, splits or rows into a new store", _export),
    "harvest": Command("fill a store with a model's activations on a text", _harvest),
    "info": Command("what a store holds, and how much of it", _info),
    "jobs": Command("list, follow and stop what was submitted to a cluster", _jobs),
    "run": Command("harvest, train, fit and probe as one pipeline", _run),
    "submit": Command("run a job on a Ray cluster", _submit),
    "sae": Command("train sparse autoencoders, transcoders and crosscoders", _sae),
    "probe": Command("train linear probes at every site, beside honest controls", _probe),
    "transport": Command("fit linear maps between layers and test what they carry", _transport),
    "verify": Command("whether a store is sound, byte by byte; --repair mends it", _verify),
}


_GO_ON = frozenset({"demo", "export", "harvest", "probe", "run", "sae", "transport"})
"""Commands that keep what is complete; the others have nothing to keep."""


def run(arguments: Sequence[str]) -> int:
    """Run a command; its exit status."""
    show_what_can_be_shown()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        from actlake.storage.errors import nearest

        _print(f"actlake: there is no command {name!r}\n{nearest(name, COMMANDS)}", err=True)
        return 2
    _configure_logging()
    turn_off_telemetry()
    try:
        with ends_at_once():
            command = COMMANDS[name].load()
        return command(rest)
    except ActlakeError as error:
        _print(f"actlake {name}: {error}", err=True)
        return 1
    except OSError as error:
        words = in_words(error)
        if words is None:
            raise
        logger.debug("What the system refused came from here", exc_info=True)
        _print(f"actlake {name}: {words}", err=True)
        return 1
    except KeyboardInterrupt:
        then = "goes on from here" if name in _GO_ON else "begins anew"
        _print(f"actlake {name}: interrupted; the same command {then}", err=True)
        return STATUS


def usage() -> str:
    """What ``actlake --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Activation datasets for interpretability.",
            "",
            "usage: actlake COMMAND [options]",
            "",
            *lines,
            "",
            "`actlake COMMAND --help` says more, with examples.",
        ]
    )


def _configure_logging() -> None:
    level = os.environ.get("ACTLAKE_LOG", "").strip().upper() or "INFO"
    if level not in logging.getLevelNamesMapping():
        _print(f"actlake: ACTLAKE_LOG is no level of logging ({level}); INFO is used", err=True)
        level = "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("actlake").setLevel(level)


class _Printable(logging.Formatter):
    """Lines in which nothing controls the terminal: names of files and documents may."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _print(text: str, *, err: bool = False) -> None:
    print(printable_lines(text), file=sys.stderr if err else sys.stdout)
