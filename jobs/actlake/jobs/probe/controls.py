"""What a set of examples is trained on: its labels, shuffled labels, and a control task (pure).

Shuffled labels keep the classes' shares within each split: what a probe then finds is chance and
overfitting. The control task of Hewitt and Liang 2019 ("Designing and Interpreting Probes with
Control Tasks") gives every word type a random label: what a probe then finds is what it can
memorise. Selectivity is the score less the score on that, where `TYPES_SEEN` of the test examples
or more have a word type of the training examples: on other words nothing can be remembered, and
the control is low whatever the probe does. A word type is the token that is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.jobs.probe.config import Control
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.splits import TRAIN
from actlake.platform.seeds import Seeds

Array = np.ndarray[Any, Any]
TRUE = "true"
TYPES_SEEN = 0.5
"""Least share of test examples with a known word type for a selectivity."""


@dataclass(frozen=True)
class Heads:
    """Everything that is predicted of one set of examples, one column each.

    The columns of a condition follow each other: one, or in a multilabel task one a label.
    """

    conditions: tuple[str, ...]
    """``true`` first."""
    labels: int
    """Columns of a condition."""
    targets: Array
    """(n, columns): int64 codes of classes, or float64 numbers."""
    num_classes: int
    """Of each column; 1 for numbers."""

    @property
    def count(self) -> int:
        """How many columns."""
        return len(self.conditions) * self.labels

    def column(self, condition: str, label: int = 0) -> int:
        """Place of one."""
        return self.conditions.index(condition) * self.labels + label


def heads_of(examples: Examples, controls: Sequence[Control], seeds: Seeds) -> Heads:
    """The labels of `examples`, and those of the controls."""
    making = {"shuffled": _shuffled, "word_type": _of_word_types}
    kept = [control for control in ("shuffled", "word_type") if control in controls]
    targets = [examples.targets] + [
        making[control](examples, seeds.numpy(f"{control} {examples.name}")) for control in kept
    ]
    columns = np.concatenate([one.reshape(len(one), -1) for one in targets], axis=1)
    if examples.kind != "regression":
        columns = columns.astype(np.int64)
    classes = {"regression": 1, "multilabel": 2}.get(examples.kind, len(examples.classes))
    return Heads((TRUE, *kept), columns.shape[1] // len(targets), columns, classes)


def _shuffled(examples: Examples, rng: np.random.Generator) -> Array:
    """Permuted within each split: whole documents where a label is of a document."""
    found = examples.targets.copy()
    for split in np.unique(examples.split):
        part = np.flatnonzero(examples.split == split)
        if not examples.of_documents:
            found[part] = examples.targets[rng.permutation(part)]
            continue
        _, first, document = np.unique(
            examples.document[part], return_index=True, return_inverse=True
        )
        found[part] = examples.targets[part[rng.permutation(first)][document]]
    return found


def _of_word_types(examples: Examples, rng: np.random.Generator) -> Array:
    """A label for each word type, drawn from the training examples."""
    types, of_type = np.unique(examples.word_type, return_inverse=True)
    training = examples.targets[examples.where(TRAIN)]
    found: Array = training[rng.integers(0, len(training), len(types))][of_type]
    return found
