"""Attach label tables to a store and say how they fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from actlake.jobs.probe.datasets.labelled_corpus import LabelTable
from actlake.storage import ActivationStore
from actlake.storage.querying.labels import Alignment, attach_labels, attached_names


@dataclass(frozen=True, slots=True)
class Attached:
    """A label table in a store."""

    name: str
    columns: tuple[str, ...]
    alignment: Alignment
    was_there: bool
    """Labels of that name were attached already, and were left as they are."""

    def __str__(self) -> str:
        columns = ", ".join(self.columns)
        if self.was_there:
            return f"{self.name} ({columns}): attached already, left as it is"
        return f"{self.name} ({columns}): {self.alignment}"


def attach_tables(
    store: ActivationStore, tables: Sequence[LabelTable], *, replace: bool = False
) -> list[Attached]:
    """Attach label tables; what does not fit the store is left out and counted.

    Parameters
    ----------
    replace
        Attach anew what is attached under the same name; else it is left as it is, and said.

    Raises
    ------
    LabelsMisaligned
        No label of a table fits: the store is of another corpus.
    """
    return [_attach(store, table, replace) for table in tables]


def _attach(store: ActivationStore, given: LabelTable, replace: bool) -> Attached:
    was_there = given.name in attached_names(store) and not replace
    labels = (
        store.labels(given.name)
        if was_there
        else attach_labels(
            store, given.name, given.table, key=given.key, misaligned="drop", replace=replace
        )
    )
    return Attached(given.name, labels.columns, labels.alignment, was_there)
