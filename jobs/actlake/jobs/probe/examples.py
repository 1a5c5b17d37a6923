"""Labelled examples: which rows are pooled into each, its target, split, document and word.

A set of examples is one task, pooled one way, at one offset. It holds no activations, so it is
small, and the same for every site.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actlake.jobs.chosen_rows import ChosenRows
from actlake.jobs.massive_rows import MassiveRows
from actlake.jobs.probe.config import Pooling, ProbeConfig, RowsConfig, TaskConfig, TaskKind
from actlake.jobs.probe.errors import InvalidLabels, NotEnoughRows
from actlake.jobs.probe.labelling import Labelled, check_classes, tokens_of
from actlake.jobs.probe.splits import SPLITS, TEST, TRAIN, cluster_groups
from actlake.platform.seeds import Seeds
from actlake.storage import ActivationStore
from actlake.storage.moments import is_excluded

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Examples:
    """What a probe is trained and tested on, sorted by split, then by row."""

    task: TaskConfig
    kind: TaskKind
    pooling: Pooling
    offset: int
    classes: tuple[str, ...]
    """Names of classes, or of the labels of a multilabel task; empty for numbers."""
    targets: Array
    """(n,) int64 codes of classes, (n,) float64 numbers, or (n, labels) bool."""
    split: Array
    """(n,) int8: 0 train, 1 validate, 2 test."""
    rows: Array
    """(m,) int64, rows of the store."""
    bounds: Array
    """(n + 1,) int64: example i is the mean of ``rows[bounds[i]:bounds[i + 1]]``."""
    document: Array
    """(n,) int64."""
    entity: Array
    """(n,) int64, what should not be on both sides of a split."""
    group: Array
    """(n,) int16, the jackknife group of a test example; -1 elsewhere."""
    word_type: Array
    """(n,) int64: alike where the same token is read, or the same tokens where several are."""
    of_documents: bool
    """A label is of a whole document."""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, pooling and offset."""
        return self.task.called, self.pooling, self.offset

    @property
    def name(self) -> str:
        """The same as a folder."""
        return folder_of(*self.key)

    def where(self, split: int) -> slice:
        """The examples of a split."""
        first, last = np.searchsorted(self.split, [split, split + 1])
        return slice(int(first), int(last))

    def count(self, split: int) -> int:
        """How many examples a split has."""
        return int((self.split == split).sum())

    @property
    def leaked(self) -> float:
        """Share of test examples whose entity is among the training or validation examples."""
        test = self.split == TEST
        seen = np.isin(self.entity[test], np.unique(self.entity[~test]))
        return float(seen.mean()) if len(seen) else 0.0

    @property
    def types_seen(self) -> float:
        """Share of test examples whose word type is among the training examples.

        On the others a control task has labels that nobody can know, so that a low score there
        says nothing of what a probe can memorise.
        """
        test, train = self.word_type[self.where(TEST)], self.word_type[self.where(TRAIN)]
        return float(np.isin(test, train).mean()) if len(test) else 0.0

    def take(self, which: Array) -> "Examples":
        """Some of the examples, in their order."""
        lengths = np.diff(self.bounds)[which]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(bounds[-1]) + np.repeat(self.bounds[:-1][which] - bounds[:-1], lengths)
        per_example = ("targets", "split", "document", "entity", "group", "word_type")
        return replace(
            self,
            rows=self.rows[places],
            bounds=bounds,
            **{name: getattr(self, name)[which] for name in per_example},
        )


def folder_of(task: str, pooling: str, offset: int) -> str:
    """Folder of a set of examples in a result."""
    return f"{task}/{pooling}{f'@{offset:+d}' if offset else ''}"


def build_examples(
    store: ActivationStore,
    labelled: Labelled,
    split: Array,
    config: ProbeConfig,
    pooling: Pooling,
    offset: int,
    chosen: ChosenRows | None = None,
    massive: MassiveRows | None = None,
) -> Examples:
    """Pool labelled rows into examples.

    Only the activations of `chosen` rows are used, and none of `massive` ones.

    Raises
    ------
    NotEnoughRows
        A split, or a class in a split, has no or too few examples; the counts are given.
    InvalidLabels
        One class is left.
    """
    rows = labelled.rows - offset
    kept, reasons = _kept(store, labelled.rows, rows, offset, split, config.rows, chosen, massive)
    if not kept.any():
        raise NotEnoughRows(
            f"All {len(rows):,} rows labelled by {labelled.task.called!r} were filtered out: "
            f"{_listed(reasons)}\nhint: rows.excluded: true keeps position 0 and special tokens; "
            "rows.where chooses activations, not labels; "
            "offsets reach no further than the context; splits are named in splits"
        )
    begins = np.ones(int(kept.sum()), bool)
    if pooling != "token":
        begins[1:] = np.diff(labelled.item[kept]) != 0
    first = np.flatnonzero(begins)
    bounds = np.append(first, len(begins))
    used = rows[kept]
    if pooling == "last":
        used, bounds = used[bounds[1:] - 1], np.arange(len(first) + 1)
    word = _word_types(store, used, bounds)
    place = np.flatnonzero(kept)[first]
    if pooling != "token":
        _require_one_label(labelled, kept, first)
    made = Examples(
        task=labelled.task, kind=labelled.kind, pooling=pooling, offset=offset,
        classes=labelled.classes, targets=labelled.targets[place], split=split[place],
        rows=used, bounds=bounds.astype(np.int64), document=labelled.document[place],
        entity=labelled.entity[place], group=np.full(len(place), -1, np.int16),
        word_type=word, of_documents=labelled.of_documents,
        warnings=(*labelled.warnings, *_said(reasons)),
    )  # fmt: skip
    made = made.take(np.lexsort((made.rows[made.bounds[:-1]], made.split)))
    made = _without_rare(made, config.rows)
    if config.rows.per_split is not None:
        made = _sampled(made, config.rows.per_split, Seeds(config.seed))
    test = made.where(TEST)
    clusters = (
        made.document if getattr(config.splits, "by", "document") == "document" else made.entity
    )
    made.group[test] = cluster_groups(clusters[test], config.rows.groups, Seeds(config.seed))
    return replace(made, warnings=(*made.warnings, *_warnings(made)))


def _kept(
    store: ActivationStore,
    labelled: Array,
    rows: Array,
    offset: int,
    split: Array,
    how: RowsConfig,
    chosen: ChosenRows | None,
    massive: MassiveRows | None,
) -> tuple[Array, dict[str, int]]:
    """Which labelled rows have usable activations, and how many do not, for what reason."""
    inside = (rows >= 0) & (rows < store.schema.rows)
    at = np.where(inside, rows, labelled)
    position = store.tokens["position"].take(at).astype(np.int64)
    if offset:
        there = store.tokens["position"].take(labelled).astype(np.int64)
        inside &= there - position == offset
        tokens = store.tokens["document"]
        inside &= tokens.take(at) == tokens.take(labelled)
    in_split = split >= 0
    counted = np.ones(len(rows), bool)
    if not how.excluded:
        ids = store.tokens["id"].take(at)
        counted = ~is_excluded(position, ids, special_ids=store.schema.special_ids)
    usable = in_split & inside & counted
    is_chosen = np.ones(len(rows), bool) if chosen is None else chosen.holds(at)
    is_massive = np.zeros(len(rows), bool) if massive is None else np.isin(at, massive.anywhere)
    reasons = {
        "in none of the splits": int((~in_split).sum()),
        "without a token at that offset": int((in_split & ~inside).sum()),
        "at position 0 or special tokens": int((in_split & inside & ~counted).sum()),
        f"not where {how.where}": int((usable & ~is_chosen).sum()),
        f"with a norm above {how.max_norm or 0:g} times the median": int(
            (usable & is_chosen & is_massive).sum()
        ),
    }
    return usable & is_chosen & ~is_massive, reasons


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)


def _said(reasons: dict[str, int]) -> list[str]:
    listed = _listed(reasons)
    return [f"Labelled rows not used: {listed}"] if listed else []


def _word_types(store: ActivationStore, rows: Array, bounds: Array) -> Array:
    """Of each example the token that is read, or a hash of those that are."""
    lengths = np.diff(bounds)
    if (lengths == 1).all():
        return np.asarray(store.tokens["id"].take(rows), np.int64)
    return tokens_of(store, rows, np.repeat(np.arange(len(lengths)), lengths))[bounds[:-1]]


def _require_one_label(labelled: Labelled, kept: Array, first: Array) -> None:
    targets = labelled.targets[kept]
    lengths = np.diff(np.append(first, len(targets)))
    own = np.repeat(targets[first], lengths, axis=0)
    different = (own != targets).reshape(len(targets), -1).any(axis=1)
    if different.any():
        at = int(different.argmax())
        raise InvalidLabels(
            f"Rows of one document, span or item have different labels of "
            f"{labelled.task.called!r}: such as row {int(labelled.rows[kept][at]):,}\n"
            "hint: pooling needs one label an item; name a column that tells items apart (item), "
            "or use pooling: [token]"
        )


def _without_rare(made: Examples, how: RowsConfig) -> Examples:
    """Refuse or drop classes that cannot be learned or tested."""
    empty = [name for code, name in enumerate(SPLITS) if not made.count(code)]
    if empty:
        counts = ", ".join(f"{name} {made.count(code):,}" for code, name in enumerate(SPLITS))
        raise NotEnoughRows(
            f"No labelled example of {made.task.called!r} ({made.pooling}, offset {made.offset}) "
            f"is left to {' or '.join(empty)}: {counts}\n"
            "hint: label documents of all splits, or draw splits anew with "
            "splits: {by: document}"
        )
    if made.kind == "regression":
        if made.count(TRAIN) < how.least_per_class:
            raise NotEnoughRows(
                f"{made.count(TRAIN):,} training examples of {made.task.called!r}, and "
                f"rows.least_per_class is {how.least_per_class}\nhint: label more rows"
            )
        return made
    each = class_counts(made)
    few = (each[TRAIN] < how.least_per_class) | (each[1:] < 1).any(axis=0)
    if not few.any():
        return made
    listed = "; ".join(
        f"{made.classes[c]!r} {each[0, c]:,} train, {each[1, c]:,} validate, {each[2, c]:,} test"
        for c in np.flatnonzero(few)[:5]
    )
    if how.rare == "refuse":
        raise NotEnoughRows(
            f"{int(few.sum()):,} of {len(made.classes):,} classes of {made.task.called!r} have "
            f"fewer than {how.least_per_class} training examples, or none to validate or test: "
            f"{listed}\nhint: rows.rare: drop leaves them out; rows.least_per_class says how few "
            "are too few; splits: {by: document, stratify: true} spreads them over splits"
        )
    kept = np.flatnonzero(~few)
    classes = tuple(made.classes[c] for c in kept)
    said = f"{int(few.sum()):,} rare classes of {made.task.called} were left out: {listed}"
    if made.kind == "multilabel":
        if not classes:
            check_classes(made.task, made.kind, classes)
        return replace(
            made, targets=made.targets[:, kept], classes=classes, warnings=(*made.warnings, said)
        )
    check_classes(made.task, made.kind, classes)
    recoded = np.cumsum(~few) - 1
    left = made.take(np.flatnonzero(~few[made.targets]))
    return replace(
        left,
        targets=recoded[left.targets],
        classes=classes,
        kind="binary" if len(classes) == 2 else "multiclass",
        warnings=(*left.warnings, said),
    )


def class_counts(made: Examples) -> Array:
    """(3, classes) examples of each class in each split; of a multilabel task the rarer side."""
    if made.kind == "multilabel":
        yes = np.stack([made.targets[made.where(code)].sum(axis=0) for code in range(3)])
        total = np.array([made.count(code) for code in range(3)])[:, None]
        return np.asarray(np.minimum(yes, total - yes))
    return np.stack(
        [
            np.bincount(made.targets[made.where(code)], minlength=len(made.classes))
            for code in range(3)
        ]
    )


def _sampled(made: Examples, most: int, seeds: Seeds) -> Examples:
    rng = seeds.numpy(f"examples of {made.name}")
    chosen = []
    for code in range(3):
        part = made.where(code)
        everyone = np.arange(part.start, part.stop)
        chosen.append(np.sort(rng.permutation(everyone)[:most]))
    return made.take(np.concatenate(chosen))


def _warnings(made: Examples) -> Sequence[str]:
    leaked = made.leaked
    if not leaked:
        return []
    what = made.task.entity or "document text"
    return [
        f"{leaked:.1%} of the test examples of {made.name} have a {what} that is in training or "
        "validation too: scores tell how well it is remembered"
    ]
