"""Checks of the model: where it is, and that a device computes what a CPU computes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from actlake.jobs.doctor.check import Finding, compared
from actlake.jobs.doctor.device.bench import REPORT, Bench
from actlake.jobs.harvest.trial_worker import row_error
from actlake.platform.model_map import probe_ids
from actlake.platform.model_map.stages import run_stages
from actlake.platform.models import ResolvedModel, load_stage
from actlake.storage import Site

Array = np.ndarray[Any, Any]

FAMILIES = ("llama", "gemma3_text", "qwen3_next", "mixtral", "gpt_oss")
"""Dense, windowed, with linear attention, and two mixtures of experts."""

MOST_ERROR = 1e-4
"""‖row - row on the CPU‖ / ‖row on the CPU‖, both in float32."""


def check_load(bench: Bench) -> Iterator[Finding]:
    """A model is on the device, in the dtype and with the attention that were resolved."""
    model = bench.resolve(bench.tiny_llama, dtype="auto")
    stage = load_stage(model, range(model.num_layers), _stream(model))
    parameters = list(stage.module.parameters())
    config = stage.module.config
    seen = ", ".join(
        [
            *sorted({parameter.device.type for parameter in parameters}),
            *sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}),
            str(getattr(config, "_attn_implementation", "unknown attention")),
        ]
    )
    expected = f"{bench.device.type}, {model.dtype_name}, {model.attention.value}"
    yield compared(
        "load", f"a random llama on {bench.device}", expected=expected, seen=seen,
        right=seen == expected, hint=REPORT,
    )  # fmt: skip


def check_families(bench: Bench) -> Iterator[Finding]:
    """Each family gives what a CPU gives in float32, and in bfloat16 the same in two stages."""
    for family in FAMILIES:
        folder = bench.tiny(family)
        here, there = (_float32_rows(bench, folder, device) for device in (None, "cpu"))
        error = max(row_error(_rows(here[site]), _rows(there[site])) for site in there)
        yield compared(
            "families", f"{family} in float32 against a CPU", expected=f"at most {MOST_ERROR:g}",
            seen=f"{error:.1e}", right=error <= MOST_ERROR,
            hint="is TF32 switched on? `torch.backends.cuda.matmul.allow_tf32` must be False; "
            "else " + REPORT,
        )  # fmt: skip
        difference = _by_stages(bench, folder)
        yield compared(
            "families", f"{family} in bfloat16, one stage against two", expected="0.0",
            seen=f"{difference}", right=difference == 0.0, hint=REPORT,
        )  # fmt: skip


def _stream(model: ResolvedModel) -> list[Site]:
    return [Site(layer) for layer in range(model.num_layers)]


def _rows(acts_BLD: Tensor) -> Array:
    rows_ND: Array = acts_BLD.flatten(0, -2).float().cpu().numpy()
    return rows_ND


def _float32_rows(bench: Bench, folder: Path, device: str | None) -> dict[Site, Tensor]:
    model = bench.resolve(folder, device=device)
    stage = load_stage(model, range(model.num_layers), _stream(model))
    return run_stages([stage], probe_ids(model))


def _by_stages(bench: Bench, folder: Path) -> float:
    """The largest difference of any value."""
    model = bench.resolve(folder, dtype="bfloat16")
    sites, half = _stream(model), model.num_layers // 2
    ids_BL = probe_ids(model)
    whole = run_stages([load_stage(model, range(model.num_layers), sites)], ids_BL)
    layers = (range(half), range(half, model.num_layers))
    cut = run_stages([load_stage(model, part, sites) for part in layers], ids_BL)
    return max(float((whole[site].float() - cut[site].float()).abs().max()) for site in sites)
