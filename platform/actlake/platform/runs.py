"""What a run was: config, inputs, code, versions, seed, times, result.

`RunRecord` is saved as ``run.json`` beside every result, so that each number in it can be
traced. It holds

    job, config           what was asked, as given (credentials hidden)
    inputs                stores and files: the path as given, and the fingerprint
    code                  version of actlake; in a checkout also the commit and whether files
                          differed from it
    versions              Python, the kind of platform (``Linux x86_64``), packages that matter
    computed_on           the device as resolved and its name, CUDA's version, threads, and the type
                          in which a model was run, where one was
    seed                  the number from which all randomness followed
    started, finished     UTC, to the second
    metrics               the result in numbers

and no host name, user name, environment or command line.

`whole_folder` is how a result appears: complete or not at all.
"""

import fcntl
import glob
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cattrs import BaseValidationError, Converter, transform_error

from actlake.platform.plain_json import json_text
from actlake.platform.redact import without_secrets
from actlake.platform.safetensors_files import plain_mode
from actlake.storage.errors import ActlakeError
from actlake.storage.location import LocalFolder

FORMAT = 1
FILE = "run.json"

PACKAGES = (
    "numpy", "zarr", "pyarrow", "torch", "transformers", "tokenizers", "ray", "sae-lens", "wandb",
)  # fmt: skip
"""Packages whose versions are recorded where they are installed."""

_STALE_AFTER_S = 60


class RunRecordError(ActlakeError, ValueError):
    """A run.json is missing, damaged, or of a newer format."""


class ResultExists(ActlakeError, FileExistsError):
    """Something is already at the place of a result."""


@dataclass(frozen=True)
class Input:
    """Something a run read."""

    path: str
    """Where it was, as given."""

    fingerprint: str | None = None
    """Identity of its contents; None where nothing gave one."""


@dataclass(frozen=True)
class CodeVersion:
    """Which code ran."""

    actlake: str
    """Version of the installed package."""

    commit: str | None = None
    """Commit of the checkout; None when the package was installed from a wheel."""

    dirty: bool | None = None
    """Whether tracked files differed from the commit, or new ones lay beside them."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, from its beginning (`RunRecord.start`) to its result (`finish`)."""

    job: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    code: CodeVersion
    versions: Mapping[str, str]
    computed_on: Mapping[str, Any] = field(default_factory=dict)
    """As `actlake.platform.computed_on` gives it."""
    seed: int | None = None
    started: datetime
    finished: datetime | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        job: str,
        config: Mapping[str, Any],
        *,
        inputs: Mapping[str, Input] | None = None,
        seed: int | None = None,
        computed_on: Mapping[str, Any] | None = None,
        packages: Iterable[str] = PACKAGES,
    ) -> "RunRecord":
        """The record of a run that begins now, with the code and versions in use.

        Parameters
        ----------
        job
            The job's name, such as ``train-sae``.
        config
            The whole configuration, as `actlake.platform.config.to_dict` gives it.
        inputs
            What is read, by a name such as ``store``.
        seed
            The root of `actlake.platform.seeds.Seeds`.
        computed_on
            Device, threads and so on, as `actlake.platform.computed_on` gives it.
        packages
            Distributions whose versions are recorded; none of them is imported.
        """
        return cls(
            job=job,
            config=dict(config),
            inputs=dict(inputs or {}),
            code=code_version(),
            versions=versions(packages),
            computed_on=dict(computed_on or {}),
            seed=seed,
            started=_now(),
        )

    def finish(self, metrics: Mapping[str, float]) -> "RunRecord":
        """The same record with its result, ended now."""
        return replace(self, finished=_now(), metrics=dict(metrics))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, in the order of the fields, without credentials."""
        hidden: dict[str, Any] = without_secrets({"format": FORMAT, **_JSON.unstructure(self)})
        return hidden

    def save(self, folder: Path) -> Path:
        """Write ``run.json`` into `folder`, whole or not at all; its path."""
        LocalFolder(folder).write(FILE, [f"{json_text(self.to_dict(), indent=2)}\n".encode()])
        return folder / FILE

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Read the ``run.json`` of a result.

        Raises
        ------
        RunRecordError
            There is none, it is damaged, or it was written in a newer format.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise RunRecordError(
                f"There is no {FILE} in {folder}\n"
                "hint: a finished result has one; give the folder that holds it"
            ) from error
        except ValueError as error:
            raise RunRecordError(f"{path} is not a run record: {error}") from error
        if not isinstance(content, dict) or "format" not in content:
            raise RunRecordError(f"{path} is not a run record: it names no format")
        format_ = content.pop("format")
        if format_ != FORMAT:
            raise RunRecordError(
                f"{path} has format {format_}; this version of actlake reads {FORMAT}\n"
                "hint: install a newer actlake"
            )
        try:
            return _JSON.structure(content, cls)
        except BaseValidationError as error:
            problems = "; ".join(transform_error(error, path=FILE))
            raise RunRecordError(f"{path} is not a run record: {problems}") from error


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python, the kind of platform, and those of `packages` that are installed.

    Read from the installed metadata: nothing is imported.
    """
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def code_version() -> CodeVersion:
    """Version of actlake; in a checkout with git at hand, also its commit and state."""
    try:
        version = importlib.metadata.version("actlake")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    checkout = _checkout(Path(__file__))
    if checkout is None:
        return CodeVersion(version)
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain")
    return CodeVersion(version, commit, None if changes is None else changes != "")


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder to fill; it is found at `to` only once the body has ended without an error.

    The body writes into a hidden sibling of `to`, on the same file system. At the end every
    file and folder in it is synced to disk, and it is renamed. After an error it is removed.
    What a killed process left behind is removed by the next `whole_folder` of the same name,
    never while its owner lives (it holds a lock on the folder).

    Raises
    ------
    ResultExists
        `to` exists and is not an empty folder: found before the body runs, or, when another
        process was faster, after it.
    """
    _refuse_existing(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    _sweep(to)
    partial = to.with_name(f".{to.name}.{uuid.uuid4().hex[:12]}.partial")
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: leftovers then just stay
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        _let_others_read(partial)
        _sync(partial)
        try:
            partial.rename(to)
        except OSError:
            _refuse_existing(to)
            raise
        _sync_one(to.parent)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_existing(to: Path) -> None:
    if to.is_dir() and not any(to.iterdir()):
        return
    if to.exists() or to.is_symlink():
        raise ResultExists(
            f"There is already something at {to}; results are never overwritten\n"
            "hint: name another folder, or remove that one yourself"
        )


def _sweep(to: Path) -> None:
    """Remove half-made folders for `to` whose owners are gone."""
    for left in to.parent.glob(f".{glob.escape(to.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_AFTER_S and _is_unlocked(left):
                shutil.rmtree(left)


def _is_unlocked(folder: Path) -> bool:
    """Whether nobody holds the folder; `OSError` where that cannot be known."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _let_others_read(folder: Path) -> None:
    """Give every file the umask's mode; some libraries let only its owner read it."""
    mode = plain_mode(folder)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checkout(source: Path) -> Path | None:
    """The root of the checkout that `source` is part of; None for an installed wheel.

    A wheel may be installed below somebody else's checkout (a ``.venv`` in a project), so
    the place of this file below the root decides, not just any ``.git`` above it.
    """
    root = source.resolve().parents[3]
    return root if (root / ".git").exists() and (root / "pyproject.toml").exists() else None


def _git(checkout: Path, *words: str) -> str | None:
    """What git answers, or None without git, without a commit, or when it refuses."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(checkout), *words],
            capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


_JSON = Converter(forbid_extra_keys=True)
_JSON.register_unstructure_hook(datetime, lambda moment: f"{moment:%Y-%m-%dT%H:%M:%SZ}")
_JSON.register_structure_hook(datetime, lambda text, _: datetime.fromisoformat(text))
