"""``actlake jobs``: list, follow, look at and stop what was submitted."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from actlake.jobs.saying import say, say_table
from actlake.jobs.submission.command import follow
from actlake.platform.cluster.submission import DEFAULT_ADDRESS, Job, JobServer


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    options = _parser().parse_args(list(arguments))
    return _DEEDS[options.deed](JobServer(options.address), options)


def _list(server: JobServer, options: argparse.Namespace) -> int:
    jobs = server.jobs()
    if options.json:
        _say(json.dumps([_plain(job) for job in jobs], indent=1))
        return 0
    table = Table(box=None, header_style="bold")
    for column in ("job", "command", "state", "started (UTC)", "time", "result"):
        table.add_column(column)
    for job in jobs:
        cells = (
            job.job_id, job.labels.get("actlake", "–"), job.state.lower(),
            f"{job.started:%Y-%m-%d %H:%M}" if job.started else "–", _clock(job),
            job.labels.get("result", "–"),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    if jobs:
        say_table(table)
    else:
        say("No job was submitted to this cluster")
    return 0


def _logs(server: JobServer, options: argparse.Namespace) -> int:
    if options.follow:
        return follow(server, options.job)
    sys.stdout.write(server.log(options.job))
    return 0


def _status(server: JobServer, options: argparse.Namespace) -> int:
    """Say how a job is; 0 unless it failed."""
    job = server.job(options.job)
    if options.json:
        _say(json.dumps(_plain(job), indent=1))
    else:
        lines = [f"{job.job_id}  {job.state.lower()}, {_clock(job)}"]
        lines += [f"  {name}: {value}" for name, value in job.labels.items()]
        lines += [f"  exit status: {job.exit_status}"] if job.exit_status is not None else []
        lines += [f"  {line}" for line in job.message.splitlines()[-12:]]
        _say("\n".join(lines))
    return 1 if job.state == "FAILED" else 0


def _stop(server: JobServer, options: argparse.Namespace) -> int:
    """Stop a job and wait for it; 0 once it is over."""
    if not server.stop(options.job):
        _say(f"{options.job} was over already: {server.job(options.job).state.lower()}")
        return 0
    _say(
        f"{options.job} was sent SIGTERM: it finishes what is in flight, as long as its drain "
        "time allows"
    )
    if options.no_wait:
        return 0
    job = server.wait(options.job, timeout_s=options.timeout)
    _say(f"{options.job} {job.state.lower()}; submitted again, it goes on from there")
    return 0 if job.is_over else 1


_DEEDS: Mapping[str, Callable[[JobServer, argparse.Namespace], int]] = {
    "list": _list, "logs": _logs, "status": _status, "stop": _stop,
}  # fmt: skip


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _clock(job: Job) -> str:
    return "–" if job.seconds is None else str(timedelta(seconds=round(job.seconds)))


def _plain(job: Job) -> dict[str, Any]:
    return {
        "job": job.job_id, "state": job.state, "labels": dict(job.labels), "message": job.message,
        "started": job.started and job.started.isoformat(),
        "ended": job.ended and job.ended.isoformat(), "exit_status": job.exit_status,
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actlake jobs",
        description="What was submitted to a cluster with `actlake submit`.",
        epilog="examples:\n  actlake jobs list\n"
        "  actlake jobs logs harvest-20260101-120000-1a2b --follow\n"
        "  actlake jobs stop harvest-20260101-120000-1a2b --address http://127.0.0.1:8265",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    deeds = parser.add_subparsers(dest="deed", required=True, metavar="list|logs|status|stop")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--address", help=f"the cluster's dashboard; by default {DEFAULT_ADDRESS}")
    words = {
        "list": "all jobs, the latest first",
        "logs": "what a job has printed",
        "status": "how a job is; exit status 1 when it has failed",
        "stop": "end a job: SIGTERM, so that it keeps what it has done",
    }
    each = {name: deeds.add_parser(name, help=what, parents=[where], description=what)
            for name, what in words.items()}  # fmt: skip
    for name in ("logs", "status", "stop"):
        each[name].add_argument("job", help="the job's id")
    for name in ("list", "status"):
        each[name].add_argument("--json", action="store_true", help="for programs")
    each["logs"].add_argument("--follow", action="store_true", help="until the job ends")
    each["stop"].add_argument("--no-wait", action="store_true", help="do not wait for its end")
    each["stop"].add_argument(
        "--timeout", type=float, default=600, help="seconds to wait for its end (600)"
    )
    return parser
