"""A connection to Ray: an embedded cluster of this process, or one that is already running.

    with session(ClusterConfig(num_cpus=4)) as cluster:
        result = run_units(cluster, units, replica, replicas=2, on_done=commit)

What Ray would do by itself and is not done here: join whatever cluster a file of the machine
names; start without authentication although its ports listen on all interfaces, or write a
world-readable token into the home folder; report usage; start a dashboard.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ray

from actlake.platform.cluster.config import ClusterConfig
from actlake.platform.cluster.errors import (
    WANTS_TOKEN,
    ClusterError,
    ClusterMismatch,
    ClusterUnreachable,
    InvalidClusterConfig,
    WorkStopped,
)
from actlake.platform.cluster.interrupts import current_handlers, no_ctrl_c_is_lost, stop_flag
from actlake.platform.cluster.leftovers import ends_with
from actlake.platform.cluster.resources import Resources, of_ray, total
from actlake.platform.cluster.same_code import check_same_code
from actlake.platform.cores import usable_cores
from actlake.platform.telemetry import turn_off_telemetry
from actlake.storage.processes import is_gone, this_process

logger = logging.getLogger(__name__)

LOCAL = "local"
"""The address of a cluster that lives and dies with this process."""

_PREFIX = "rt"
_OWNER = "owner.json"
_LONGEST_TEMP_DIR = 30  # Ray appends some 70 bytes; the path of a Unix socket may have 107


@dataclass(frozen=True, slots=True)
class Session:
    """A cluster that is there. Made by `session`."""

    address: str
    """``host:port`` of the cluster's head."""

    embedded: bool
    """It was started by this session and ends with it."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Set by SIGTERM and Ctrl-C: whoever works should finish what is in flight and return."""

    def nodes(self, *, without: Collection[str] = ()) -> list[Resources]:
        """What each living node has, in use or not; `without` nodes of these ids."""
        return [
            of_ray(node["Resources"])
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in without
        ]

    def free(self) -> Resources:
        """What nobody has reserved at this moment, over all nodes."""
        return of_ray(ray.available_resources())

    def raise_if_stopped(self) -> None:
        """Raise `WorkStopped` where a stop was asked for and nothing is in flight."""
        if self.stop.is_set():
            raise WorkStopped(
                "Stopped; all that is complete is written down\n"
                "hint: the same command goes on from there"
            )

    def __str__(self) -> str:
        nodes = self.nodes()
        return f"Ray at {self.address}: {len(nodes)} node(s), {total(nodes)}"


@contextmanager
def session(config: ClusterConfig | None = None) -> Iterator[Session]:
    """Connect to Ray, or start an embedded cluster, for the length of a ``with`` block.

    Starting takes about 5 s, ending 1.5 s. Within a process that is connected already, that
    connection is used and left as it is. In the main thread, SIGTERM and SIGINT set
    `Session.stop` until the block ends; a second Ctrl-C raises `KeyboardInterrupt`.

    Raises
    ------
    ClusterUnreachable
        Nobody answers at the address, or our token is not accepted.
    ClusterMismatch
        The running cluster has another Ray or Python than this process, or a node has other code
        of actlake.
    InvalidClusterConfig
        The address is not one that can be connected to.
    """
    config = config or ClusterConfig()
    handlers = current_handlers()
    if ray.is_initialized():
        here = Session(ray.get_runtime_context().gcs_address, embedded=False)
        with stop_flag(here.stop, restore=handlers):
            yield here
        return
    address = address_of(config)
    began = time.monotonic()
    with _embedded(config) if address == LOCAL else _joined(address, config):
        here = Session(ray.get_runtime_context().gcs_address, embedded=address == LOCAL)
        logger.info("%s, after %.1f s", here, time.monotonic() - began)
        # Ray's shutdown comes after the handlers are back, so that Ctrl-C ends it too.
        with stop_flag(here.stop, restore=handlers):
            if not here.embedded:
                check_same_code()
            yield here


def address_of(config: ClusterConfig) -> str:
    """Where `session` would connect: `LOCAL`, or the ``host:port`` of a running cluster."""
    address = config.address or os.environ.get("RAY_ADDRESS") or LOCAL
    if "://" in address:
        raise InvalidClusterConfig(
            f"{_named(address, config)} is not the address of a cluster's head\n"
            f"there can be '{LOCAL}' or 'host:port' (Ray's own port, 6379 by default)\n"
            "hint: a http:// address is a dashboard's, for submitting jobs; a job that runs on "
            f"the cluster connects by itself{_or_here(config)}"
        )
    return address


def _named(address: str, config: ClusterConfig) -> str:
    """An address with where it comes from, for whoever has not written it just now."""
    return f"{address!r} (from {'cluster.address' if config.address else '$RAY_ADDRESS'})"


def _or_here(config: ClusterConfig) -> str:
    """How to do without a cluster that the environment names."""
    if config.address:
        return ""
    return f"; --cluster.address {LOCAL}, or RAY_ADDRESS unset, starts one on this machine"


@contextmanager
def _embedded(config: ClusterConfig) -> Iterator[None]:
    _use_token(_own_token())
    folder = _own_folder(_short_folder())
    try:
        with (
            ends_with(folder) as cluster,
            _initialized(
                LOCAL,
                config,
                num_cpus=config.num_cpus or usable_cores(),
                num_gpus=config.num_gpus,
                object_store_memory=config.object_store_mb * 2**20,
                include_dashboard=False,
                _temp_dir=str(folder),
            ),
        ):
            try:
                yield
            finally:
                cluster.look()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(address: str, config: ClusterConfig) -> Iterator[None]:
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        _use_token(None)
    _knock(address, config)
    with _initialized(address, config):
        yield


@contextmanager
def _initialized(address: str, config: ClusterConfig, **options: Any) -> Iterator[None]:
    turn_off_telemetry()
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the pool hears of every one
    # Workers would inherit the driver's W&B service and then find their run "in use".
    os.environ.pop("WANDB_SERVICE", None)
    try:
        try:
            with no_ctrl_c_is_lost():
                ray.init(
                    address=address,
                    namespace="actlake",
                    log_to_driver=config.worker_output,
                    logging_level=logging.ERROR,
                    **options,
                )
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise _refused(address, config, error) from error
        yield
    finally:
        # Also of a start that Ctrl-C has interrupted: half a connection crashes when Python exits.
        ray.shutdown()


def _refused(address: str, config: ClusterConfig, error: Exception) -> ClusterError:
    words = " ".join(str(error).split())[:500]
    where = repr(address) if address == LOCAL else _named(address, config)
    said = f"Ray at {where} cannot be used\n{type(error).__name__}: {words}\n"
    if "ersion mismatch" in words:
        return ClusterMismatch(
            f"{said}hint: use the cluster's versions of Ray and Python here (this is Ray "
            f"{ray.__version__}){_or_here(config)}"
        )
    if address == LOCAL:
        said += "hint: is there room in memory, in the temporary folder and in /dev/shm?"
        return ClusterUnreachable(said)
    return ClusterUnreachable(said + WANTS_TOKEN + _or_here(config))


def _knock(address: str, config: ClusterConfig) -> None:
    """Ray itself waits for minutes at an address where nobody is."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InvalidClusterConfig(
            f"{_named(address, config)} is not the address of a cluster's head\n"
            f"there can be '{LOCAL}' or 'host:port' (Ray's own port, 6379 by default)\n"
            f"hint: `ray status` on the head says its address{_or_here(config)}"
        )
    try:
        socket.create_connection(
            (host.strip("[]"), int(port)), timeout=config.connect_timeout_s
        ).close()
    except (OSError, OverflowError) as error:  # the latter: no port has such a number
        raise ClusterUnreachable(
            f"There is no cluster at {_named(address, config)}: {error}\n"
            "hint: `ray status` on the head says whether it runs; the port is Ray's own (6379 "
            f"by default), not the dashboard's (8265){_or_here(config)}"
        ) from error


def _use_token(token: str | None) -> None:
    """Turn on token authentication, for this process and those it starts."""
    os.environ["RAY_AUTH_MODE"] = "token"
    if token is not None:
        os.environ["RAY_AUTH_TOKEN"] = token
    # Ray reads its settings when it is imported, which has been before this.
    ray._raylet.Config.initialize("")


@cache
def _own_token() -> str:
    """The token in the environment, or a random one that lasts as long as this process.

    One for all embedded clusters of the process, because Ray reads it once and keeps it.
    """
    return os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


def _own_folder(parent: Path) -> Path:
    """A new folder in `parent`; those whose processes were killed are removed first."""
    for owner in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError, ValueError):  # another user's, or being removed by another process
            if is_gone(json.loads(owner.read_text(encoding="utf-8"))):
                shutil.rmtree(owner.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    (folder / _OWNER).write_text(json.dumps(this_process()), encoding="utf-8")
    return folder


def _short_folder() -> Path:
    """A temporary folder whose name leaves room for Ray's sockets."""
    folder = Path(tempfile.gettempdir())
    if len(os.fsencode(folder)) <= _LONGEST_TEMP_DIR:
        return folder
    short = Path(os.sep, "tmp")
    if os.access(short, os.W_OK):
        return short
    raise InvalidClusterConfig(
        f"The temporary folder {folder} has too long a name for Ray's sockets\n"
        f"hint: set TMPDIR to a folder with a name of at most {_LONGEST_TEMP_DIR} bytes"
    )
