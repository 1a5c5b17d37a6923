"""What a training of sparse autoencoders is: which ones, on which rows, for how long."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actlake.jobs.massive_rows import MAX_NORM, check_max_norm
from actlake.jobs.sae.errors import InvalidSAE, InvalidTraining
from actlake.platform.cluster.config import ClusterConfig, ResourcesConfig
from actlake.platform.models.config import ModelConfig, check_device
from actlake.platform.tracking.config import TrackingConfig
from actlake.storage.sites import Site


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, and how its learning rate runs."""

    learning_rate: float = 3e-4
    """Highest learning rate. Inputs have a mean squared entry of about 1, so rates from papers
    with that scaling carry over."""

    schedule: Literal["constant", "cosine", "linear"] = "linear"
    """After the warm-up: ``constant``; ``cosine``, falling over all that is left; ``linear``,
    constant and then falling over the last `decay` of the steps."""

    warm_up: float = 0.02
    """Share of the steps in which the rate rises from 0."""

    decay: float = 0.2
    """Share of the steps in which a ``linear`` rate falls."""

    end: float = 0.0
    """The rate at the end, as a share of `learning_rate`."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""

    clip: float | None = 1.0
    """Longest gradient, as the norm over all parameters of the SAE; null: no limit."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise InvalidTraining(
                f"learning_rate must be above 0, and is {self.learning_rate}\nhint: such as 3e-4"
            )
        for name in ("warm_up", "decay", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidTraining(
                    f"{name} is a share between 0 and 1, and is {getattr(self, name)}\n"
                    "hint: of the steps, or for `end` of the learning rate"
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidTraining(
                f"Adam's betas are at least 0 and below 1, and are {list(self.betas)}\n"
                "hint: such as betas: [0.9, 0.999]"
            )
        if self.clip is not None and self.clip <= 0:
            raise InvalidTraining(
                f"clip must be above 0, and is {self.clip}\nhint: clip: null sets no limit"
            )


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """End the training of an SAE that no longer becomes better on held-out rows."""

    patience: int = 3
    """Evaluations without a better FVU after which it ends."""

    least: float = 1e-3
    """Relative decrease of the FVU that counts as better."""

    def __post_init__(self) -> None:
        if self.patience < 1 or not 0 <= self.least < 1:
            raise InvalidTraining(
                f"early_stop needs a patience of 1 or more and a share in [0, 1), not "
                f"{self.patience} and {self.least}\nhint: such as {{patience: 3, least: 0.001}}"
            )


@dataclass(frozen=True, kw_only=True)
class SAESpec:
    """One sparse autoencoder, transcoder or crosscoder."""

    name: str | None = None
    """Its folder below `out`, and its name in reports; null: made of site, architecture, width
    and what differs from the others."""

    site: Site | None = None
    """The site it reads, and reconstructs where there is no `target`."""

    target: Site | None = None
    """A site that is predicted from `site`: a transcoder, such as mlp_in.9 to mlp_out.9."""

    sites: tuple[Site, ...] = ()
    """Several sites in place of `site`: a crosscoder, one set of latents for all of them."""

    architecture: str = "topk"
    """``standard``, ``gated``, ``jumprelu``, ``topk``, ``abstopk``, ``batchtopk``,
    ``matryoshka_batchtopk`` or ``matching_pursuit``."""

    d_sae: int = 16_384
    """Latents; 8 to 64 times the width of the rows is usual."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the architecture, with SAELens' names: ``k``, ``l1_coefficient``,
    ``l0_coefficient``, ``matryoshka_widths``, …"""

    seed: int = 0
    """Of the first weights."""

    start_at_mean: bool = True
    """Begin with the decoder's bias at the mean of the training rows; false: at 0, as SAELens."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How it learns."""

    dead_after_rows: int | None = None
    """Rows without a firing after which a latent counts as dead, and takes part in the
    auxiliary loss of architectures that have one; null: a tenth of the training, 1,000,000 at
    most."""

    resample_every_rows: int | None = None
    """For ``standard``: give dead latents new weights, towards rows that are reconstructed
    badly, each time that so many rows have passed, but not in the last `optimizer.decay` of the
    steps, in which they could no longer learn; null: do not."""

    early_stop: EarlyStop | None = None
    """End early; null: train on all rows."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "dead_after_rows", "resample_every_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSAE(
                    f"{name} must be at least 1, and is {value}\nhint: leave it out for the default"
                )
        if self.site is not None and self.sites:
            raise InvalidSAE(
                f"An SAE has one site, or several as a crosscoder, and both {self.site} and "
                f"{', '.join(map(str, self.sites))} are given\nhint: leave site or sites out"
            )
        if self.target is not None and self.sites:
            raise InvalidSAE(
                "A crosscoder reconstructs the sites it reads, and has no target\n"
                "hint: leave target out, or give one site"
            )
        if len(self.sites) == 1 or len(set(self.sites)) < len(self.sites):
            raise InvalidSAE(
                f"A crosscoder needs two or more different sites, not "
                f"{', '.join(map(str, self.sites))}\nhint: give a single site as `site`"
            )

    @property
    def inputs(self) -> tuple[Site, ...]:
        """The sites it reads."""
        return self.sites or (() if self.site is None else (self.site,))

    @property
    def all_sites(self) -> tuple[Site, ...]:
        """The sites it reads and predicts."""
        return self.inputs if self.target is None else (*self.inputs, self.target)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of the training is written down."""

    every_steps: int = 1000
    """Steps between checkpoints; also one is written when the training is asked to stop."""

    keep: int = 2
    """How many of the last ones stay."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise InvalidTraining(
                f"checkpoint needs every_steps and keep of 1 or more, not {self.every_steps} and "
                f"{self.keep}\nhint: such as checkpoint: {{every_steps: 1000, keep: 2}}"
            )


@dataclass(frozen=True, kw_only=True)
class InModelConfig:
    """Put reconstructions in the place of activations while the model runs."""

    contexts: int = 32
    """Held-out contexts to run."""

    model: ModelConfig | None = None
    """The model; null: as the store's harvest recorded it."""

    exclude: Literal["default", "special", "nothing"] | None = None
    """Positions that keep their activations and are not counted: ``default``, position 0 of each
    context and special tokens; ``special``, special tokens only, which is ``run_evals`` of
    SAELens with ``exclude_special_tokens``; ``nothing``. null: as in training."""

    ablate: Literal["all", "spliced"] = "all"
    """Where zeros are put for CE recovered: at ``all`` positions, as SAELens does, or only where
    reconstructions are, by which CE recovered is lower: the harsher score."""

    mean: bool = True
    """Put the mean row of the training split in place of the rows, too: one run more."""

    def __post_init__(self) -> None:
        if self.contexts < 1:
            raise InvalidTraining(
                f"A test in the model needs contexts, not {self.contexts}\n"
                "hint: in_model: null leaves the test out"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How SAEs are tested on documents that they were not trained on."""

    split: str = "test"
    """Split of the documents that are held out."""

    rows: int = 16_384
    """Rows to test on, drawn from the split; all of it where it has fewer."""

    every_steps: int | None = 1000
    """Steps between tests during the training; null: only at the end."""

    in_model: InModelConfig | None = None
    """Test in the running model as well, at the end; null: do not."""

    def __post_init__(self) -> None:
        if self.rows < 1 or (self.every_steps is not None and self.every_steps < 1):
            raise InvalidTraining(
                f"evaluation needs rows and every_steps of 1 or more, not {self.rows} and "
                f"{self.every_steps}\nhint: every_steps: null tests only at the end"
            )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report shows of single latents."""

    latents: int = 24
    """Latents of each SAE that are shown; 0: none."""

    contexts: int = 6
    """Contexts of each, those in which it is most active."""

    rows: int = 100_000
    """Rows of the held-out split that are searched for them."""


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Train sparse autoencoders on one stream of rows of a store."""

    store: str
    """The store that is read."""

    out: str
    """Folder of the results; each SAE has a folder of its own name in it."""

    sae: SAESpec = field(default_factory=SAESpec)
    """The SAE; of several, what they have in common."""

    saes: tuple[Mapping[str, Any], ...] = ()
    """Several SAEs, each as what differs from `sae`: ``[{site: resid_post.4}, {site:
    resid_post.9, d_sae: 9216}]``. With another architecture, the options of `sae` are left out."""

    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """All combinations of values, for each of `saes`: ``{d_sae: [4608, 9216], options.k: [16,
    32], optimizer.learning_rate: [1e-4, 3e-4]}``."""

    batch_rows: int = 4096
    """Rows of a step, over all workers."""

    rows: int | None = None
    """Rows to train on; null: `epochs` times all there are."""

    epochs: int = 1
    """How often a row is seen at most."""

    split: str = "train"
    """Split of the documents to train on."""

    max_norm: float | None = MAX_NORM
    """Leave out rows whose norm at a site that is read or predicted is more than so many times the
    median norm of the training rows there, in training and in tests: few rows, such as the first
    of a text and line breaks, can hold most of the variance. null: none."""

    excluded: bool = False
    """Train also on position 0 of each context and on special tokens."""

    where: str | None = None
    """Train and test only on rows of which this is true: SQL on tokens, documents and attached
    labels, as in queries, such as ``segment = 'assistant'``; null: all rows."""

    shuffle: Literal["auto", "exact", "pool", "none"] = "auto"
    """How rows are mixed; see the guide on reading."""

    seed: int = 0
    """Of the order of rows."""

    normalise: bool = True
    """Scale rows to a mean norm of sqrt(width), by the stored statistics of the split; the scale
    is folded into the saved weights."""

    micro_batches: int = 1
    """Parts in which a step's rows go through, one after the other, to save memory. batchtopk
    selects within each part."""

    autocast: Literal["none", "bfloat16"] = "none"
    """Compute products in bfloat16; parameters and their updates stay float32."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, …, or ``auto``: CUDA where the worker has it. On a running
    cluster and with several workers ``auto`` and ``cuda`` reserve a GPU for each."""

    threads: int | None = None
    """Compute threads of each worker; null: the machine's cores shared among them, and on a running
    cluster as many as the CPUs it reserves."""

    workers: int = 1
    """Processes that train side by side, on Ray; 1: this process, without Ray, unless a running
    cluster is joined."""

    spread: Literal["rows", "saes"] = "rows"
    """What several workers share out: the ``rows`` of each step, or the ``saes``."""

    log_every: int = 20
    """Steps of which the logged numbers are means."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the state is written down."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Tests on held-out documents."""

    report: ReportConfig = field(default_factory=ReportConfig)
    """What the report shows."""

    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What each worker reserves on the cluster."""

    hang_timeout_s: float = 3600.0
    """A worker on Ray that has told nothing for so many seconds is taken for hung, and all go on
    from the last checkpoint. `log_every` steps, a test, and the end of an SAE must take less."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster, for more than one worker or to train on another machine."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the numbers go; each SAE is a run, and all of them a group."""

    def __post_init__(self) -> None:
        sizes = ("batch_rows", "epochs", "micro_batches", "workers", "log_every")
        for name in (*sizes, "rows", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidTraining(
                    f"{name} must be at least 1, and is {value}\n"
                    f"hint: leave {name} out for the default"
                )
        if not self.hang_timeout_s > 0:
            raise InvalidTraining(
                f"hang_timeout_s must be above 0, and is {self.hang_timeout_s}\n"
                "hint: leave it out for an hour"
            )
        if why := check_max_norm(self.max_norm):
            raise InvalidTraining(why)
        check_device(self.device)
        sharers = self.workers if self.spread == "rows" else 1
        if self.batch_rows % (sharers * self.micro_batches):
            raise InvalidTraining(
                f"A step of {self.batch_rows:,} rows cannot be shared evenly by {sharers} "
                f"worker(s) with {self.micro_batches} micro-batch(es) each\n"
                "hint: choose a batch_rows that their product divides"
            )
        for name, values in self.grid.items():
            if not values:
                raise InvalidTraining(
                    f"grid.{name} has no value, so there is nothing to train\n"
                    f"hint: such as grid: {{{name}: [1, 2]}}, or leave it out"
                )


__all__ = [
    "CheckpointConfig",
    "EarlyStop",
    "EvaluationConfig",
    "InModelConfig",
    "OptimizerConfig",
    "ReportConfig",
    "SAEConfig",
    "SAESpec",
]
