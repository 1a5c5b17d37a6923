"""How many tokens go through the model at once where nobody says: fixed before the first unit.

Bits depend on it, so it is worked out and never timed: from the model, the kind of device and the
device's total memory, which are the same on every day. A store that has units keeps its number.
"""

import logging
from dataclasses import replace

from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import plan_stages
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.models import ResolvedModel, stage_bytes
from actlake.storage.ledger_state import LedgerState
from actlake.storage.summary import human_bytes

logger = logging.getLogger(__name__)

ON_CPU = 2048
"""Keeps a CPU busy; more of them only take memory."""
LEAST, MOST = 2048, 65_536
UNKNOWN_MEMORY = 16 * 2**30
"""Taken for a device whose node did not answer, or is not there yet."""
_OF_FREE = 0.25
"""Of what is left beside the weights: the rest is for rows in flight, logits and fragments."""


def with_batch_tokens(
    config: HarvestConfig, model: ResolvedModel, workers: WorkerPlan, state: LedgerState
) -> HarvestConfig:
    """The config with a number for ``batch_tokens``: the user's, the store's, or what fits.

    Parameters
    ----------
    state
        Of the store at the path, if there is one.
    """
    if config.batch_tokens is not None:
        return config
    known = [numerics for numerics in state.numerics if "batch_tokens" in numerics]
    if known:
        return replace(config, batch_tokens=int(known[-1]["batch_tokens"]))
    if workers.device == "cpu":
        return replace(config, batch_tokens=ON_CPU)
    stages = plan_stages(model, config)
    tokens = tokens_that_fit(
        total_bytes=workers.device_bytes or UNKNOWN_MEMORY,
        weight_bytes=max(stage_bytes(model, layers) for layers in stages),
        token_bytes=_token_bytes(model, config.corpus.context_length, stages[-1].stop),
    )
    logger.info(
        "batch_tokens is %d: %s of memory on a device",
        tokens,
        human_bytes(workers.device_bytes) if workers.device_bytes else "an unknown amount",
    )
    return replace(config, batch_tokens=tokens)


def tokens_that_fit(*, total_bytes: int, weight_bytes: int, token_bytes: int) -> int:
    """A power of two, so that two cards of one kind, whose memory differs a little, agree.

    Parameters
    ----------
    total_bytes
        Memory of the device.
    weight_bytes
        Parameters on it.
    token_bytes
        What a block holds of one token while it computes.
    """
    room = max(0.0, 0.9 * total_bytes - weight_bytes) * _OF_FREE
    fitting = int(room // token_bytes)
    return min(MOST, max(LEAST, 1 << max(0, fitting.bit_length() - 1)))


def _token_bytes(model: ResolvedModel, context_length: int, num_layers: int) -> int:
    """Bytes of one token inside the largest block, from above.

    A matrix of a block has as many outputs as parameters over inputs, and few blocks have inputs
    narrower than the stream; twice, for what is made of the outputs. Eager attention holds the
    scores of all heads in float32 beside the model's dtype.
    """
    width = max(model.anatomy.block_params[:num_layers]) / model.dim
    held = 2 * width * model.dtype.value.itemsize
    if model.attention.value == "eager":
        named = getattr(model.hf_config, "num_attention_heads", None)
        heads = named if isinstance(named, int) else max(1, model.dim // 64)
        held += heads * context_length * (4 + model.dtype.value.itemsize)
    return int(held)
