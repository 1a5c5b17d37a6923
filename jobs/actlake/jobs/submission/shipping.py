"""The folder that travels with a job: its configuration, its first file, and our code.

    config.yaml               the whole configuration, resolved where it was submitted
    job.json                  the arguments, the Python and the hash of the code
    actlake_job_start.py      what the cluster runs (`platform.cluster.job_start`)
    actlake/…                 the code of this process; left out for an installed image
    actlake-….dist-info/      its entry points, so that Zarr finds our data types

With the code it is laid out as a wheel is, unpacked: Ray puts the job's folder first on the
path of the driver and of every worker, so nothing is installed and no index is asked.
"""

import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlake.jobs.steps import texts
from actlake.jobs.submission.errors import PathNotShared
from actlake.platform.cluster import job_start

CONFIG = "config.yaml"
START = "actlake_job_start.py"

OUTPUTS = ("store", "out", "target_store", "moments.folder", "corpus.source.path", "logs")
"""Keys that hold paths, whatever their values look like."""

NAMES = ("sae", "model.name", "dictionary.path", "corpus.source.dataset")
"""Keys that hold a path or a name of the hub: a path where there is such a file or folder here."""


def pack_job(folder: Path, *, arguments: Sequence[str], config_yaml: str, with_code: bool) -> str:
    """Fill an empty folder with all that a job needs; the hash of the code.

    Parameters
    ----------
    arguments
        The command and what it is given, in the job's folder.
    config_yaml
        The whole configuration; empty for a command that reads none.
    with_code
        Ship this process's code; otherwise the cluster has the same one installed.
    """
    if config_yaml:
        (folder / CONFIG).write_text(config_yaml, encoding="utf-8")
    shutil.copyfile(job_start.__file__, folder / START)
    shipped = pack_code(folder) if with_code else None
    code = job_start.code_hash(shipped)
    job = {
        "arguments": list(arguments),
        "python": "{}.{}".format(*sys.version_info),
        "code": code,
    }
    (folder / job_start.JOB_FILE).write_text(json.dumps(job, indent=1), encoding="utf-8")
    return code


def pack_code(folder: Path) -> dict[str, Path]:
    """Copy the code that this process runs, and its entry points; the folders of its parts."""
    for name, path in job_start.code_files(job_start.package_folders()).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    package = importlib.metadata.distribution("actlake")
    about = folder / f"actlake-{package.version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: actlake\nVersion: {package.version}\n", encoding="utf-8"
    )
    (about / "entry_points.txt").write_text(
        package.read_text("entry_points.txt") or "", encoding="utf-8"
    )
    return {name: folder / "actlake" / name for name in job_start.PACKAGES}


def refuse_relative(config: Mapping[str, Any]) -> None:
    """Refuse paths that would mean a place inside the job's own, temporary folder.

    Raises
    ------
    PathNotShared
        Names the keys and their values.
    """
    wrong = [(key, text) for key, text in texts(config) if _is_relative(key, text)]
    if wrong:
        shown = ", ".join(f"{key}: {text}" for key, text in wrong[:3])
        raise PathNotShared(
            "These paths are relative or begin with ~, and a job runs in a temporary folder of its "
            f"node: {shown}\n"
            "hint: give absolute paths on storage that all nodes share, or URLs"
        )


def _is_relative(key: str, text: str) -> bool:
    if not text or "://" in text or Path(text).is_absolute():
        return False
    if text == "~" or text.startswith(("~/", "./", "../")) or _is_one_of(OUTPUTS, key):
        return True
    may_be = "/" in text or _is_one_of(NAMES, key)
    return may_be and Path(text).exists()


def _is_one_of(names: Sequence[str], key: str) -> bool:
    """Whether a key of a job, or of a pipeline's step, is one of these or an item of one."""
    name = re.sub(r"\[\d+\]$", "", key)
    return any(name == one or name.endswith(f".config.{one}") for one in names)
