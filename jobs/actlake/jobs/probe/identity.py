"""What a run's numbers depend on: which result, and which finished sites, are its own."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actlake.jobs.chosen_rows import ChosenRows, inputs_of_rows
from actlake.jobs.probe.config import DOCUMENTS, ProbeConfig
from actlake.jobs.stored_as import inputs_of_store
from actlake.platform.config import to_dict
from actlake.platform.plain_json import json_text
from actlake.platform.runs import Input
from actlake.storage import ActivationStore, Site

JOB = "probe"
if TYPE_CHECKING:  # which asks whose record it found
    from actlake.jobs.probe.opening import Opened

NOT_THE_RESULT = ("out", "resources", "cluster", "tracking", "workers", "threads")
_NOT_OF_A_SITE = (*NOT_THE_RESULT, "sites", "transfer", "dictionary", "markers")


def what_decides(config: Mapping[str, object], but: tuple[str, ...]) -> dict[str, object]:
    """The part of a configuration that numbers depend on."""
    return {name: part for name, part in config.items() if name not in but}


def labels_digest(config: ProbeConfig, store: ActivationStore) -> str:
    """Of the attached label tables that are read."""
    digest = hashlib.sha256()
    for name in sorted({task.labels for task in config.tasks} - {DOCUMENTS}):
        digest.update(store.location.read(f"labels/{name}.parquet"))
    return digest.hexdigest()[:16]


def inputs_of(
    config: ProbeConfig,
    store: ActivationStore,
    chosen: ChosenRows | None,
    sites: Sequence[Site],
) -> dict[str, Input]:
    """What is read, with its identity."""
    return {
        **inputs_of_store(config.store, store, sites),
        "labels": Input("labels", labels_digest(config, store)),
        **inputs_of_rows(chosen),
    }


def parts_folder(config: ProbeConfig, opened: "Opened") -> Path:
    """Where finished sites wait for the others: beside `out`, by what they depend on."""
    payload = json_text(_identity(config, opened, but=_NOT_OF_A_SITE))
    out = Path(config.out).expanduser()
    key = hashlib.sha256(payload.encode()).hexdigest()[:12]
    return out.with_name(f".{out.name}.sites") / key


def identity_of(config: ProbeConfig, opened: "Opened") -> list[object]:
    """What a run's numbers depend on, JSON-able."""
    return _identity(config, opened, but=NOT_THE_RESULT)


def _identity(config: ProbeConfig, opened: "Opened", *, but: tuple[str, ...]) -> list[object]:
    read = inputs_of(config, opened.store, opened.chosen, opened.sites)
    return [what_decides(to_dict(config), but), *(given.fingerprint for given in read.values())]
