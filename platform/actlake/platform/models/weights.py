"""Which files hold a model's weights, and what is in them.

transformers looks weights up by a rule of its own, which knows more cases with every release. It
is shown a folder that links to the files that were hashed, and to nothing else, so that no rule
can lead it to other ones.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actlake.platform.models.digest import file_digest
from actlake.platform.models.errors import WeightsMismatch

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

Find = Callable[[str], Path | None]
"""The file of that name in a folder or repository; None where there is none."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights and its SHA-256, in hex."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The names of the files that hold a model's weights."""

    names: tuple[str, ...]
    file_of: Mapping[str, str] | None = None
    """The file of each tensor, as the index says; None for a single file, which has none."""

    def read_by(self, layers: range, *, blocks: str) -> tuple[str, ...]:
        """Those that a stage reads: all but files with nothing but blocks of other layers.

        Parameters
        ----------
        blocks
            Name of the list of blocks, as in `Anatomy.blocks`.
        """
        if self.file_of is None:
            return self.names
        block = re.compile(rf"(?:^|\.){re.escape(blocks.rpartition('.')[2])}\.(\d+)\.")
        read = set()
        for tensor, name in self.file_of.items():
            found = block.search(tensor)
            if found is None or int(found[1]) in layers:
                read.add(name)
        return tuple(sorted(read))


def weight_files(find: Find, *, of: str) -> WeightFiles:
    """Which files hold the weights, in transformers' order of precedence.

    The file that config.json names as ``transformers_weights``, else ``model.safetensors``, else
    the shards that ``model.safetensors.index.json`` names.

    Parameters
    ----------
    find
        Looks in the model's folder or repository, where there is a config.json.
    of
        The model, for the words of an error.

    Raises
    ------
    WeightsMismatch
        The index cannot be read, or a file is named that is not one of the model's own.
    """
    config = find("config.json")
    named = json.loads(config.read_bytes()).get("transformers_weights") if config else None
    if named is None:
        named = WEIGHTS_INDEX if find(WEIGHTS) is None and find(WEIGHTS_INDEX) else WEIGHTS
    _check_name(named, (".safetensors", ".safetensors.index.json"), of=of)
    index = find(named) if named.endswith(".json") else None
    return WeightFiles((named,)) if index is None else _indexed(index, of=of)


def _indexed(index: Path, *, of: str) -> WeightFiles:
    try:
        file_of: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        names = tuple(sorted(set(file_of.values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsMismatch(
            f"{index.name} of {of} cannot be read: {type(error).__name__}: {error}\n"
            f"hint: copy or download it again"
        ) from error
    for name in names:
        _check_name(name, (".safetensors",), of=of)
    if not names:
        raise WeightsMismatch(f"{index.name} of {of} names no file\nhint: copy it again")
    return WeightFiles(names, file_of)


def _check_name(name: object, suffixes: tuple[str, ...], *, of: str) -> None:
    """Refuse what leads out of the folder, or to a format that can hold code."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(suffixes):
        raise WeightsMismatch(
            f"The weights of {of} are said to be in {name!r}, which is no .safetensors file beside "
            f"its config.json\nhint: load it with transformers; save_pretrained writes such files"
        )


def hashed(folder: Path, names: Sequence[str]) -> tuple[WeightFile, ...]:
    """The weight files of a folder with their hashes, at about 1.8 GB/s.

    Raises
    ------
    WeightsMismatch
        Some are not there.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:10])
        raise WeightsMismatch(
            f"Weights are missing from {str(folder)!r}: {', '.join(missing)}\n"
            f"It holds {there}\n"
            f"hint: copy the folder again; weights in other formats (.bin) are not read, load "
            f"them with transformers and save_pretrained writes safetensors"
        )
    return tuple(WeightFile(name, file_digest(folder / name)) for name in names)


@contextmanager
def links_to(files: Mapping[str, Path], weights: WeightFiles) -> Iterator[Path]:
    """A folder that links to these files of weights and has no other; gone afterwards.

    Raises
    ------
    WeightsMismatch
        A file holds a tensor that the index says is in another.
    """
    with tempfile.TemporaryDirectory(prefix="actlake-weights-") as scratch:
        folder = Path(scratch)
        if weights.file_of is None:
            (single,) = files.values()
            (folder / WEIGHTS).symlink_to(single)
        else:
            for name, file in files.items():
                _check_tensors(file, name, weights.file_of)
                (folder / name).symlink_to(file)
            linked = {tensor: name for tensor, name in weights.file_of.items() if name in files}
            index = {"metadata": {}, "weight_map": linked}
            (folder / WEIGHTS_INDEX).write_text(json.dumps(index), encoding="utf-8")
        yield folder


def _check_tensors(file: Path, name: str, file_of: Mapping[str, str]) -> None:
    """Of a tensor in two files, which is loaded would depend on the files that a stage opens."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        astray = [tensor for tensor in sorted(opened.keys()) if file_of.get(tensor, name) != name]
    if astray:
        raise WeightsMismatch(
            f"{name} holds {astray[0]!r}, which the index says is in {file_of[astray[0]]}\n"
            f"hint: the index belongs to other files; copy or download the model again"
        )
