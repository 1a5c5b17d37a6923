"""What a process asks of Ray, and the environment it finds: one owner for all that start some."""

from typing import Any

from actlake.platform.cluster.resources import Resources
from actlake.platform.compute_threads import thread_variables


def process_options(resources: Resources, *, threads: int) -> dict[str, Any]:
    """Options of an actor or a task that reserves `resources` and computes in `threads`."""
    options: dict[str, Any] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "runtime_env": {"env_vars": environment(resources, threads=threads)},
    }
    if resources.memory_mb:
        options["memory"] = memory_bytes(resources)
    return options


def bundle_of(resources: Resources) -> dict[str, float]:
    """The same reservation as a bundle of a placement group."""
    amounts = {
        "CPU": resources.cpus, "GPU": resources.gpus, "memory": memory_bytes(resources),
    }  # fmt: skip
    return {name: amount for name, amount in amounts.items() if amount}


def memory_bytes(resources: Resources) -> int:
    """Reserved memory as Ray counts it."""
    return int(resources.memory_mb * 2**20)


def environment(resources: Resources, *, threads: int) -> dict[str, str]:
    """Variables of the process: its threads, and no GPU where it reserves none."""
    variables = thread_variables(threads)
    if not resources.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave all GPUs visible
    return variables
