"""Stream a data set with the Hugging Face package `datasets`, which only this file imports."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from actlake.platform.corpus.errors import CorpusNotFound, MissingExtra, UnreadableFile
from actlake.platform.corpus.passages import ColumnPlan, Row, check_columns, top_column
from actlake.platform.corpus.sources import HubDataset


def read_hub_dataset(source: HubDataset, plan: ColumnPlan) -> Iterator[Row]:
    """Each row, in the data set's order; nothing is downloaded ahead of use.

    Raises
    ------
    MissingExtra
        `datasets` is not installed.
    CorpusNotFound
        There is no such data set, subset, split or revision, or the hub does not answer.
    ColumnMissing
        It lacks a column that `plan` names.
    UnreadableFile
        The hub stops answering, or a data file is damaged.
    """
    stream, name = _open(source), dataset_name(source)
    if stream.column_names is not None:
        check_columns(name, stream.column_names, plan)
    if plan.needed is not None:
        present = stream.column_names or plan.needed
        tops = dict.fromkeys(top_column(name, present) for name in plan.needed)
        stream = stream.select_columns(list(tops))
    rows: Iterable[dict[str, Any]] = stream
    number = 0
    try:
        for number, fields in enumerate(rows):
            yield Row(f"{name}:row {number}", name, fields)
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"The data set {name} cannot be read on from row {number}: {error}\n"
            "hint: run again when the hub answers, or mend the data file"
        ) from error


def dataset_name(source: HubDataset) -> str:
    """What the data set is called in a store: of a local folder the last part only."""
    local = PurePath(source.dataset).is_absolute() or source.dataset.startswith((".", "~"))
    name = PurePath(source.dataset).name if local else source.dataset
    return "/".join(part for part in (name, source.subset, source.dataset_split) if part)


def _refuse_pattern(source: HubDataset) -> None:
    """Refuse a local folder whose path `datasets` would read as a pattern for other folders."""
    place = Path(source.dataset).expanduser().resolve()
    if place.is_dir() and glob.has_magic(str(place)):
        raise CorpusNotFound(
            f"The package datasets reads * ? and [ ] in the path {str(place)!r} as a pattern, and "
            "would open another folder\n"
            "hint: rename the folder, or read its JSONL or Parquet files with corpus.source.path"
        )


def _open(source: HubDataset) -> Any:
    _refuse_pattern(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtra(
            f"The data set {source.dataset!r} needs the package datasets, which is not installed\n"
            'hint: pip install "actlake[datasets]"'
        ) from error
    try:
        return load_dataset(
            str(Path(source.dataset).expanduser()) if source.dataset[:1] == "~" else source.dataset,
            source.subset,
            split=source.dataset_split,
            revision=source.revision,
            streaming=True,
        )
    except (OSError, ValueError) as error:
        raise CorpusNotFound(
            f"The data set {source.dataset!r} (subset {source.subset!r}, split "
            f"{source.dataset_split!r}, revision {source.revision!r}) cannot be opened: {error}\n"
            "hint: check its name on the hub and your connection, or give a local folder"
        ) from error
