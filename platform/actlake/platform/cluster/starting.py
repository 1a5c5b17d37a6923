"""Start Ray on a machine so that only those with its token can use it.

``ray start`` of 2.60 leaves token authentication off unless it is told, and listens on all
interfaces. Here it is always on, and the dashboard is on loopback.
"""

import errno
import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from actlake.platform.cluster.errors import ClusterUnreachable, InvalidClusterConfig

PORT = 6379
DASHBOARD_PORT = 8265
AGENT_PORT = 52365
"""Ray's own default for the agent of a node, through which jobs are submitted to it."""

_ANSWERS_WITHIN_S = 10.0


def token_file(path: Path) -> Path:
    """The file with the token, made where there is none; only its owner may read it.

    Raises
    ------
    InvalidClusterConfig
        Others may read it, or it is empty.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidClusterConfig(
            f"{path} can be read by others than its owner, and gives all rights on the cluster\n"
            f"hint: chmod 600 {path}; if somebody may have read it, delete it for a new one"
        )
    if not path.read_text(encoding="utf-8").strip():
        raise InvalidClusterConfig(f"{path} is empty\nhint: delete it, and a new one is made")
    return path


def variables(token: Path) -> dict[str, str]:
    """What the environment of every process that uses the cluster needs."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token.absolute())}


def head_words(more: Sequence[str] = ()) -> list[str]:
    """The command that makes this machine a cluster's head; `more` are options of ``ray start``."""
    options = {
        "--port": str(PORT),
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": str(DASHBOARD_PORT),
        **_OF_EVERY_NODE,
    }
    return [*_RAY_START, "--head", "--disable-usage-stats", *_with(options, more)]


def node_words(address: str, more: Sequence[str] = ()) -> list[str]:
    """The command that makes this machine a node of a cluster."""
    return [
        *_RAY_START, f"--address={address}", "--disable-usage-stats", *_with(_OF_EVERY_NODE, more),
    ]  # fmt: skip


def _with(defaults: Mapping[str, str], more: Sequence[str]) -> list[str]:
    """The options that are given, behind those of the defaults that are not."""
    return [*(f"{k}={v}" for k, v in defaults.items() if value_of(k, more) is None), *more]


def value_of(option: str, words: Sequence[str]) -> str | None:
    """What an option of ``ray start`` is given in a command: the last one counts."""
    value = None
    for word, following in pairwise([*words, ""]):
        name, is_one_word, given = word.partition("=")
        if name == option:
            value = given if is_one_word else following
    return value


def check_ports_are_free(words: Sequence[str]) -> None:
    """Refuse to start Ray at ports where something listens, most likely another Ray.

    Ray ends with a traceback where the head's own port is taken. Where only the dashboard's is, it
    starts without one, and what is then submitted to that port runs on the other cluster. Where
    the agent's is, jobs are refused with "No available agent"; a second node of one machine would
    offer its cores and memory twice.

    Raises
    ------
    InvalidClusterConfig
        It names the port.
    """
    for option in ("--port", "--dashboard-port", "--dashboard-agent-listen-port"):
        port = value_of(option, words) or ""
        if port.isdecimal() and _is_taken(int(port)):
            raise InvalidClusterConfig(
                f"Something listens at port {port} of this machine already ({option}), perhaps a "
                "Ray that was started before\n"
                "hint: `ray status` says whether it is one, and `ray stop` ends all of Ray on this "
                "machine; a cluster beside it needs ports of its own: actlake cluster head -- "
                f"--port={PORT + 1} --dashboard-port={DASHBOARD_PORT + 1} "
                f"--dashboard-agent-listen-port={AGENT_PORT + 1}"
            )


def check_head_answers(address: str) -> None:
    """Refuse to join a cluster whose head does not answer: Ray itself would try for ever.

    Raises
    ------
    InvalidClusterConfig
        It is no ``HOST:PORT``.
    ClusterUnreachable
        Nobody answers there.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InvalidClusterConfig(
            f"{address!r} is not the address of a cluster's head\n"
            "hint: it is HOST:PORT, such as 10.0.0.5:6379; `actlake cluster head` says it"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:  # the latter: no port has such a number
        raise ClusterUnreachable(
            f"Nobody answers at {address}: {error}\n"
            "hint: does `ray status` on the head say that it runs, and can this machine reach that "
            "port?"
        ) from error


def _is_taken(port: int) -> bool:
    with closing(socket.socket()) as there:
        # A port whose last user has just ended may be used again.
        there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            there.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        except OverflowError:  # no port has such a number, which Ray says
            return False
    return False


def run(words: Sequence[str], token: Path) -> int:
    """Run one of these commands; its exit status.

    The environment is what jobs will find, so a token given in another way is taken out of it,
    and programs of this Python's environment come first.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = kept | variables(token) | {"PATH": programs}
    return subprocess.run(words, env=environment, check=False).returncode


_OF_EVERY_NODE = {"--dashboard-agent-listen-port": str(AGENT_PORT)}

_RAY_START = (sys.executable, "-m", "ray.scripts.scripts", "start")
