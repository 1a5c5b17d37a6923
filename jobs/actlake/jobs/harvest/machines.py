"""What each stage of a harvest gets: a device, threads, a reservation; and the model for it.

The driver may run on a machine that is nothing like the workers', so where a cluster is joined
its nodes are asked (`plan_workers`). An embedded cluster is this machine.
"""

from dataclasses import replace

from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import plan_stages
from actlake.platform.cluster import InvalidClusterConfig, Resources, session
from actlake.platform.cluster.same_code import SILENT, ask_nodes
from actlake.platform.cluster.worker_plan import (
    WorkerPlan,
    joins_cluster,
    plan_workers,
    threads_here,
)
from actlake.platform.models import (
    ResolvedModel,
    check_stored_embedding,
    resolve_model,
    try_stage,
)
from actlake.platform.models.errors import ModelError, ModelNotSupported
from actlake.platform.models.quantization import check_method


def resolve(config: HarvestConfig) -> tuple[ResolvedModel, WorkerPlan]:
    """The model and what its stages get, and every refusal that needs no text and no weights.

    Connects to a cluster that is to be joined, for the time of the question.
    """
    model, workers = _on_cluster(config) if joins_cluster(config.cluster) else _here(config)
    model.check_sites(config.sites)
    model.check_context(config.corpus.context_length)
    check_stored_embedding(model)
    for layers in plan_stages(model, config):
        try_stage(model, layers, config.sites)
    return model, workers


def _on_cluster(config: HarvestConfig) -> tuple[ResolvedModel, WorkerPlan]:
    with session(config.cluster) as cluster:
        workers = plan_workers(
            cluster,
            config.resources,
            workers=config.replicas * config.num_stages,
            threads=config.threads,
            device=config.model.device,
            stages=config.num_stages,
            placement=config.pipeline.placement,
        )
        model = resolve_model(replace(config.model, device=workers.device), here=False)
        _check_nodes(model, workers)
        if workers.device != "cpu" and config.batch_tokens is None:
            answers = ask_nodes(gpu_bytes, on=workers.resources)
            known = [one.value for one in answers if isinstance(one.value, int)]
            workers = replace(workers, device_bytes=min(known, default=None))
    return model, workers


def _check_nodes(model: ResolvedModel, workers: WorkerPlan) -> None:
    """Refuse quantised weights that a node cannot load; all are asked that a stage fits on."""
    if model.quantization is None:
        return
    answers = ask_nodes(why_not_here, model, on=workers.resources)
    refusals = {one.node: str(one.value) for one in answers if one.value not in ("", SILENT)}
    if not refusals:
        return
    told = {node: words.partition("\nhint: ") for node, words in refusals.items()}
    named = "\n".join(f"  {node}: {why}" for node, (why, _, _) in list(told.items())[:5])
    hints = [hint for _, _, hint in told.values() if hint]
    raise ModelNotSupported(
        f"{len(refusals)} of the {len(answers)} node(s) that a stage fits on cannot load "
        f"{model.name}:\n{named}\n"
        f"hint: {hints[0] if hints else 'install on each node what the others have'}"
    )


def gpu_bytes(device: str = "cuda") -> int:
    """On a node: the memory of the GPU that this process was given."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def why_not_here(model: ResolvedModel) -> str:
    """On a node: why it cannot load the model's quantised weights; nothing where it can."""
    try:
        check_method(model.whole_config, of=model.name, device=model.device.value, here=True)
    except ModelError as error:
        return str(error)
    return ""


def _here(config: HarvestConfig) -> tuple[ResolvedModel, WorkerPlan]:
    asked, device = config.resources, config.model.device
    if device == "auto" and asked.gpus == 0:
        device = "cpu"
    model = resolve_model(replace(config.model, device=device))
    on_gpu = model.device.value != "cpu"
    if on_gpu and asked.gpus == 0:
        raise InvalidClusterConfig(
            f"model.device is {device}, and resources.gpus is 0\n"
            "hint: leave resources.gpus out for one GPU a stage, or say model.device: cpu"
        )
    threads = config.threads
    if threads is None and asked.cpus is not None:
        threads = max(1, int(asked.cpus))
    threads = threads_here(threads, config.replicas * config.num_stages)
    derived = Resources(cpus=threads, gpus=1 if on_gpu else 0)
    memory = gpu_bytes(model.device.value) if on_gpu else None
    return model, WorkerPlan(model.device.value, threads, asked.filled(derived), memory)
