"""Find a model: a folder, a GGUF file or a repository of the hub, at an exact revision.

Only metadata is fetched here; a GGUF file is converted. The revision says exactly which
weights are meant: the commit on the hub, or a hash of the files of a folder.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlake.platform.models.digest import file_digest
from actlake.platform.models.errors import HubUnreachable, ModelNotFound, ModelNotSupported
from actlake.platform.models.gguf import convert_gguf
from actlake.platform.models.weights import WeightFile, hashed, weight_files

CONFIG = "config.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Located:
    """Where the files are and which ones they are."""

    location: str
    """A folder, or an id of the hub."""

    revision: str
    """The commit on the hub, or ``sha256:…`` of what is read on this machine."""

    commit: str | None
    """The commit to load from the hub; None for a folder."""

    settings: str | None = None
    """SHA-256 of a folder's configuration and code, to be compared where it is loaded."""

    weights: tuple[WeightFile, ...] = ()
    """The files of weights of a folder. Of a repository the commit says them."""


def locate(name: str, revision: str, *, with_code: bool = False) -> Located:
    """Find what `ModelConfig.name` means.

    Parameters
    ----------
    name
        A folder, a ``.gguf`` file, or an id of the hub such as ``EleutherAI/pythia-70m``.
    revision
        Branch, tag or commit on the hub; empty for its main branch.
    with_code
        Whether code that comes with the model is run, and so is part of what it is.

    Raises
    ------
    ModelNotFound
        There is nothing of that name, or no such revision of it.
    ModelNotSupported
        An adapter belongs to it, or code at no fixed revision.
    HubUnreachable
        It is neither here nor in the hub's cache, and the hub does not answer.
    WeightsMismatch
        The folder's weights are not all there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, revision, with_code=with_code)
    if path.is_file() or name.endswith(".gguf"):
        return _gguf(path, revision)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelNotFound(
            f"There is no folder {name!r}\n"
            f"hint: give an existing folder with a config.json, a .gguf file, or an id of the "
            f"Hugging Face hub such as EleutherAI/pythia-70m"
        )
    return _hub(name, revision, with_code=with_code)


def _gguf(path: Path, revision: str) -> Located:
    if not path.is_file():
        raise ModelNotFound(f"There is no GGUF file {str(path)!r}\nhint: check the path")
    _refuse_revision(path, revision)
    folder, digest = convert_gguf(path)
    # What is loaded is the conversion, which is transformers' and kept in a cache: both count.
    return _hashed(folder, str(path), hashlib.sha256(f"gguf {digest}\n".encode()))


def _folder(path: Path, revision: str, *, with_code: bool) -> Located:
    _refuse_revision(path, revision)
    if not (path / CONFIG).is_file():
        there = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
        raise ModelNotFound(
            f"The folder {str(path)!r} has no config.json; it holds {there}\n"
            f"hint: give a folder written by save_pretrained, or the path of a .gguf file itself"
        )
    if (path / ADAPTER).is_file():
        raise _has_adapter(str(path))
    digest = settings_digest(path, with_code=with_code)
    return _hashed(path, str(path), digest, with_code=with_code)


def settings_digest(folder: Path, *, with_code: bool) -> "hashlib._Hash":
    """The SHA-256 of what decides how a folder's weights are used.

    Parameters
    ----------
    with_code
        Whether code that comes with the model is run.

    Raises
    ------
    ModelNotFound
        The configuration cannot be read.
    ModelNotSupported
        The code lies elsewhere, at no fixed revision.
    """
    settings = _read_settings(folder / CONFIG)
    for key in ("transformers_version", "_name_or_path"):  # others when it is saved again
        settings.pop(key, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if with_code and "auto_map" in settings:
        _check_code(settings, of=str(folder))
        for file in sorted(folder.glob("*.py")):
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return digest


def _hashed(
    folder: Path, name: str, digest: "hashlib._Hash", *, with_code: bool = False
) -> Located:
    """The folder with its files of weights, its revision made of `digest` and theirs."""
    settings = settings_digest(folder, with_code=with_code).hexdigest()
    files = weight_files(lambda file: _file_in(folder, file), of=name)
    weights = hashed(folder, files.names)
    for weight in weights:
        digest.update(f"{weight.name} {weight.sha256}\n".encode())
    return Located(str(folder.resolve()), f"sha256:{digest.hexdigest()}", None, settings, weights)


def _file_in(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def find_file(location: str, commit: str | None, name: str) -> Path | None:
    """A file of a located model, fetched if need be; None where there is none.

    Raises
    ------
    OSError
        The hub does not answer.
    """
    if commit is None:
        return _file_in(Path(location), name)
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(location, name, revision=commit))
    except errors.EntryNotFoundError:  # also that it is not in the cache and the hub not reached
        return None


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFound(
            f"{str(file)!r} is not JSON: {error}\nhint: copy the model's folder again"
        ) from error
    if not isinstance(settings, dict):
        raise ModelNotFound(
            f"{str(file)!r} holds no settings but a {type(settings).__name__}\n"
            f"hint: copy the model's folder again"
        )
    return settings


def _check_code(settings: Mapping[str, Any], *, of: str) -> None:
    """Refuse code of which nobody knows tomorrow which one it was."""
    for named in settings["auto_map"].values():
        for reference in named if isinstance(named, list) else [named]:
            repository, elsewhere, _ = str(reference).partition("--")
            if elsewhere:
                raise ModelNotSupported(
                    f"The code of {of} lies in repository {repository!r}, at no fixed revision\n"
                    f"hint: copy its .py files beside config.json, and take {repository!r} and the "
                    f"two dashes out of auto_map there"
                )


def _has_adapter(name: str) -> ModelNotSupported:
    return ModelNotSupported(
        f"{name} holds an adapter ({ADAPTER}), which changes what the model computes, and actlake "
        f"loads whole models only\n"
        f"hint: merge it: peft's merge_and_unload, then save_pretrained to another folder"
    )


def _refuse_revision(path: Path, revision: str) -> None:
    if revision:
        raise ModelNotFound(
            f"Revision {revision!r} was asked for of {str(path)!r}, and files on this machine "
            f"have no revisions\nhint: leave `revision` out; the files' hash is recorded"
        )


def _hub(name: str, revision: str, *, with_code: bool) -> Located:
    from huggingface_hub import errors, hf_hub_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        config = Path(hf_hub_download(name, CONFIG, revision=revision or None))
        commit = config.parent.name  # …/snapshots/<commit>/config.json
        adapter = find_file(name, commit, ADAPTER)
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"Model {name!r} on the Hugging Face hub is gated and this account has no access\n"
            f"hint: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(
            f"Model {name!r} has no revision {revision!r}\n"
            f"hint: its branches and tags are listed under Files on its page of the hub"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelNotFound(
            f"There is no model {name!r}: no such folder here and no such repository on the "
            f"Hugging Face hub\n"
            f"hint: check the spelling, ORGANISATION/MODEL; a private one needs `hf auth login`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(
            error, errors.LocalEntryNotFoundError
        ):
            raise ModelNotFound(
                f"Repository {name!r}{at} on the hub has no config.json\n"
                f"hint: if it holds GGUF files, download one and give its path as the model"
            ) from error
        raise HubUnreachable(
            f"Model {name!r}{at} is no folder here, is not in the hub's cache, and the Hugging "
            f"Face hub cannot be reached{_said_of_the_hub()}: {type(error).__name__}\n"
            f"hint: check the connection and HF_HUB_OFFLINE, or give a folder or a .gguf file"
        ) from error
    if adapter is not None:
        raise _has_adapter(name)
    if with_code and "auto_map" in (settings := _read_settings(config)):
        _check_code(settings, of=name)
    return Located(name, commit, commit=commit)


def _said_of_the_hub() -> str:
    """What the environment says of the hub, for an error."""
    said = [name for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE") if os.environ.get(name)]
    shown = (f"${name} is {os.environ[name].rpartition('@')[2]}" for name in said)
    return f" ({', '.join(shown)})" if said else ""
