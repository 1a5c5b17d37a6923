"""Which of Ray's errors mean that a process or a node was lost, and what a worker raised.

A task that fails because another actor died is an instance of both kinds; the loss is what
counts, so it is asked about first.
"""

import re

from ray import exceptions

from actlake.platform.cluster.device_faults import device_fault
from actlake.platform.cluster.errors import ClusterError, ReplicasKeepDying

LOST = (
    exceptions.RayActorError,
    exceptions.ObjectLostError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.TaskPlacementGroupRemoved,
)
"""The work may or may not have been done; whoever did it is gone."""


def cause_of(error: Exception) -> Exception:
    """What was raised first, without Ray's wrappings of one failed call in another."""
    while isinstance(error, exceptions.RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


def reason(lost: Exception) -> str:
    """One line on why a process was lost."""
    words = " ".join(str(cause_of(lost)).split())
    detail = re.search(r"Worker exit detail: (.+?)(?: There are some potential| \(1\)|$)", words)
    return f"{type(cause_of(lost)).__name__}: {(detail[1] if detail else words)[:300]}"


def in_our_words(error: Exception, *, what: str) -> Exception:
    """What a failed call raised first, as itself; an error of Ray's own as one of ours.

    Parameters
    ----------
    what
        What has failed, as a sentence begins: ``A part of the sum``.
    """
    cause = cause_of(error)
    if (fault := device_fault(cause)) is not None:
        return fault
    if isinstance(cause, LOST):
        return ReplicasKeepDying(
            f"{what} lost its process, at every attempt\n{reason(cause)}\n"
            "hint: out of memory? fewer workers a node or smaller batches need less; "
            "resources.memory_mb keeps others away"
        )
    if isinstance(cause, exceptions.RuntimeEnvSetupError):
        return ClusterError(
            f"{what} could not be started: a node cannot make its environment\n{reason(cause)}\n"
            "hint: runtime_env_setup-*.log in the node's Ray logs says why"
        )
    if isinstance(cause, exceptions.RayError):
        return ClusterError(
            f"{what} failed on the cluster\n{reason(cause)}\n"
            "hint: `actlake doctor` looks at the cluster; the same command goes on"
        )
    return cause
