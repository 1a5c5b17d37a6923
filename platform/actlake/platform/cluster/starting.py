"""Start Ray on a machine so that only those with its token can use it.

``ray start`` of 2.60 leaves token authentication off unless it is told, and listens on all
interfaces. Here it is always on, and the dashboard is on loopback.
"""

import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from actlake.platform.cluster.errors import InvalidClusterConfig

PORT = 6379
DASHBOARD_PORT = 8265


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
    }
    given = {word.partition("=")[0] for word in more}
    defaults = [f"{name}={value}" for name, value in options.items() if name not in given]
    return [*_RAY_START, "--head", "--disable-usage-stats", *defaults, *more]


def node_words(address: str, more: Sequence[str] = ()) -> list[str]:
    """The command that makes this machine a node of a cluster."""
    return [*_RAY_START, f"--address={address}", "--disable-usage-stats", *more]


def run(words: Sequence[str], token: Path) -> int:
    """Run one of these commands; its exit status.

    The environment is what jobs will find, so a token given in another way is taken out of it,
    and programs of this Python's environment come first.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = kept | variables(token) | {"PATH": programs}
    return subprocess.run(words, env=environment, check=False).returncode


_RAY_START = (sys.executable, "-m", "ray.scripts.scripts", "start")
