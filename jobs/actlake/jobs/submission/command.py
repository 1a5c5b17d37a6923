"""``actlake submit``: check a job here, ship it to a cluster, and follow it if wanted."""

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlake.jobs.cli import COMMANDS
from actlake.jobs.steps import STEPS, demand, resolved_yaml, step_kind
from actlake.jobs.submission.environment import job_environment, refuse_secrets
from actlake.jobs.submission.errors import InvalidSubmission
from actlake.jobs.submission.shipping import CONFIG, START, pack_job, refuse_relative
from actlake.platform.cluster.submission import DEFAULT_ADDRESS, JobServer, Submission
from actlake.platform.config.yaml_text import parse_yaml

_FLAGS = ("--plan",)
"""Arguments of commands that are no part of their configuration and go with the job."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status, with ``--follow`` the job's."""
    parser = _parser()
    options, rest = parser.parse_known_args(list(arguments))
    if options.job != "run":
        step_kind(options.job)
    if options.drain < 1:
        raise InvalidSubmission(f"--drain is {options.drain}\nhint: at least one second")
    words, config_yaml, config = _read(options.job, rest)
    refuse_secrets(config)
    refuse_relative(config)
    environment = job_environment(options.env)
    server = JobServer(options.address)
    _check_room(server, options.job, config)
    job_id = options.id or _new_id(options.job)
    with tempfile.TemporaryDirectory(prefix="actlake-job-") as folder:
        code = pack_job(
            Path(folder), arguments=[options.job, *words], config_yaml=config_yaml,
            with_code=not options.installed,
        )  # fmt: skip
        server.submit(
            Submission(
                job_id=job_id,
                folder=Path(folder),
                entrypoint=f"exec {options.python} -u {START}",
                environment=environment,
                drain_s=options.drain,
                labels={"actlake": options.job, "code": code, **_result(options.job, config)},
            )
        )
    sys.stdout.write(f"{job_id}\n")
    _say(f"submitted to {server.address}; its variables: {', '.join(environment) or 'none'}")
    if not options.follow:
        _say(f"follow it with `{follow_line(job_id, server.address)}`")
        return 0
    return follow(server, job_id)


def _read(command: str, arguments: Sequence[str]) -> tuple[list[str], str, Mapping[str, Any]]:
    """What the command is given on the cluster, the file it reads there, and what is in that."""
    if command == "sae" and arguments[:1] == ["encode"]:  # has options and no configuration
        from actlake.jobs.sae.encode import read_options

        return list(arguments), "", vars(read_options(arguments[1:]))
    flags = [word for word in arguments if word in _FLAGS]
    config_yaml = _whole_config(command, [word for word in arguments if word not in _FLAGS])
    config, _ = parse_yaml(config_yaml, name="config")
    assert isinstance(config, dict), config
    return ["--config", CONFIG, *flags], config_yaml, config


def _whole_config(command: str, arguments: Sequence[str]) -> str:
    if command != "run":
        return resolved_yaml(command, arguments)
    from actlake.jobs.pipeline.command import inlined_yaml

    return inlined_yaml(arguments)


def follow(server: JobServer, job_id: str) -> int:
    """Print a job's output until it ends; its exit status. Ctrl-C leaves it running."""
    try:
        _await_start(server, job_id)
        for text in server.follow(job_id):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say(
            f"\nDetached; {job_id} goes on. To follow it again:\n"
            f"  {follow_line(job_id, server.address)}\n"
            f"To stop it:\n  actlake jobs stop {job_id} --address {server.address}"
        )
        return 130
    job = server.wait(job_id, timeout_s=30)
    _say(f"{job_id} {job.state.lower()} with status {job.status}")
    if job.exit_status is None and job.state == "FAILED":
        _say(job.message)
    return job.status


def follow_line(job_id: str, address: str) -> str:
    """The command that follows a job."""
    return f"actlake jobs logs {job_id} --follow --address {address}"


def _await_start(server: JobServer, job_id: str) -> None:
    """Wait until the job runs; say every ten seconds why it does not."""
    while (job := server.wait(job_id, timeout_s=10, begun=True)).state == "PENDING":
        _say(f"{job_id} is pending: {job.message}")


def _check_room(server: JobServer, command: str, config: Mapping[str, Any]) -> None:
    """Refuse a job that the cluster can never hold, before anything is sent."""
    steps = config["steps"].values() if command == "run" else [{"config": config}]
    nodes = server.nodes()
    for step in steps:
        if asked := demand(step["config"], nodes):
            asked.check(nodes)


def _result(command: str, config: Mapping[str, Any]) -> dict[str, str]:
    return {"result": str(config[STEPS[command].output])} if command in STEPS else {}


def _new_id(command: str) -> str:
    return f"{command}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")


def _parser() -> argparse.ArgumentParser:
    jobs = [name for name in (*STEPS, "run") if name in COMMANDS]
    parser = argparse.ArgumentParser(
        prog="actlake submit",
        usage="actlake submit JOB [--config FILE] [--KEY VALUE ...] [--address URL] [--follow] "
        "[--env NAME[=VALUE]] [--installed] [--drain SECONDS] [--id ID] [--python NAME]",
        description=(
            f"Run a job on a Ray cluster. JOB is one of {', '.join(jobs)}, with the same "
            "configuration as here; it is checked before anything is sent. The code of this "
            "installation and the configuration travel with the job."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB", help="the command; `actlake JOB --help` has its keys")
    parser.add_argument("--address", help=f"the cluster's dashboard; by default {DEFAULT_ADDRESS}")
    parser.add_argument(
        "--follow", action="store_true", help="print the job's output; Ctrl-C detaches"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="a variable for the job, several times if need be; readable in the dashboard, so "
        "never a key or a token",
    )  # fmt: skip
    parser.add_argument(
        "--installed", action="store_true",
        help="use the actlake that is installed on the cluster's nodes; the same code, or refused",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=int, default=60, metavar="SECONDS",
        help="between SIGTERM and SIGKILL when the job is stopped (60): what is in flight is "
        "finished in all of it but the last 15 s, in which the job ends in good order",
    )  # fmt: skip
    parser.add_argument("--id", help="the job's id; made up by default")
    parser.add_argument(
        "--python", default="python", help="how the cluster's interpreter is called (python)"
    )
    return parser


_EPILOG = """examples:
  actlake submit harvest --config harvest.yaml --address http://127.0.0.1:8265 --follow
  actlake submit transport --config transport.yaml --moments.workers 8 --env HF_HUB_OFFLINE=1
  actlake submit sae encode /shared/sae /shared/store --out /shared/latents --workers 8
  actlake submit run --config pipeline.yaml --drain 300

A cluster with authentication is given its token by RAY_AUTH_TOKEN_PATH (a file) or
RAY_AUTH_TOKEN. Keys of W&B, Hugging Face or S3 are set where the nodes are started, never
here: see docs/cluster.md."""
