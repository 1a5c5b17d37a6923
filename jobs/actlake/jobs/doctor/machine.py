"""What this machine has: versions, processors, memory, disk, GPUs."""

import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement

from actlake.jobs.doctor.check import Finding, Status
from actlake.platform.cluster.job_start import code_hash
from actlake.platform.cores import usable_cores
from actlake.platform.free_memory import free_memory
from actlake.platform.runs import versions
from actlake.storage.summary import human_bytes

LITTLE_SPACE = 20e9
NO_SPACE = 1e9
LITTLE_MEMORY = 4e9
SHARED_MEMORY = 256 * 2**20  # what an embedded Ray asks for by default

_EXTRAS = ("platform", "query", "jobs")


def check_versions() -> Iterator[Finding]:
    """Every package that the jobs need, against what actlake asks for."""
    there = versions()
    here = importlib.metadata.version("actlake")
    shown = ", ".join(f"{name} {version}" for name, version in there.items() if name != "platform")
    wrong = [words for line in importlib.metadata.requires("actlake") or ()
             if (words := _unmet(Requirement(line)))]  # fmt: skip
    says = f"actlake {here} (code {code_hash()}), {shown}"
    if wrong:
        yield Finding("versions", "fail", f"{'; '.join(wrong)}. {says}",
                      "pip install --upgrade 'actlake[jobs]'")  # fmt: skip
    else:
        yield Finding("versions", "ok", says)


def _unmet(requirement: Requirement) -> str:
    """Why a requirement is not met; empty when it is, or is none of the jobs'."""
    marker = requirement.marker
    if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *_EXTRAS)):
        return ""
    if requirement.name == "actlake":
        return ""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    # A local version such as 2.13.0+cpu is of its public one.
    if requirement.specifier.contains(version.partition("+")[0], prereleases=True):
        return ""
    return f"{requirement.name} {version} is not {requirement.specifier}"


def check_threads() -> Iterator[Finding]:
    """Cores, and variables that hold libraries back."""
    cores = usable_cores()
    says = f"{cores} of {os.cpu_count()} cores may be used"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > cores:
        yield Finding("threads", "warn", f"{says}, and OMP_NUM_THREADS is {threads}",
                      "unset OMP_NUM_THREADS; jobs set it for each of their processes")  # fmt: skip
    else:
        yield Finding("threads", "ok", says)


def check_memory() -> Iterator[Finding]:
    """Main memory, and the shared memory through which stages talk."""
    free = free_memory()
    if free is not None:
        status: Status = "ok" if free > LITTLE_MEMORY else "warn"
        hint = "" if status == "ok" else "use a smaller model, more stages, or end other programs"
        yield Finding("memory", status, f"{human_bytes(free)} available", hint)
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        enough = room > SHARED_MEMORY
        yield Finding(
            "shared memory", "ok" if enough else "warn", f"{human_bytes(room)} free in {shared}",
            "" if enough else "in a container, start it with --shm-size=2g; Ray falls back to disk",
        )  # fmt: skip


def check_disk(places: Sequence[str]) -> Iterator[Finding]:
    """Free space for results, and for temporary files."""
    for place in dict.fromkeys([*places, tempfile.gettempdir()]):
        folder = existing(Path(place))
        free = shutil.disk_usage(folder).free
        status: Status = "ok" if free > LITTLE_SPACE else "warn" if free > NO_SPACE else "fail"
        hint = "" if status == "ok" else (
            "`actlake harvest … --plan` says how much a store needs; make space, or name another "
            "disk (for temporary files, with TMPDIR)"
        )  # fmt: skip
        yield Finding("disk", status, f"{human_bytes(free)} free at {folder}", hint)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    return next(here for here in (path, *path.parents) if here.exists())


def check_gpus() -> Iterator[Finding]:
    """What torch sees, and whether it should see more."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            yield Finding(
                "GPU", "ok", f"cuda:{number} {about.name}, {human_bytes(about.total_memory)}, "
                f"{bfloat16}",
            )  # fmt: skip
        return
    cards = _cards()
    if not cards:
        yield Finding("GPU", "ok", "none; jobs run on the CPU")
        return
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        hint = "CUDA_VISIBLE_DEVICES is empty: unset it"
    elif torch.version.cuda is None:
        hint = f"this torch ({torch.__version__}) is built without CUDA: install one with it"
    else:
        hint = f"does the driver fit CUDA {torch.version.cuda}? `nvidia-smi` says what it can"
    yield Finding("GPU", "fail", f"torch sees none of {'; '.join(cards)}", hint)


def _cards() -> list[str]:
    """What NVIDIA's own tool lists; [] where there is none, or no card."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(
            [tool, "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
        return [line.partition(" (UUID")[0] for line in listed.stdout.splitlines()
                if listed.returncode == 0]  # fmt: skip
    return []
