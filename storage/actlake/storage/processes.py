"""Which process of which machine something belongs to, and whether that process is gone."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What `is_gone` will want to know of this process, as plain JSON."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pids": _pid_namespace(),
        "pid": os.getpid(),
        "started": _start_ticks(os.getpid()),
    }


def is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the process is certainly dead: it was of this machine's present life, and is no more.

    Its start time is compared too, since a process number is used again, and its container,
    since each counts its processes by itself.
    """
    here = {"boot": _boot_id(), "pids": _pid_namespace()}
    if not all(here.values()) or any(owner.get(name) != value for name, value in here.items()):
        return False
    with suppress(PermissionError):  # another user's, and alive
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return True
    return _start_ticks(owner["pid"]) not in (owner["started"], _UNREADABLE)


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def _pid_namespace() -> str:
    """What the numbers of processes are relative to: differs between containers."""
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


_UNREADABLE = -1
_ZOMBIE = -2


def _start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return _UNREADABLE
    after_name = stat.rpartition(")")[2].split()
    is_zombie = after_name[0] == "Z"
    return _ZOMBIE if is_zombie else int(after_name[19])
