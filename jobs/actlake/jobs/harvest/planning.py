"""What a harvest will do and need, before it does it. Pure arithmetic on what is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from actlake.jobs.harvest.buffers import buffer_dtype
from actlake.jobs.harvest.config import HarvestConfig
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.models import (
    ResolvedModel,
    check_split,
    layer_bytes,
    num_layers_needed,
    pipeline_idle,
    split_layers,
    stage_bytes,
)
from actlake.storage import Site, SiteSchema, StoreSchema
from actlake.storage.summary import human_bytes

UNIT_SECONDS = 30.0
UNITS_IN_FLIGHT = 2
# Guesses of the speed a forward pass reaches, only to choose the size of a unit: the same
# machine or not, the same store must come out, so nothing is measured.
_CPU_THREAD_FLOPS = 30e9
_GPU_FLOPS = 50e12


@dataclass(frozen=True, slots=True)
class HarvestPlan:
    """The whole harvest in numbers."""

    sites: tuple[Site, ...]
    """As stored."""
    stages: tuple[range, ...]
    """Layers of each stage; those above the last site are not run."""
    stage_param_bytes: tuple[int, ...]
    stage_buffer_bytes: tuple[int, ...]
    """Rows of the units in flight, in each stage's memory."""
    stage_hidden_bytes: tuple[int, ...]
    """Hidden states under way to each stage, at most; in shared memory or on its device."""
    wire_bytes_per_token: int
    """From stage to stage, over all hops of a replica."""
    idle: float
    """Share of the stages' time in which they wait for each other, filling and emptying
    included; 0 for one stage."""
    idle_by_compute: float
    """The same if stages were balanced by compute."""
    replicas: int
    workers: WorkerPlan
    """Device, threads and reservation of each stage."""
    batch_tokens: int
    """Tokens that go through the model at once."""
    beginning: str
    """With what contexts begin, and why."""
    special_tokens: str
    """What special tokens that are written in the text are, and how many."""
    tried: Mapping[str, str]
    """What a few contexts have shown, by subject."""
    rows: int
    rows_per_split: Mapping[str, int]
    units: int
    pending_units: int
    """Units that are not committed for all sites yet."""
    unit_rows: int
    num_bytes: int
    """Of activations, when all sites are complete."""
    float16_bytes: int
    """Of the same values in float16."""
    appended_to: str = ""
    """What these rows come after, where they are added to a finished store."""

    def __str__(self) -> str:
        """A few lines for a person."""
        lines = [
            *([f"appended  {self.appended_to}"] if self.appended_to else []),
            f"sites     {', '.join(map(str, self.sites))}",
            f"text      {self.beginning}",
            f"          {self.special_tokens}",
            *(f"{subject:<10}{words}" for subject, words in self.tried.items()),
            f"rows      {self.rows:,} tokens, {human_bytes(self.num_bytes)} of activations"
            + self._saved(),
            f"splits    {self._splits()}",
            f"units     {self.units:,} of {self.unit_rows:,} rows, {len(self.sites)} shard files "
            f"each; {self.pending_units:,} to do",
            f"actors    {self.replicas} replica(s) x {len(self.stages)} stage(s) on "
            f"{self.workers.device}, {self.workers.threads} thread(s) and "
            f"{self.workers.resources} reserved each; batches of {self.batch_tokens:,} tokens",
        ]
        for layers, weights, buffers, hidden in zip(
            self.stages,
            self.stage_param_bytes,
            self.stage_buffer_bytes,
            self.stage_hidden_bytes,
            strict=True,
        ):
            lines.append(
                f"  layers {layers.start}–{layers.stop - 1}: {human_bytes(weights)} of weights, "
                f"up to {human_bytes(buffers)} of rows"
                + (f" and {human_bytes(hidden)} of hidden states" if hidden else "")
                + " in flight"
            )
        if len(self.stages) > 1:
            lines.append(
                f"wire      {self.wire_bytes_per_token:,} bytes per token from stage to stage"
            )
            lines.append(
                f"bubble    stages wait {self.idle:.0%} of the time"
                + (
                    f"; {self.idle_by_compute:.0%} with --pipeline.balance compute"
                    if self.idle > self.idle_by_compute + 0.05
                    else ""
                )
            )
        return "\n".join(lines)

    def _splits(self) -> str:
        total = max(1, sum(self.rows_per_split.values()))
        return ", ".join(
            f"{split} {rows:,} ({rows / total:.1%})" for split, rows in self.rows_per_split.items()
        )

    def _saved(self) -> str:
        saved = self.float16_bytes - self.num_bytes
        if saved <= 0:
            return ""
        return (
            f", {human_bytes(saved)} less than in float16 ({saved / self.float16_bytes:.0%}); "
            "jobs read them as float32, so in memory they are not smaller"
        )


def plan_stages(model: ResolvedModel, config: HarvestConfig) -> list[range]:
    """Layers of each stage: as the config cuts them, or balanced by bytes or compute.

    Raises
    ------
    InvalidSplit
        There are fewer layers to run than stages, or the boundaries do not cover them.
    """
    needed = num_layers_needed(config.sites)
    if config.pipeline.boundaries:
        bounds = [0, *config.pipeline.boundaries, needed]
        chosen = [range(start, stop) for start, stop in pairwise(bounds)]
        check_split(chosen, needed)
        return chosen
    if config.pipeline.balance == "compute":
        return split_layers(needed, config.stages, weights=model.anatomy.block_params[:needed])
    return split_layers(needed, config.stages, weights=layer_bytes(model, needed))


def units_in_flight(num_stages: int) -> int:
    """Units a replica holds at once: a stage writes one while it computes the next."""
    return UNITS_IN_FLIGHT + num_stages - 1


def plan_harvest(
    config: HarvestConfig,
    model: ResolvedModel,
    schema: StoreSchema,
    *,
    pending_units: int,
    workers: WorkerPlan,
    beginning: str,
    special_tokens: str,
    rows_per_split: Mapping[str, int],
    tried: Mapping[str, str],
    appended_to: str = "",
) -> HarvestPlan:
    """Put the numbers together."""
    stages = plan_stages(model, config)
    sites = site_schemas(config, model)
    unit_rows = min(schema.geometry.unit_rows, schema.num_rows)
    in_flight = units_in_flight(len(stages))
    token_bytes = model.dim * model.dtype.value.itemsize
    needed = stages[-1].stop
    batches = max(
        1, schema.num_rows // config.batch_budget // max(1, config.replicas)
    )  # that flow through one replica
    by_compute = split_layers(needed, len(stages), weights=model.anatomy.block_params[:needed])
    return HarvestPlan(
        sites=tuple(sites),
        stages=tuple(stages),
        stage_param_bytes=tuple(stage_bytes(model, layers) for layers in stages),
        stage_buffer_bytes=tuple(
            sum(
                rows.dim * buffer_dtype(rows, model.dtype.value).itemsize
                for site, rows in sites.items()
                if site.layer in layers
            )
            * unit_rows
            * in_flight
            for layers in stages
        ),
        stage_hidden_bytes=tuple(
            config.batch_budget * token_bytes * config.pipeline.batches_in_flight * in_flight
            if layers.start
            else 0
            for layers in stages
        ),
        wire_bytes_per_token=(len(stages) - 1) * token_bytes,
        idle=_idle(model, stages, batches),
        idle_by_compute=_idle(model, by_compute, batches),
        replicas=config.replicas,
        workers=workers,
        batch_tokens=config.batch_budget,
        beginning=beginning,
        special_tokens=special_tokens,
        tried=tried,
        rows=schema.num_rows,
        rows_per_split=rows_per_split,
        units=schema.num_units,
        pending_units=pending_units,
        unit_rows=schema.geometry.unit_rows,
        num_bytes=schema.num_rows * sum(rows.row_bytes for rows in sites.values()),
        float16_bytes=schema.num_rows * sum(2 * rows.dim for rows in sites.values()),
        appended_to=appended_to,
    )


def _idle(model: ResolvedModel, stages: list[range], batches: int) -> float:
    """Expected idle share of a chain, if a block's time goes with its parameters."""
    work = [sum(model.anatomy.block_params[layers.start : layers.stop]) for layers in stages]
    return pipeline_idle(work, batches)


def stored_sites(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """The tensors to store, each once, sorted."""
    return tuple(sorted({site.stored for site in sites}))


def site_schemas(config: HarvestConfig, model: ResolvedModel) -> dict[Site, SiteSchema]:
    """How the rows of each tensor are stored, in their order."""
    how = config.storage
    rows = SiteSchema(dim=model.dim, dtype=how.dtype, compression=how.compression)
    return dict.fromkeys(stored_sites(config.sites), rows)


def unit_rows_at_most(config: HarvestConfig, model: ResolvedModel, *, threads: int) -> int:
    """So many rows that a unit takes about half a minute, if the guessed speeds are right."""
    if config.storage.unit_rows is not None:
        return config.storage.unit_rows
    layers = num_layers_needed(config.sites)
    flops_per_token = 24 * model.dim**2 * layers  # 2 x the 12 d² weights of a usual block
    on_cpu = model.device.value == "cpu"
    speed = _CPU_THREAD_FLOPS * threads if on_cpu else _GPU_FLOPS
    return max(1, int(UNIT_SECONDS * speed / flops_per_token))
