"""Find a model: a folder, a GGUF file or a repository of the hub, at an exact revision.

Only metadata is fetched here; a GGUF file is converted. The revision says exactly which
weights are meant: the commit on the hub, or a hash of the files of a folder.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from actlake.platform.models.digest import file_digest
from actlake.platform.models.errors import HubUnreachable, ModelNotFound, WeightsMismatch
from actlake.platform.models.gguf import convert_gguf

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Located:
    """Where the files are and which ones they are."""

    location: str
    """A folder, or an id of the hub."""

    revision: str
    """The commit on the hub, or ``sha256:…`` of what lies on this machine."""

    commit: str | None
    """The commit to load from the hub; None for a folder."""


def locate(name: str, revision: str) -> Located:
    """Find what `ModelConfig.name` means.

    Parameters
    ----------
    name
        A folder, a ``.gguf`` file, or an id of the hub such as ``EleutherAI/pythia-70m``.
    revision
        Branch, tag or commit on the hub; empty for its main branch.

    Raises
    ------
    ModelNotFound
        There is nothing of that name, or no such revision of it.
    HubUnreachable
        It is neither here nor in the hub's cache, and the hub does not answer.
    WeightsMismatch
        The folder's weights are not all there.
    """
    path = Path(name).expanduser()
    if path.is_file() or name.endswith(".gguf"):
        return _gguf(path, revision)
    if path.is_dir():
        return _folder(path, revision)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelNotFound(
            f"There is no folder {name!r}\n"
            f"hint: give an existing folder with a config.json, a .gguf file, or an id of the "
            f"Hugging Face hub such as EleutherAI/pythia-70m"
        )
    return _hub(name, revision)


def _gguf(path: Path, revision: str) -> Located:
    if not path.is_file():
        raise ModelNotFound(f"There is no GGUF file {str(path)!r}\nhint: check the path")
    _refuse_revision(path, revision)
    folder, digest = convert_gguf(path)
    return Located(str(folder), f"sha256:{digest}", commit=None)


def _folder(path: Path, revision: str) -> Located:
    _refuse_revision(path, revision)
    if not (path / "config.json").is_file():
        there = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
        raise ModelNotFound(
            f"The folder {str(path)!r} has no config.json; it holds {there}\n"
            f"hint: give a folder written by save_pretrained, or the path of a .gguf file itself"
        )
    digest = hashlib.sha256(_config_without_version(path / "config.json"))
    for file in weight_files(path):
        digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return Located(str(path.resolve()), f"sha256:{digest.hexdigest()}", commit=None)


def _config_without_version(file: Path) -> bytes:
    """The configuration less what changes when the same model is saved again."""
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise ModelNotFound(
            f"{str(file)!r} is not JSON: {error}\nhint: copy the model's folder again"
        ) from error
    for key in ("transformers_version", "_name_or_path"):
        settings.pop(key, None)
    return json.dumps(settings, sort_keys=True).encode()


def _refuse_revision(path: Path, revision: str) -> None:
    if revision:
        raise ModelNotFound(
            f"Revision {revision!r} was asked for of {str(path)!r}, and files on this machine "
            f"have no revisions\nhint: leave `revision` out; the files' hash is recorded"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in the order of their names.

    Raises
    ------
    WeightsMismatch
        There are none, or the index names some that are not there.
    """
    if (folder / WEIGHTS_INDEX).is_file():
        index = json.loads((folder / WEIGHTS_INDEX).read_text())
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = [folder / WEIGHTS]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:10])
        raise WeightsMismatch(
            f"Weights are missing from {str(folder)!r}: {', '.join(missing)}\n"
            f"It holds {there}\n"
            f"hint: copy the folder again; weights in other formats (.bin) are not read, load "
            f"them with transformers and save_pretrained writes safetensors"
        )
    return files


def _hub(name: str, revision: str) -> Located:
    from huggingface_hub import errors, hf_hub_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision or None))
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
            f"Face hub cannot be reached: {type(error).__name__}\n"
            f"hint: check the connection and HF_HUB_OFFLINE, or give a folder or a .gguf file"
        ) from error
    commit = config.parent.name  # …/snapshots/<commit>/config.json
    return Located(name, commit, commit=commit)
