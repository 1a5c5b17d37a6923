"""Which of Ray's errors mean that a process or a node was lost, and what a worker raised.

A task that fails because another actor died is an instance of both kinds; the loss is what
counts, so it is asked about first.
"""

import re

from ray import exceptions

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
