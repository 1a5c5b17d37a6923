"""The rows that a run began with: a store that was appended to since is read as it was then.

What a run reads is in its record (`actlake.platform.runs`). Where the results come into their
folder only when all are there, the record of a run that is not done yet lies beside it.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from actlake.platform.runs import FILE, RunRecord
from actlake.storage import ActivationStore, open_store

logger = logging.getLogger(__name__)


def open_as_begun(
    url: str,
    out: Path,
    *,
    name: str = "store",
    is_same: Callable[[RunRecord], bool] = lambda record: True,
) -> ActivationStore:
    """Open a store for a run with results in `out`, which may have begun before the store grew.

    Parameters
    ----------
    name
        Of the store among the run's inputs.
    is_same
        Whether a record is of the run that is asked for.
    """
    store = open_store(url)
    record = _record(out)
    if record is None or name not in record.inputs or not is_same(record):
        return store
    before = store.as_of(str(record.inputs[name].fingerprint))
    if before is None or before is store:  # another store, which is for the job to say; or as it is
        return store
    logger.warning(
        "%s\nhint: name another folder as out to begin on all of them",
        store.grown_since(before, f"the run in {out} began"),
    )
    return before


@contextmanager
def kept_beside(record: RunRecord, out: Path) -> Iterator[None]:
    """Keep the record of a run that begins beside `out`, until its results are there."""
    record.save(_beside(out))
    yield
    shutil.rmtree(_beside(out), ignore_errors=True)


def _record(out: Path) -> RunRecord | None:
    for folder in (out, _beside(out)):
        if (folder / FILE).is_file():
            return RunRecord.load(folder)
    return None


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.begun")
