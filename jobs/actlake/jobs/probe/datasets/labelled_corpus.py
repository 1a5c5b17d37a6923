"""A corpus with label tables, as files that a harvest and a store take as they are.

    folder/corpus.parquet          id, text, split and the corpus's own columns, a row a document
    folder/labels/<name>.parquet   a label table, ready for `ActivationStore.attach_labels`
    folder/about.json              source, licence, counts, and by what each table is keyed

Equal input gives equal files, byte for byte.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actlake.jobs.probe.datasets.errors import DataSetNotFound
from actlake.platform.corpus.splits import split_of
from actlake.platform.runs import whole_folder
from actlake.storage.querying.labels import Key, read_table

FORMAT = 1
CORPUS, ABOUT, LABELS = "corpus.parquet", "about.json", "labels"
SPAN: Key = ("document", "start", "stop")
SPLITS: Mapping[str, float] = {"train": 0.8, "test": 0.2}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A label table that is not attached yet."""

    name: str
    key: Key
    table: pa.Table


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledCorpus:
    """Documents and what is known of them."""

    name: str
    documents: pa.Table
    """``id``, ``text``, ``split`` and further columns."""
    labels: tuple[LabelTable, ...]
    about: Mapping[str, Any]
    """Source, licence, and how many entries were left out, for what reason."""

    def write(self, to: Path) -> Path:
        """Write the folder; it appears when it is complete.

        Raises
        ------
        ResultExists
            Something is there already.
        """
        with whole_folder(to) as folder:
            (folder / LABELS).mkdir()
            pq.write_table(self.documents, folder / CORPUS)
            for label in self.labels:
                pq.write_table(label.table, folder / LABELS / f"{label.name}.parquet")
            (folder / ABOUT).write_text(
                json.dumps(self._described(), indent=2) + "\n", encoding="utf-8"
            )
        return to

    def _described(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "documents": len(self.documents),
            "keys": {label.name: label.key for label in self.labels},
            "about": dict(self.about),
        }


def read_corpus(folder: str | Path) -> LabelledCorpus:
    """Read what `LabelledCorpus.write` wrote.

    Raises
    ------
    DataSetNotFound
        There is none, it is damaged, or of a newer format.
    """
    folder = Path(folder)
    try:
        said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise DataSetNotFound(
                f"The labelled corpus in {folder} has format {said['format']}; this actlake reads "
                f"{FORMAT}\nhint: install a newer actlake"
            )
        keys: dict[str, Key] = {
            name: "document" if key == "document" else SPAN for name, key in said["keys"].items()
        }
        labels = tuple(
            LabelTable(name, key, read_table(folder / LABELS / f"{name}.parquet"))
            for name, key in keys.items()
        )
        documents = pq.read_table(folder / CORPUS, partitioning=None)
    except FileNotFoundError as error:
        raise DataSetNotFound(
            f"There is no labelled corpus in {folder}: no {Path(str(error.filename)).name}\n"
            "hint: `actlake probe data NAME --out FOLDER` makes one"
        ) from error
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataSetNotFound(
            f"The labelled corpus in {folder} is damaged: {error}\n"
            "hint: remove the folder and make it again"
        ) from error
    return LabelledCorpus(
        name=said["name"], documents=documents, labels=labels, about=said["about"]
    )


def split_of_entity(entity: str) -> str:
    """Train or test, four to one, so that all documents about one entity are on one side."""
    return split_of(entity, SPLITS)
