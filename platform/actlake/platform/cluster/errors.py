"""What can go wrong with a cluster, on one page.

    ClusterError                a cluster, or work on it          (ActlakeError)
    ├── InvalidClusterConfig    sizes or names that cannot be     (ValueError)
    ├── ClusterUnreachable      nobody answers, or not to us      (ConnectionError)
    ├── NotEnoughResources      the work can never be placed      (RuntimeError)
    ├── ReplicaStartFailed      replicas die before they work     (RuntimeError)
    ├── ReplicasKeepDying       replicas die without a result     (RuntimeError)
    ├── DeviceFailed            an accelerator or its driver failed            (RuntimeError)
    ├── DeviceOutOfMemory       a batch does not fit where it is computed      (MemoryError)
    ├── WorkerFailed            a worker's error that cannot travel as itself  (RuntimeError)
    ├── WorkStopped             ended early, on request           (RuntimeError)
    ├── ClusterMismatch         other code or versions there      (RuntimeError)
    ├── JobExists               a submitted job has that id       (ValueError)
    ├── JobNotFound             no submitted job has that id      (LookupError)
    └── JobRefused              the cluster does not take a job   (RuntimeError)

What a worker raises itself (a `StoreError`, a `ValueError`) is not in this list: it reaches
the caller of `run_units` as the same exception.
"""

from actlake.storage.errors import ActlakeError

WANTS_TOKEN = (
    "hint: a cluster with authentication needs RAY_AUTH_MODE=token, and its token in a file "
    "(mode 0600) that RAY_AUTH_TOKEN_PATH names, or in RAY_AUTH_TOKEN"
)
"""What to do where a cluster does not accept us."""


def first_line(error: Exception) -> str:
    """The first line of an error's words, or what it is called."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


class ClusterError(ActlakeError):
    """Something about a cluster, or about work on it."""


class InvalidClusterConfig(ClusterError, ValueError):
    """A cluster, a replica or a pool cannot have these sizes."""


class ClusterUnreachable(ClusterError, ConnectionError):
    """There is no cluster at that address, or it does not accept us."""


class NotEnoughResources(ClusterError, RuntimeError):
    """The cluster can never hold what is asked of it."""


class ReplicaStartFailed(ClusterError, RuntimeError):
    """Replicas could not be started, several times in a row."""


class ReplicasKeepDying(ClusterError, RuntimeError):
    """Replica after replica was lost and not one unit was finished in between."""


class DeviceFailed(ClusterError, RuntimeError):
    """An accelerator failed under a worker: a launch, its memory (ECC), its link, its driver."""

    node = ""
    """Ray's id of the node, where that is known."""


class DeviceOutOfMemory(ClusterError, MemoryError):
    """A worker's device, or the host's memory, is too small for what it was asked to compute."""

    node = ""
    """Ray's id of the node, where that is known."""


class WorkerFailed(ClusterError, RuntimeError):
    """A worker raised something that cannot be sent between processes; its words are kept."""


class WorkStopped(ClusterError, RuntimeError):
    """SIGTERM or Ctrl-C ended the work before there was a result."""


class ClusterMismatch(ClusterError, RuntimeError):
    """The cluster runs another Ray, Python or actlake than this process."""


class JobExists(ClusterError, ValueError):
    """A job of that id was submitted before."""


class JobNotFound(ClusterError, LookupError):
    """The cluster knows no job of that id."""


class JobRefused(ClusterError, RuntimeError):
    """The cluster does not take the job."""
