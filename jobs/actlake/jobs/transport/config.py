"""What a fit of transport operators is: which maps, of which store, tested how."""

from dataclasses import dataclass, field
from typing import Literal

from actlake.jobs.massive_rows import MAX_NORM, check_max_norm
from actlake.jobs.transport.errors import InvalidTransport
from actlake.jobs.transport.pairs import Grid, Listed, Pairs
from actlake.platform.cluster.config import ClusterConfig, ResourcesConfig
from actlake.platform.models.config import ModelConfig
from actlake.platform.tracking.config import TrackingConfig

Kind = Literal["ridge", "ols", "procrustes", "svd", "reduced", "cca"]


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Which rows are used for what."""

    fit: str = "train"
    """Split whose rows maps are fitted on."""

    validate: str | None = None
    """Split on which α is chosen; null: every tenth document of the training split is held out
    for it, and the final map fitted on all of them."""

    test: str = "test"
    """Split on which maps are tested."""

    excluded: bool = False
    """Use also position 0 of each context and special tokens. Position 0 has huge norms in many
    models, and is most of the second moment."""

    where: str | None = None
    """Use only rows of which this is true, to fit, validate and test, as source and as target: SQL
    on tokens, documents and labels of the source's store, such as ``segment = 'assistant'``;
    null: all."""

    max_norm: float | None = MAX_NORM
    """Leave out rows whose norm at the source or the target of a pair is more than so many times
    the median norm of the training rows there: few rows, such as the first of a text and line
    breaks, can hold most of the variance. null: none."""

    groups: int = 20
    """Groups of test documents for confidence intervals."""


@dataclass(frozen=True, kw_only=True)
class MomentsConfig:
    """How the one pass over the rows is made."""

    folder: str | None = None
    """Where moments are kept and found again; null: ``moments`` beside `out`."""

    precision: Literal["float32", "float64"] = "float32"
    """Of the products of rows; sums are always float64. float64 takes twice as long."""

    workers: int = 1
    """Processes that sum parts of the rows side by side, on Ray; 1: this process, without Ray,
    unless a running cluster is joined."""

    threads: int | None = None
    """Compute threads of each, and of this process, which fits the maps; null: the machine's cores
    shared among them, and on a running cluster as many as the CPUs a worker reserves."""


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """An SAE whose features are looked for in what a map carries over."""

    path: str
    """Folder with ``cfg.json`` and ``sae_weights.safetensors``, or ``REPOSITORY:FOLDER`` of the
    Hugging Face hub."""

    any_hook: bool = False
    """Use an SAE that says it was trained on another hook."""

    threshold: float = 0.5
    """R² on active rows at which features are divided into those above and those below."""

    least_active: int = 20
    """Active test rows below which a feature is not judged."""


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Replace the target while the model runs, and see what it then predicts."""

    contexts: int = 16
    """Test contexts to run."""

    share: float = 0.25
    """Share of positions that are replaced, drawn at random."""

    pairs: int = 6
    """Pairs to test, spread evenly over all that are fitted; each takes six runs of the model a
    context."""

    def __post_init__(self) -> None:
        if self.contexts < 1 or self.pairs < 1 or not 0 < self.share <= 1:
            raise InvalidTransport(
                f"A causal test needs contexts, pairs and a share in (0, 1], not {self.contexts}, "
                f"{self.pairs} and {self.share}\n"
                "hint: such as causal: {contexts: 16, share: 0.25}"
            )


@dataclass(frozen=True, kw_only=True)
class ShortcutConfig:
    """Map states to the last layer and predict from there."""

    rows: int = 4096
    """Test rows to predict."""

    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
    """Probabilities of the top token from which the model may stop, for the early-exit curve."""


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Fit linear maps between sites of a store, and test how much they carry over."""

    store: str
    """Store of the source sites, and of the targets unless `target_store` is set."""

    out: str
    """Folder of the result; it appears when it is complete."""

    pairs: Pairs = "all"
    """``all``: every stored site to every deeper one. ``to_last``: every site to the deepest,
    as `shortcut` needs it. ``{layers: [2, 4], k: [1, 2]}``: from
    layer L to L + k. ``{listed: [resid_post.3->resid_post.7]}``: one by one."""

    offsets: tuple[int, ...] = (0,)
    """Tokens from source to target: 0 is the same token, 1 the next one. Each pair is fitted at
    each offset, within a document and context."""

    target_store: str | None = None
    """A store of another model over the same tokens, for maps between models."""

    alphas: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7)
    """Ridge penalties to choose from, as scikit-learn's ``Ridge(alpha)`` counts them."""

    choose_by: Literal["uniform", "variance_weighted"] = "uniform"
    """Which R² on validation rows decides α: the mean over dimensions (scikit-learn's), or
    weighted by their variance."""

    intercept: bool = True
    """Fit a bias."""

    rank_curves: bool = True
    """R² of the rank-r maps for all ranks, with ceiling and efficiency."""

    save: tuple[Kind, ...] = ("ridge",)
    """Maps to write to disk; ``svd``, ``reduced`` and ``cca`` as factors of all ranks."""

    rows: RowsConfig = field(default_factory=RowsConfig)
    """Which rows are used for what."""

    moments: MomentsConfig = field(default_factory=MomentsConfig)
    """How the pass over the rows is made."""

    dictionary: DictionaryConfig | None = None
    """An SAE of the target site, for R² along its features."""

    causal: CausalConfig | None = None
    """Test in the running model; null: do not."""

    shortcut: ShortcutConfig | None = None
    """Test maps to the last layer as shortcuts; null: do not."""

    model: ModelConfig | None = None
    """The model, for the two tests above; null: as the store's harvest recorded it."""

    seed: int = 0
    """Decides which positions are replaced."""

    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What each worker of the pass over the rows reserves on the cluster; it uses no GPU."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster, for more than one worker or to sum on another machine."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the numbers go."""

    def __post_init__(self) -> None:
        if not self.alphas or min(self.alphas) <= 0:
            raise InvalidTransport(
                f"Ridge penalties must be above 0, and alphas is {list(self.alphas)}\n"
                "hint: such as alphas: [1, 10, 100, 1000]; least squares is always fitted too"
            )
        if len(set(self.alphas)) != len(self.alphas) or len(set(self.offsets)) != len(self.offsets):
            raise InvalidTransport(
                f"A value is given twice in alphas {list(self.alphas)} or offsets "
                f"{list(self.offsets)}\nhint: give each once"
            )
        if why := check_max_norm(self.rows.max_norm, "rows.max_norm"):
            raise InvalidTransport(why)
        if not self.offsets:
            raise InvalidTransport("There is no offset\nhint: offsets: [0] is the same token")
        sizes = {
            "rows.groups": self.rows.groups,
            "moments.workers": self.moments.workers,
            "moments.threads": self.moments.threads,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise InvalidTransport(
                    f"{name} must be at least 1, and is {size}\n"
                    f"hint: leave {name} out for the default"
                )
        if self.target_store is not None and (self.causal or self.shortcut):
            raise InvalidTransport(
                "Maps between two models cannot be tested in a running model\n"
                "hint: leave causal and shortcut out, or target_store"
            )


__all__ = [
    "CausalConfig",
    "DictionaryConfig",
    "Grid",
    "Kind",
    "Listed",
    "MomentsConfig",
    "RowsConfig",
    "ShortcutConfig",
    "TransportConfig",
]
