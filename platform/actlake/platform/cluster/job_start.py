"""The first file of a submitted job, and what tells one copy of actlake's code from another.

`actlake submit` puts this file beside the job's configuration; the cluster runs it before
anything of actlake is imported. It refuses a cluster with another Python or another code than
the one that submitted, then runs the command. So it uses the standard library only, and nothing
newer than Python 3.8 (an older cluster shall be told what is wrong, not a syntax error).

Code is compared by a hash of its files, never by version: a checkout has one version for months.
"""

import hashlib
import importlib
import importlib.util
import json
import signal
import sys
from pathlib import Path

PACKAGES = ("storage", "platform", "jobs")
JOB_FILE = "job.json"
REFUSED = 78  # EX_CONFIG of sysexits.h: the job and the cluster do not belong together
STOPPED = 143  # 128 + SIGTERM


def package_folders() -> "dict[str, Path]":
    """Where each part of actlake would be imported from; {} where there is none."""
    folders = {}
    for name in PACKAGES:
        try:
            found = importlib.util.find_spec(f"actlake.{name}")
        except ModuleNotFoundError:
            return {}
        if found is None or not found.submodule_search_locations:
            return {}
        # Of a namespace package the first place wins, file by file; that is the copy in use.
        folders[name] = Path(next(iter(found.submodule_search_locations)))
    return folders


def code_files(folders: "dict[str, Path]") -> "dict[str, Path]":
    """Every file of actlake's code by its name inside a wheel, such as actlake/jobs/cli.py."""
    return {
        f"actlake/{package}/{path.relative_to(folder).as_posix()}": path
        for package, folder in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".pyi", ".typed") and "__pycache__" not in path.parts
    }


def code_hash(folders: "dict[str, Path] | None" = None) -> str:
    """Short hash of the code in these folders, or of what this process imports; empty for none."""
    digest = hashlib.sha256()
    files = code_files(package_folders() if folders is None else folders)
    for name in sorted(files):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(files[name].read_bytes()).digest())
    return digest.hexdigest()[:16] if files else ""


def mismatch(job: "dict[str, str]") -> str:
    """Why this job cannot run here, in words; empty when it can."""
    python = "{}.{}".format(*sys.version_info)
    if python != job["python"]:
        return (
            f"the cluster's Python is {python}, and the job was submitted from {job['python']}\n"
            "hint: submit with the cluster's Python, or start the cluster with yours; what the "
            "interpreter is called there can be said with --python"
        )
    here = code_hash()
    if not here:
        return (
            f"{sys.executable} on the cluster has no actlake\n"
            "hint: build an image with it, or submit without --installed to ship the code"
        )
    if here != job["code"]:
        return (
            f"the cluster would run other code of actlake ({here}) than was submitted "
            f"({job['code']})\nit would come from {package_folders()['jobs'].parent}\n"
            "hint: install the same code there, or submit without --installed to ship yours"
        )
    return ""


def main() -> int:
    """Run the job of the folder this file is in; its exit status."""
    job = json.loads((Path(__file__).parent / JOB_FILE).read_text(encoding="utf-8"))
    why = mismatch(job)
    if why:
        sys.stderr.write(f"actlake: {why}\n")
        return REFUSED
    # Until the job connects to Ray and drains by itself, a stop ends it in the usual way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        cli = importlib.import_module("actlake.jobs.cli")
        status = cli.run(job["arguments"])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    # Ray keeps no exit status of a job that was stopped; the log does.
    sys.stderr.write(f"actlake: the job ended with status {status}\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
