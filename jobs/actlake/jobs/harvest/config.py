"""What a harvest is: which text, through which model, into which store, on what."""

from dataclasses import dataclass, field
from typing import Literal

from actlake.platform.cluster import ClusterConfig, Placement, ResourcesConfig, Transport
from actlake.platform.cluster.stage import UNIT_TIMEOUT_S
from actlake.platform.corpus import CorpusConfig
from actlake.platform.models import ModelConfig
from actlake.platform.models.points import check_points
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActlakeError, Site
from actlake.storage.dtypes import ActivationDtype
from actlake.storage.layout import Compression


class InvalidHarvest(ActlakeError, ValueError):
    """A harvest cannot have these sizes."""


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How the rows of these sites are stored; fixed when a site is announced."""

    dtype: ActivationDtype = "float16"
    """Element type on disk. float16 holds numbers up to 65,504; where the first contexts have
    larger ones the harvest is refused before the text is laid out, later ones cost their unit.
    bfloat16 has float32's range and three digits; float32 twice the bytes. int8 takes half the
    bytes of float16: a code for each value and a scale for each 64 of a row, for up to 8,319,008;
    jobs read float32. Of SmolLM2's rows it loses 3e-4 to 5e-4 of the variance; in massive rows
    what lies beside a massive value is lost."""

    compression: Compression = "none"
    """``zstd`` saves about 7 % of float16 and 20 % of bfloat16, and the store can then not be
    memory-mapped: random reads become hundreds of times slower."""

    nonfinite: Literal["refuse", "count"] = "refuse"
    """What happens to infinities and NaNs: the harvest stops, or they are stored and counted."""

    unit_rows: int | None = None
    """At most so many rows in a unit of work, a shard file; null: up to 128 MiB a site (1 GiB in
    a store of more than 1 TiB a site), 30 seconds of work, and at least 16 units a store."""


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """How a copy of the model is cut into stages, where they are and how they talk.

    None of it changes a bit of what is stored.
    """

    boundaries: tuple[int, ...] = ()
    """Layers at which a new stage begins: 8,16 makes stages [0, 8), [8, 16) and [16, …). Left
    out, `stages` and `balance` decide."""

    balance: Literal["bytes", "compute"] = "bytes"
    """What stages have about the same of: bytes of parameters, so that the largest fits its
    device, or layers, so that none waits for another. They differ for small models, whose
    embedding is large and takes no time; `--plan` shows what waits."""

    placement: Placement = "pack"
    """``pack``: the stages of a copy on one node; ``span``: on as few nodes as hold them, for
    models larger than a node; ``spread``: each on a node of its own, as far as there are nodes
    with room."""

    transport: Transport = "auto"
    """How hidden states travel: ``nccl`` from GPU to GPU (needs CuPy), ``object_store`` through
    shared memory, ``auto`` the first where all stages can and else the second."""

    batches_in_flight: int = 4
    """Batches of one unit between two stages before the sender waits."""


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """Run a corpus through a model and store the activations at chosen sites."""

    store: str
    """Where the store is, or will be: a path that all workers see, or s3://bucket/prefix."""

    model: ModelConfig
    """The language model."""

    sites: tuple[Site, ...]
    """Places in the model, such as resid_post.6; layers above the last one are not run. A
    finished store is extended by naming more of them."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The text."""

    storage: StorageConfig = field(default_factory=StorageConfig)
    """How rows are stored."""

    replicas: int = 1
    """Copies of the model that work side by side, at most: those that a node takes along are
    started again where there is room, also on nodes that join later. One that cannot work on
    its node is given up, and the node avoided, while others work."""

    min_replicas: int | None = None
    """Copies the cluster must have room for at the start; null: all of `replicas`."""

    stages: int = 1
    """Pieces a copy is cut into by layers, each in a process (and on a GPU) of its own."""

    pipeline: StagesConfig = field(default_factory=StagesConfig)
    """How it is cut, placed and connected."""

    threads: int | None = None
    """CPU threads of each process; null: the cores of this machine shared among them, or on a
    running cluster the most with which all find room. On CPUs part of what decides the last
    bits, so a resumed harvest needs the same."""

    batch_tokens: int | None = None
    """Tokens that go through the model at once, padding included. Null: 2,048 on CPUs, and on
    GPUs as many as their memory has room for beside the weights, a power of two up to 65,536.
    Part of what decides the last bits: a store that has units goes on with its number."""

    unit_timeout_s: float | None = UNIT_TIMEOUT_S
    """A replica that finishes no unit for so long is taken for hung and replaced. Half an hour,
    for units that are meant to take half a minute; null waits for ever."""

    max_attempts: int = 3
    """How often a unit may lose its replica before it is given up. The harvest goes on without
    it and ends incomplete; the same command tries it again."""

    allow_other_numerics: bool = False
    """Go on with a store that was begun with another torch, device, dtype or batch budget. Its
    units then differ in the last bits; which was computed how is recorded."""

    check: bool = True
    """Measure the model's own loss on a few contexts before a store's first unit, as they are laid
    out and otherwise, and warn where it should be better. It loads the layers above the last site
    for a moment, where there is memory for them and nothing has to be fetched."""

    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What each stage reserves on the cluster."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster; by default one is started here for the time of the harvest."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the harvest's own numbers go."""

    def __post_init__(self) -> None:
        if not self.sites:
            raise InvalidHarvest(
                "A harvest needs at least one site\nhint: such as --sites resid_post.6"
            )
        check_points(self.sites)
        sizes = {
            "replicas": self.replicas,
            "stages": self.stages,
            "min_replicas": self.min_replicas,
            "max_attempts": self.max_attempts,
            "pipeline.batches_in_flight": self.pipeline.batches_in_flight,
            "threads": self.threads,
            "batch_tokens": self.batch_tokens,
            "unit_timeout_s": self.unit_timeout_s,
            "storage.unit_rows": self.storage.unit_rows,
        }
        for name, size in sizes.items():
            if size is not None and size <= 0:
                raise InvalidHarvest(
                    f"{name} must be more than 0, and is {size}\n"
                    f"hint: leave {name} out for the default"
                )
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise InvalidHarvest(
                f"min_replicas is {self.min_replicas} and replicas only {self.replicas}\n"
                "hint: replicas is the most there will be, min_replicas the fewest to begin with"
            )
        if self.pipeline.boundaries and self.stages not in (1, self.num_stages):
            raise InvalidHarvest(
                f"stages is {self.stages}, and boundaries {self.pipeline.boundaries} make "
                f"{self.num_stages}\nhint: leave stages out"
            )

    @property
    def batch_budget(self) -> int:
        """``batch_tokens`` as a number, which `batch_budget.with_batch_tokens` has put there."""
        assert self.batch_tokens is not None
        return self.batch_tokens

    @property
    def num_stages(self) -> int:
        """Stages of a replica."""
        return len(self.pipeline.boundaries) + 1 if self.pipeline.boundaries else self.stages
