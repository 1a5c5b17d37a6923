"""Jobs on a running cluster, through its dashboard's address (Ray Jobs).

    server = JobServer("http://127.0.0.1:8265")
    server.submit(Submission(job_id="harvest-1", folder=shipped, command="harvest"))
    for text in server.follow("harvest-1"):
        print(text, end="")

The only file that imports ``ray.job_submission``. A job's environment variables and metadata
can be read by everybody who may see the dashboard, so nothing secret may be among them: keys
belong into the environment in which nodes are started, or into files there.
"""

import asyncio
import importlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from actlake.platform.cluster.errors import (
    WANTS_TOKEN,
    ClusterMismatch,
    ClusterUnreachable,
    InvalidClusterConfig,
    JobExists,
    JobNotFound,
    JobRefused,
    first_line,
)
from actlake.platform.cluster.interrupts import STOP_WAIT
from actlake.platform.cluster.resources import Resources, of_ray
from actlake.storage.errors import nearest

logger = logging.getLogger(__name__)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where a dashboard is by default, here or at the end of an SSH tunnel."""

State = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]

_OVER = ("STOPPED", "SUCCEEDED", "FAILED")
_CONNECT_S = 10.0
_REQUEST_S = 120.0  # a submission uploads the code with it
_POLL_S = 0.5
_RECONNECTS = 5
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job to be run: a folder that holds everything, and what is said about it."""

    job_id: str
    """Unique on the cluster, also among jobs that have ended."""

    folder: Path
    """Becomes the job's working directory on every node; the entry point is in it."""

    entrypoint: str
    """What the shell runs in that folder, on the head."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the driver and all workers. Readable by all who may see the dashboard."""

    drain_s: int = 60
    """Seconds between SIGTERM and SIGKILL when the job is stopped; see `interrupts.drain_s`."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Shown with the job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster tells it."""

    job_id: str
    state: State
    labels: Mapping[str, str]
    message: str
    started: datetime | None
    ended: datetime | None
    exit_status: int | None
    """Of the entry point; None while it runs, when it was stopped, and when it never ran."""

    @property
    def is_over(self) -> bool:
        """It has ended, one way or another."""
        return self.state in _OVER

    @property
    def status(self) -> int:
        """What a command that waited for the job exits with: 143 when it was stopped."""
        if self.state == "STOPPED":
            return 143
        if self.state == "SUCCEEDED":
            return 0
        return self.exit_status or 1

    @property
    def seconds(self) -> float | None:
        """How long it has run, or ran."""
        if self.started is None:
            return None
        return ((self.ended or datetime.now(UTC)) - self.started).total_seconds()


class JobServer:
    """The dashboard of a cluster, as far as jobs are concerned.

    Parameters
    ----------
    address
        ``http://host:8265``; None means $RAY_API_SERVER_ADDRESS, or this machine.
    token
        Of the cluster's authentication; None means what Ray's variables name: RAY_AUTH_TOKEN,
        the file of RAY_AUTH_TOKEN_PATH, or with RAY_AUTH_MODE=token ``~/.ray/auth_token``.

    Raises
    ------
    ClusterUnreachable
        Nobody answers there, or our token is not accepted.
    ClusterMismatch
        The cluster's Ray is of another minor version than this one.
    InvalidClusterConfig
        The address is not that of a dashboard.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None) -> None:
        self.address = dashboard_address(address)
        _knock(self.address, _origin(address))
        self._client, self.ray_version = _connect(self.address, token or _token())
        _check_ray(self.address, self.ray_version)

    def nodes(self) -> list[Resources]:
        """What each living node has, in use or not."""
        answer = self._get("/api/v0/nodes?limit=10000")
        nodes = answer["data"]["result"]["result"]
        return [of_ray(n["resources_total"]) for n in nodes if n["state"] == "ALIVE"]

    def is_open_to_all(self) -> bool:
        """Whether requests without a token are answered."""
        requests = importlib.import_module("requests")
        with self._asking():
            answer = requests.get(f"{self.address}/api/version", timeout=_CONNECT_S)
        return int(answer.status_code) == 200

    def nodes_without_agent(self) -> list[str]:
        """Addresses of nodes whose agent has no port: the head needs one to start any job."""
        summary = self._get("/nodes?view=summary")["data"]["summary"]
        return [
            str(node["ip"])
            for node in summary
            if node["raylet"].get("state") == "ALIVE"
            and node["raylet"].get("dashboardAgentListenPort", 1) <= 0
        ]

    def submit(self, submission: Submission) -> None:
        """Hand a job in; returns before it runs.

        Raises
        ------
        JobExists
            There is, or was, a job of that id.
        JobRefused
            The cluster does not take it.
        ClusterUnreachable
            It does not answer; whether it has taken the job is not known.
        """
        runtime_env = {
            "working_dir": str(submission.folder),
            "env_vars": {
                **submission.environment,
                STOP_WAIT: str(submission.drain_s),
            },
        }
        try:
            with self._asking(RuntimeError):
                self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.job_id,
                    runtime_env=runtime_env,
                    metadata=dict(submission.labels),
                )
        except ClusterUnreachable as error:
            raise ClusterUnreachable(
                f"{first_line(error)}\nWhether it has taken the job is not known\n"
                f"hint: `actlake jobs status {submission.job_id}` tells, once it answers again"
            ) from error
        except RuntimeError as error:
            if "already exists" in str(error):
                raise JobExists(
                    f"There is a job {submission.job_id} at {self.address} already\n"
                    "hint: give another --id, or leave it out"
                ) from error
            raise JobRefused(
                f"{self.address} does not take the job: {first_line(error)}\n{_job_hint(error)}"
            ) from error

    def jobs(self) -> list[Job]:
        """All submitted jobs the cluster remembers, the latest first."""
        with self._asking():
            details = [d for d in self._client.list_jobs() if d.submission_id]
        return [_job(d) for d in sorted(details, key=lambda d: -(d.start_time or 0))]

    def job(self, job_id: str) -> Job:
        """One job.

        Raises
        ------
        JobNotFound
            The cluster knows none of that id.
        ClusterUnreachable
            It does not answer.
        """
        try:
            with self._asking(RuntimeError):
                return _job(self._client.get_job_info(job_id))
        except RuntimeError as error:
            if not str(error).startswith("Request failed with status code 404"):
                raise self._silent(error) from error
            known = [job.job_id for job in self.jobs()]
            raise JobNotFound(
                f"There is no job {job_id} at {self.address}\n"
                f"{nearest(job_id, known) if known else 'hint: `actlake submit` makes one'}"
            ) from error

    def log(self, job_id: str) -> str:
        """Everything the job's driver has printed and logged."""
        self.job(job_id)
        with self._asking():
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What the driver prints, from its beginning, as it comes; ends with the job.

        A broken connection is made again, and nothing is given twice.

        Raises
        ------
        ClusterUnreachable
            The cluster went away and did not come back.
        """
        seen = failures = 0
        while True:
            try:
                over = self.job(job_id).is_over
                # The last lines may come after the end was noticed, and are in the whole log.
                texts = [self.log(job_id)] if over else _tail(self._client, job_id)
                skip = seen
                for text in texts:
                    fresh, skip = text[skip:], max(0, skip - len(text))
                    seen += len(fresh)
                    failures = 0
                    if fresh:
                        yield fresh
            except _failures(JobNotFound) as error:
                if isinstance(error, JobNotFound) and not seen:
                    raise
                failures += 1
                if failures > _RECONNECTS or isinstance(error, JobNotFound):
                    raise ClusterUnreachable(
                        f"{self.address} no longer answers: {first_line(error)}\n"
                        "hint: a cluster whose head has died forgets its jobs; start it again and "
                        "submit again, and the job goes on with what was committed"
                    ) from error
                over = False
            if over:
                return
            time.sleep(_POLL_S * 2**failures)

    def stop(self, job_id: str) -> bool:
        """Ask for SIGTERM, and SIGKILL after the job's drain time; False when it was over."""
        self.job(job_id)
        with self._asking():
            return bool(self._client.stop_job(job_id))

    def wait(self, job_id: str, *, timeout_s: float, begun: bool = False) -> Job:
        """The job once it is over, or as it is after `timeout_s`; asks again where nobody answers.

        Parameters
        ----------
        begun
            Wait only until it is no longer pending.
        """
        end = time.monotonic() + timeout_s
        while True:
            job = self._job_patiently(job_id)
            if job.is_over or (begun and job.state != "PENDING") or time.monotonic() > end:
                return job
            time.sleep(_POLL_S)

    def _job_patiently(self, job_id: str) -> Job:
        for failures in range(_RECONNECTS):
            try:
                return self.job(job_id)
            except ClusterUnreachable as error:
                logger.info("%s", first_line(error))
                time.sleep(_POLL_S * 2**failures)
        return self.job(job_id)

    def _get(self, endpoint: str) -> Any:
        with self._asking():
            answer = self._client._do_request("GET", endpoint)
            answer.raise_for_status()
            return answer.json()

    @contextmanager
    def _asking(self, *passing: type[Exception]) -> Iterator[None]:
        """Tell in our words that the cluster does not answer; errors of `passing` are answers."""
        try:
            yield
        except passing:
            raise
        except _failures() as error:
            raise self._silent(error) from error

    def _silent(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(
            f"{self.address} does not answer as it should: {first_line(error)}\n"
            "hint: the same command may succeed a little later; `actlake doctor --address …` says "
            "what is wrong with a cluster"
        )


def dashboard_address(address: str | None) -> str:
    """The http address that is meant.

    Raises
    ------
    InvalidClusterConfig
        It is the address of something else.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidClusterConfig(
            f"{_shown(given)!r}{_origin(address)} is not the address of a cluster's dashboard\n"
            "there can be http://host:8265 or https://…, without user and password\n"
            "hint: the dashboard of a cluster elsewhere is reached through "
            "`ssh -L 8265:127.0.0.1:8265 head`, at http://127.0.0.1:8265"
        )
    return given.rstrip("/")


def _shown(address: str) -> str:
    return address.rpartition("@")[2] if "@" in address else address


def _origin(address: str | None) -> str:
    """Where an address comes from that was not given, for an error."""
    if address:
        return ""
    there = os.environ.get("RAY_API_SERVER_ADDRESS")
    return " (from $RAY_API_SERVER_ADDRESS)" if there else " (no --address was given)"


def _knock(address: str, origin: str) -> None:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"Nobody answers at {address}{origin}: {error}\n"
            "hint: is the cluster up, and is this its dashboard's address (port 8265 by "
            "default)? It listens on the head's loopback only, so from elsewhere it needs "
            "`ssh -L 8265:127.0.0.1:8265 head`"
        ) from error


def _connect(address: str, token: str | None) -> tuple[Any, str]:
    """A client for exactly this address, and the cluster's version of Ray."""
    jobs = importlib.import_module("ray.job_submission")
    for module in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)

    class Client(jobs.JobSubmissionClient):  # type: ignore[misc, name-defined]
        def _do_request(self, *words: Any, **options: Any) -> Any:
            return super()._do_request(*words, timeout=_REQUEST_S, **options)

    # Ray lets these variables win over what is asked for.
    hidden = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        client = Client(address, headers=headers)
    except _failures(KeyError) as error:
        raise ClusterUnreachable(_no_dashboard(address, error, has_token=bool(token))) from error
    finally:
        os.environ.update(hidden)
    if client._ssl_context is None:
        client._ssl_context = True  # what None means, in words that aiohttp does not warn of
    return client, str(client._server_ray_version)


def _job_hint(error: Exception) -> str:
    if "agent" in str(error):
        return (
            "hint: an agent that runs jobs is missing; a second Ray on one machine needs a port of "
            "its own for it: `ray start --head --dashboard-agent-listen-port=…`"
        )
    return "hint: `actlake doctor --address …` says what is wrong with a cluster"


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What Ray's client raises when a cluster does not answer, or not as it should; and `more`."""
    return (
        *more,
        OSError,
        RuntimeError,
        importlib.import_module("requests").RequestException,
        importlib.import_module("aiohttp").ClientError,
        importlib.import_module("ray.exceptions").AuthenticationError,
    )


def _no_dashboard(address: str, error: Exception, *, has_token: bool) -> str:
    if type(error).__name__ != "AuthenticationError":
        return (
            f"{address} does not answer as Ray's dashboard does: {first_line(error)}\n"
            "hint: the port of the dashboard is 8265 by default; Ray's own port, 6379, is "
            "another thing"
        )
    what = "does not accept our token" if has_token else "wants a token, and there is none here"
    return f"{address} {what}\n{WANTS_TOKEN}"


def _token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not named and os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        raise ClusterUnreachable(
            f"The cluster's token cannot be read: {error.strerror}: {path}\n"
            "hint: RAY_AUTH_TOKEN_PATH names a file that holds it"
        ) from error


def _check_ray(address: str, there: str) -> None:
    ray = importlib.import_module("ray")
    here = str(ray.__version__)
    if here.split(".")[:2] != there.split(".")[:2]:
        raise ClusterMismatch(
            f"The cluster at {address} runs Ray {there}, and this is Ray {here}\n"
            f"hint: pip install 'ray[default]=={there}' here if actlake allows it, or start the "
            f"cluster with {here}"
        )


def _tail(client: Any, job_id: str) -> Iterator[str]:
    """Ray's asynchronous log as a plain iterator; Ctrl-C raises KeyboardInterrupt in it."""
    with asyncio.Runner() as runner:
        lines = client.tail_job_logs(job_id)

        async def next_lines() -> str | None:
            return cast("str | None", await anext(lines, None))

        async def closed() -> None:
            await lines.aclose()

        try:
            while (text := runner.run(next_lines())) is not None:
                yield text
        finally:  # the agent logs a connection that is not closed as an error of the job
            runner.run(closed())


def _job(details: Any) -> Job:
    return Job(
        job_id=details.submission_id,
        state=cast(State, str(getattr(details.status, "value", details.status))),
        labels=details.metadata or {},
        message=details.message or "",
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        exit_status=details.driver_exit_code,
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
