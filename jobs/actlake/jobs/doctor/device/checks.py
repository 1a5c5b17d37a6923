"""The checks of a device, in their order, in a folder that is removed afterwards."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from actlake.jobs.doctor.check import Check, Finding
from actlake.jobs.doctor.device import models, reading, training, units
from actlake.jobs.doctor.device.bench import Bench
from actlake.jobs.doctor.device.speed import SpeedChecks

CHECKS: Mapping[str, Callable[[Bench, SpeedChecks], Iterator[Finding]]] = {
    "load": lambda bench, _: models.check_load(bench),
    "families": lambda bench, _: models.check_families(bench),
    "one unit twice": lambda bench, _: units.check_same_unit_twice(bench),
    "buffers": lambda bench, _: units.check_buffers(bench),
    "buffers in little memory": lambda bench, _: units.check_buffers_in_little_memory(bench),
    "batches": lambda bench, _: reading.check_batches(bench),
    "overflow": lambda bench, _: units.check_overflow(bench),
    "capture": lambda _, speed: speed.check_capture(),
    "meter": lambda _, speed: speed.check_meter(),
    "synchronisations": lambda _, speed: speed.check_memory(),
    "SAE training": lambda bench, _: training.check_training(bench),
    "out of memory": lambda bench, _: units.check_out_of_memory(bench),
}
"""By name, in their order: what does not fit, and may harm the process, comes last."""


@contextmanager
def device_checks(device: torch.device) -> Iterator[list[tuple[str, Check]]]:
    """Twelve checks of a device, by name. None of them needs a network, Ray or a model."""
    with tempfile.TemporaryDirectory(prefix="actlake-doctor-") as scratch:
        bench = Bench(device, Path(scratch))
        speed = SpeedChecks(bench)
        yield [(name, partial(check, bench, speed)) for name, check in CHECKS.items()]
