"""Who is trained, validated and tested on: documents or entities, never single tokens (pure).

Labels decide what is drawn only where `DrawnSplits.stratify` asks for it.
"""

from typing import Any

import numpy as np

from actlake.jobs.probe.config import DrawnSplits, StoreSplits
from actlake.jobs.probe.errors import NotEnoughRows
from actlake.jobs.probe.labelling import Labelled
from actlake.platform.seeds import Seeds
from actlake.storage import ActivationStore
from actlake.storage.errors import nearest

Array = np.ndarray[Any, Any]

TRAIN, VALIDATE, TEST = 0, 1, 2
SPLITS = ("train", "validate", "test")
HELD_OUT_EVERY = 10


def split_rows(
    store: ActivationStore, labelled: Labelled, splits: StoreSplits | DrawnSplits, seeds: Seeds
) -> Array:
    """(n,) int8: the split of each labelled row; -1 for none.

    Raises
    ------
    NotEnoughRows
        A split is unknown, or there is nothing to draw from.
    """
    if isinstance(splits, StoreSplits):
        return _of_the_store(store, labelled, splits)
    return _drawn(labelled, splits, seeds)


def _of_the_store(store: ActivationStore, labelled: Labelled, splits: StoreSplits) -> Array:
    for name in (splits.train, splits.validate, splits.test):
        if name is not None and name not in store.schema.splits:
            raise NotEnoughRows(
                f"There is no split {name!r} in {store.url}\n{nearest(name, store.schema.splits)}, "
                "or draw splits anew with splits: {by: document}"
            )
    names = np.array(store.documents(["split"])["split"].to_pylist())
    of_document = np.full(len(names), -1, np.int8)
    of_document[names == splits.test] = TEST
    of_document[names == splits.train] = TRAIN
    if splits.validate is not None:
        of_document[names == splits.validate] = VALIDATE
    else:
        used = np.unique(labelled.document)
        training = used[of_document[used] == TRAIN]
        held_out = training[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
        if not len(held_out) and len(training) > 1:
            held_out = training[-1:]
        of_document[held_out] = VALIDATE
    return of_document[labelled.document]


def _drawn(labelled: Labelled, splits: DrawnSplits, seeds: Seeds) -> Array:
    unit = labelled.document if splits.by == "document" else labelled.entity
    named, unit = np.unique(unit, return_inverse=True)
    number = len(named)
    if number < 3:
        raise NotEnoughRows(
            f"{labelled.task.called!r} labels {number} {splits.by}s; three splits need three\n"
            "hint: label more of them"
        )
    stratum = _strata(labelled, unit, number) if splits.stratify else np.zeros(number, np.int64)
    split = np.empty(number, np.int8)
    # A document has one lot for all tasks, so tasks on the same documents have the same splits.
    lots = seeds.numpy(f"splits by {splits.by}").random(int(named.max()) + 1)[named]
    for one in np.unique(stratum):
        members = np.flatnonzero(stratum == one)
        members = members[np.argsort(lots[members])]
        test = _share(len(members), splits.test)
        validate = _share(len(members), splits.validate)
        split[members] = TRAIN
        split[members[:test]] = TEST
        split[members[test : test + validate]] = VALIDATE
    found: Array = split[unit]
    return found


def _share(number: int, share: float) -> int:
    """A share of some units: rounded, but one at least where there are three."""
    return max(round(number * share), 1 if number >= 3 else 0)


def _strata(labelled: Labelled, unit: Array, number: int) -> Array:
    """The class that each unit has most often; of numbers, the quarter of their range."""
    targets = labelled.targets
    if labelled.kind == "regression":
        cuts = np.quantile(targets, [0.25, 0.5, 0.75])
        codes, classes = np.searchsorted(cuts, targets), 4
    elif labelled.kind == "multilabel":
        codes, classes = targets.argmax(axis=1), targets.shape[1]
    else:
        codes, classes = targets, len(labelled.classes)
    counts = np.bincount(unit * classes + codes, minlength=number * classes)
    return np.asarray(counts.reshape(number, classes).argmax(axis=1))


def cluster_groups(cluster: Array, wanted: int, seeds: Seeds) -> Array:
    """(n,) int16: clusters drawn into about `wanted` groups of as many rows.

    Drawn, not in their order: a corpus that is sorted by its label would make groups that differ
    more than documents do, and intervals that are too wide.
    """
    if not len(cluster):
        return np.empty(0, np.int16)
    named, codes = np.unique(cluster, return_inverse=True)
    place = seeds.numpy("groups of the jackknife").permutation(len(named))[codes]
    sizes = np.bincount(place)
    middle = np.cumsum(sizes) - sizes / 2
    group = np.minimum((middle * wanted / sizes.sum()).astype(np.int64), wanted - 1)
    _, compact = np.unique(group, return_inverse=True)
    return np.asarray(compact[place], np.int16)
