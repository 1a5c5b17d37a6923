"""Which files a path or pattern means, in which order, and what they are called.

A name that exists is a name, not a pattern: ``set[1]/*.txt`` is in the folder ``set[1]`` where
there is one, and in ``set1`` only where there is none.

A file's name is its path below the root: the folder given, or the part of a pattern before its
first wildcard, or, with several patterns, what their roots have in common. Names are the same on
every machine.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actlake.platform.corpus.errors import CorpusNotFound, UnknownFormat
from actlake.platform.corpus.sources import FileFormat

COMPRESSIONS = (".gz", ".zst")
FORMATS: dict[str, FileFormat] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read."""

    path: Path
    name: str
    """Path below the root, with ``/``; it says nothing of this machine."""
    format: FileFormat


def find_files(
    patterns: Sequence[str], wanted_format: Literal["auto"] | FileFormat = "auto"
) -> list[SourceFile]:
    """All files that `patterns` mean, each once, sorted by name.

    Raises
    ------
    CorpusNotFound
        A pattern matches no file.
    UnknownFormat
        A suffix says nothing, and `wanted_format` is ``auto``.
    """
    places = [_absolute(pattern) for pattern in patterns]
    root = os.path.commonpath([_root(place) for place in places])
    matched = {
        path
        for pattern, place in zip(patterns, places, strict=True)
        for path in _matches(pattern, place)
    }
    files = [
        SourceFile(
            path,
            Path(os.path.relpath(path, root)).as_posix(),
            _format(path) if wanted_format == "auto" else wanted_format,
        )
        for path in matched
    ]
    return sorted(files, key=lambda file: file.name)


def portable(pattern: str) -> str:
    """The part of a pattern that says which files, without where on this machine they are."""
    place = _absolute(pattern)
    return "**" if place.is_dir() else place.relative_to(_root(place)).as_posix()


def _absolute(pattern: str) -> Path:
    return Path(os.path.normpath(Path(pattern).expanduser().absolute()))


def _root(place: Path) -> Path:
    """The folder given, or what stands before the first part that is a pattern or a file."""
    root = Path(place.anchor)
    for part in place.parts[1:-1]:
        if _is_pattern(root, part):
            return root
        root /= part
    return place if place.is_dir() else root


def _is_pattern(folder: Path, part: str) -> bool:
    return glob.has_magic(part) and not os.path.lexists(folder / part)


def _matches(pattern: str, place: Path) -> list[Path]:
    found = [Path(place.anchor)]
    for part in place.parts[1:]:
        found = _inside(found, part)
    if place.is_dir():
        found = _inside(found, "**")
    files = [path for path in found if path.is_file()]
    if not files:
        raise CorpusNotFound(
            f"No file matches {pattern!r} (looked for in {str(_root(place))!r})\n"
            "hint: give a file, a folder or a quoted pattern such as 'texts/**/*.txt', in which "
            "* ? and [ ] stand for themselves in names that exist; hidden files are left out"
        )
    return files


def _inside(folders: list[Path], part: str) -> list[Path]:
    """What one part of a path means in these folders: what is called so, else what matches."""
    named = [folder / part for folder in folders if os.path.lexists(folder / part)]
    if named or not glob.has_magic(part):
        return named
    # Not Path.glob, which takes hidden files too and, before Python 3.13, ends ``**`` on folders.
    matching = [
        folder / found
        for folder in folders
        for found in glob.iglob(part, root_dir=folder, recursive=True)  # noqa: PTH207
    ]
    return [*folders, *matching] if part == "**" else matching


def _format(path: Path) -> FileFormat:
    suffix = path.suffix
    if suffix in COMPRESSIONS:
        suffix = path.with_suffix("").suffix
    if suffix not in FORMATS:
        raise UnknownFormat(
            f"The suffix of {path.name!r} does not say how to read it\n"
            f"Known are {', '.join(FORMATS)}, text and JSONL also with {' or '.join(COMPRESSIONS)}"
            "\nhint: narrow the pattern, such as 'texts/**/*.txt', or set corpus.source.format"
        )
    return FORMATS[suffix]
