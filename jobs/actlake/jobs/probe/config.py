"""What a probing run is: which labels, at which sites, pooled how, predicted by which probes."""

import re
from dataclasses import dataclass, field
from typing import Literal

from actlake.jobs.massive_rows import MAX_NORM, check_max_norm
from actlake.jobs.probe.errors import InvalidProbe
from actlake.platform.cluster.config import ClusterConfig, ResourcesConfig
from actlake.platform.models.config import check_device
from actlake.platform.tracking.config import TrackingConfig

TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]
Pooling = Literal["token", "last", "mean"]
Kind = Literal["logistic", "ridge", "mean_difference", "lda"]
Control = Literal["shuffled", "word_type"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
DOCUMENTS = "documents"
"""In place of the name of attached labels: the corpus's own columns."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Something to predict: one column of labels."""

    labels: str = DOCUMENTS
    """Name under which labels are attached to the store; ``documents`` for the columns that the
    documents have themselves."""

    column: str | None = None
    """Which column; null where the labels have only one."""

    name: str | None = None
    """What the task is called in tables; null: the column."""

    kind: TaskKind | Literal["auto"] = "auto"
    """``auto``: numbers with a fraction are regression, lists multilabel, two values binary, all
    others classes."""

    item: str | None = None
    """Column which says which rows belong together, for `pooling`; null: rows that follow each
    other in a document and have the same values in all columns, such as a span's."""

    entity: str | None = None
    """Column, of the labels or of the documents, of what must not be on both sides of a split:
    it is counted as leakage where it is. null: documents with the same tokens."""

    def __post_init__(self) -> None:
        if self.labels == DOCUMENTS and self.column is None:
            raise InvalidProbe(
                "A task on the columns of the documents does not say which\n"
                "hint: such as tasks: [{labels: documents, column: topic}], or the name of labels "
                "that are attached to the store"
            )

        if not _NAME.fullmatch(self.called):
            raise InvalidProbe(
                f"A task cannot be called {self.called!r}, since folders and metrics are\n"
                "hint: give it a name of letters, digits and _ . -: tasks: [{name: …}]"
            )

    @property
    def called(self) -> str:
        """Its name in tables and folders."""
        return self.name or self.column or self.labels


@dataclass(frozen=True, kw_only=True)
class StoreSplits:
    """The document splits of the store."""

    train: str = "train"
    """Split whose rows probes are fitted on."""

    validate: str | None = None
    """Split on which the penalty is chosen; null: every tenth labelled document of the training
    split is held out for it."""

    test: str = "test"
    """Split on which probes are tested."""


@dataclass(frozen=True, kw_only=True)
class DrawnSplits:
    """Splits drawn anew, whatever the store's are."""

    by: Literal["document", "entity"]
    """What stays together. ``entity``: the task's column `TaskConfig.entity`."""

    validate: float = 0.1
    """Share of documents or entities for choosing the penalty."""

    test: float = 0.2
    """Share for testing."""

    stratify: bool = False
    """Draw from each class alike, by the label that a document or entity has most often."""

    def __post_init__(self) -> None:
        if not (0 < self.validate < 1 and 0 < self.test < 1 and self.validate + self.test < 1):
            raise InvalidProbe(
                f"The shares of splits are {self.validate} to validate and {self.test} to test\n"
                "hint: both above 0 and together below 1; the rest is for training"
            )


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Which rows are used."""

    excluded: bool = False
    """Use also position 0 of each context and special tokens. Position 0 has huge norms in many
    models, and says nothing of its own."""

    where: str | None = None
    """Use only activations of rows of which this is true, to train, validate and test: SQL on
    tokens, documents and attached labels, such as ``segment = 'assistant'``; null: all."""

    max_norm: float | None = MAX_NORM
    """Leave out rows whose norm at one of the probed sites is more than so many times the median
    norm of the training rows there: few rows, such as the first of a text and line breaks, can
    hold most of the variance. All sites are probed on the same rows. null: none."""

    per_split: int | None = None
    """Examples of each split at most, drawn at random; null: all."""

    least_per_class: int = 10
    """Training examples below which a class is too rare to be learned."""

    rare: Literal["refuse", "drop"] = "refuse"
    """What happens to classes that are too rare, or absent from validation or test."""

    missing: Literal["refuse", "drop"] = "refuse"
    """What happens to labels that are null or NaN."""

    groups: int = 20
    """Groups of test documents, for confidence intervals over documents."""


@dataclass(frozen=True, kw_only=True)
class MarkersConfig:
    """When a score counts as having jumped or converged ("Exploring Concept Depth")."""

    jump: float = 1.1
    """Ratio to the layer before from which a layer is a jump."""

    converge: float = 0.03
    """Deviation of that ratio from 1 below which a layer no longer changes."""


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """An SAE whose latents are compared with the probes of its site."""

    path: str
    """Folder with ``cfg.json`` and ``sae_weights.safetensors``, or ``REPOSITORY:FOLDER`` of the
    Hugging Face hub."""

    any_hook: bool = False
    """Use an SAE that says it was trained on another hook."""

    examples: int = 20_000
    """Training examples, at most, that the best latents are chosen on."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Train linear probes on the rows of a store, at every site, with honest controls."""

    store: str
    """Store with the activations, to which the labels are attached."""

    out: str
    """Folder of the result; it appears when it is complete."""

    tasks: tuple[TaskConfig, ...]
    """What to predict."""

    sites: tuple[str, ...] | Literal["all"] = "all"
    """Sites to probe, such as ``[resid_post.3, resid_post.9]``; ``all``: every stored one."""

    pooling: tuple[Pooling, ...] = ("token",)
    """``token``: every labelled token is an example. ``last``: the last token of each labelled
    document or span. ``mean``: the mean over its tokens."""

    offsets: tuple[int, ...] = (0,)
    """Tokens from the activations to the label: 0 is the same token, 1: the label of the next
    token is predicted. Within a document and context."""

    probes: tuple[Kind, ...] = ("logistic", "mean_difference", "lda", "ridge")
    """Which probes are fitted: ``ridge`` where numbers are predicted, the others for classes."""

    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4)
    """L2 penalties λ of the logistic probe to choose from: the sum of losses plus λ/2 ‖w‖², so
    that λ is scikit-learn's 1/C."""

    alphas: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
    """Ridge penalties to choose from, as scikit-learn's ``Ridge(alpha)`` counts them."""

    standardize: bool = True
    """Penalise weights of standardised dimensions (mean 0 and deviation 1 on the training rows).
    Saved probes read raw activations either way."""

    rank: int | None = None
    """Fit also a logistic probe of this rank, where there are more classes than that."""

    controls: tuple[Control, ...] = ("shuffled", "word_type")
    """What else the same probes are trained on: shuffled labels; a random label for each word
    type (Hewitt & Liang), for selectivity. The majority baseline is always there."""

    learning_curve: tuple[float, ...] = (0.1, 0.3)
    """Shares of the training documents that the logistic and ridge probes are fitted on again."""

    splits: StoreSplits | DrawnSplits = field(default_factory=StoreSplits)
    """What is trained, validated and tested on: splits of documents or entities, never of
    tokens. ``{by: entity}`` or ``{by: document, stratify: true}`` draws new ones."""

    rows: RowsConfig = field(default_factory=RowsConfig)
    """Which rows are used."""

    markers: MarkersConfig = field(default_factory=MarkersConfig)
    """Depth markers."""

    transfer: bool = False
    """Test the probes of every task also on the test rows of all others with the same classes."""

    dictionary: DictionaryConfig | None = None
    """An SAE of one of the sites, to compare with the probes; null: none."""

    memory_mb: int = 4096
    """Memory for rows. What fits is gathered once a site; what does not is streamed from the
    store, once for every step of a solver."""

    workers: int = 1
    """Processes that probe sites side by side, on Ray; 1: this process, without Ray, unless a
    running cluster is joined."""

    threads: int | None = None
    """Compute threads of each; null: the machine's cores shared among them, and on a running
    cluster as many as the CPUs a worker reserves."""

    device: str = "auto"
    """Where solvers compute: ``cpu``, ``cuda``, ``cuda:1``, …; ``auto``: a GPU where there is one.
    On a running cluster and with several workers ``auto`` and ``cuda`` reserve a GPU for each."""

    seed: int = 0
    """Decides controls and drawn splits."""

    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What each worker reserves on the cluster."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster, for more than one worker or to compute on another machine."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the numbers go."""

    def __post_init__(self) -> None:
        _require_some("tasks", self.tasks, "[{labels: topic}]")
        _require_some("pooling", self.pooling, "[token]")
        _require_some("offsets", self.offsets, "[0]")
        _require_some("probes", self.probes, "[logistic, ridge]")
        if self.sites != "all":
            _require_some("sites", self.sites, "[resid_post.3], or all")
        _require_some("tasks' names", [task.called for task in self.tasks], "names")
        for name, values in (("penalties", self.penalties), ("alphas", self.alphas)):
            _require_some(name, values, "[1, 10, 100]")
            if min(values) <= 0:
                raise InvalidProbe(
                    f"Penalties must be above 0, and {name} is {list(values)}\n"
                    f"hint: such as {name}: [1, 10, 100]"
                )
        if any(not 0 < share < 1 for share in self.learning_curve):
            raise InvalidProbe(
                f"Shares of a learning curve are above 0 and below 1, not "
                f"{list(self.learning_curve)}\nhint: such as learning_curve: [0.1, 0.3]; all of "
                "the training rows is always a point of it"
            )
        if why := check_max_norm(self.rows.max_norm, "rows.max_norm"):
            raise InvalidProbe(why)
        check_device(self.device)
        sizes = {
            "rank": self.rank, "memory_mb": self.memory_mb, "workers": self.workers,
            "threads": self.threads, "rows.groups": self.rows.groups,
            "rows.per_split": self.rows.per_split,
            "rows.least_per_class": self.rows.least_per_class,
        }  # fmt: skip
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise InvalidProbe(
                    f"{name} must be at least 1, and is {size}\n"
                    f"hint: leave {name} out for the default"
                )


def _require_some(name: str, values: "tuple[object, ...] | list[str]", example: str) -> None:
    if not values:
        raise InvalidProbe(f"{name} is empty\nhint: such as {name}: {example}")
    if len(set(values)) != len(values):
        shown = ", ".join(map(str, values))
        raise InvalidProbe(
            f"Something is given twice in {name}: {shown}\n"
            "hint: give each once; tasks on the same column need a name each"
        )
