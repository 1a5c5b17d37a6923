"""Checks of units: computed twice, copied beside computing, refused, and out of memory."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actlake.jobs.doctor.check import Finding, compared
from actlake.jobs.doctor.device.bench import REPORT, Bench, Tokens, harvesting, memory_taken
from actlake.jobs.harvest.batches import Batch
from actlake.jobs.harvest.buffers import UnitBuffers
from actlake.platform.cluster import DeviceOutOfMemory
from actlake.platform.models import ResolvedModel
from actlake.storage import Site, SiteSchema
from actlake.storage.errors import NonFiniteActivations
from actlake.storage.ledger_records import ShardRecord

Array = np.ndarray[Any, Any]

SITES = (Site(0), Site(3))
UNITS = 20
FEW = Tokens(contexts=12, length=48, contexts_per_unit=8)


def check_same_unit_twice(bench: Bench) -> Iterator[Finding]:
    """A unit computed by two workers, one after the other, has the same checksums."""
    for dtype in ("float32", "bfloat16"):
        model = bench.resolve(bench.tiny_llama, dtype=dtype)
        first, second = (_records(bench, f"twice-{dtype}-{turn}", model) for turn in (1, 2))
        same = sum(a == b for a, b in zip(first, second, strict=True))
        yield compared(
            "one unit twice", f"shards of one unit that are equal in {dtype}",
            expected=f"{len(first)} of {len(first)}", seen=f"{same} of {len(first)}",
            right=same == len(first),
            hint="something on this device is not deterministic: results cannot be repaired or "
            "gone on with; " + REPORT,
        )  # fmt: skip


def _records(bench: Bench, name: str, model: ResolvedModel) -> list[ShardRecord]:
    with harvesting(bench, name, model, FEW, sites=SITES, batch_tokens=192) as made:
        records: list[ShardRecord] = made.run(0).records
        return records


def check_buffers(bench: Bench) -> Iterator[Finding]:
    """Units copied to the host by two threads beside computing, against blocking copies."""
    equal = _equal_units(bench)
    yield compared(
        "buffers", "units copied beside computing that equal a blocking copy",
        expected=f"{UNITS} of {UNITS}", seen=f"{equal} of {UNITS}", right=equal == UNITS,
        hint=REPORT,
    )  # fmt: skip


def check_buffers_in_little_memory(bench: Bench) -> Iterator[Finding]:
    """The same with nine tenths of the memory taken, where memory is used again at once."""
    leave = 0
    if bench.on_gpu:
        bench.clear()
        leave = torch.cuda.mem_get_info(bench.device)[0] // 10
    with memory_taken(bench, leave_bytes=leave):
        equal = _equal_units(bench)
    how = "with 90 % of the memory taken" if bench.on_gpu else "(simulated: a CPU's is not taken)"
    yield compared(
        "buffers in little memory", f"units that equal a blocking copy {how}",
        expected=f"{UNITS} of {UNITS}", seen=f"{equal} of {UNITS}", right=equal == UNITS,
        hint=REPORT,
    )  # fmt: skip


def _equal_units(bench: Bench) -> int:
    """How many of some units are to the bit what was put into them."""
    rows, dim, parts = (8192, 1024, 4) if bench.on_gpu else (256, 32, 4)
    schemas = {site: SiteSchema(dim=dim, dtype="bfloat16") for site in SITES}
    places = np.arange(rows // parts, dtype=np.int64)

    def compute(unit: int) -> UnitBuffers:
        buffers = UnitBuffers(schemas, num_rows=rows, computed=torch.bfloat16, device=bench.device)
        for part in range(parts):
            ids = np.zeros((1, len(places)), np.int64)
            buffers.begin(Batch(ids, places, places + part * len(places), len(places)))
            for site in SITES:
                buffers.put(site, _drawn(bench, unit, part, site, (1, len(places), dim)))
        buffers.complete()
        return buffers

    def is_equal(unit: int, found: dict[Site, Array]) -> bool:
        return all(
            np.array_equal(
                found[site].view(np.int16).reshape(parts, -1)[part],
                _drawn(bench, unit, part, site, (1, len(places), dim))
                .to(torch.bfloat16).view(torch.int16).cpu().numpy().reshape(-1),
            )
            for part in range(parts) for site in SITES
        )  # fmt: skip

    with ThreadPoolExecutor(2) as writers:
        copies = []
        for unit in range(UNITS):
            copies.append(writers.submit(compute(unit).to_host))
            if unit >= 2:
                copies[unit - 2].result()  # as many units in flight as a harvest has
        return sum(is_equal(unit, copy.result()) for unit, copy in enumerate(copies))


def _drawn(bench: Bench, unit: int, part: int, site: Site, shape: tuple[int, int, int]) -> Tensor:
    seed = (unit * 100 + part) * 100 + site.layer
    generator = torch.Generator(bench.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=bench.device)


def check_overflow(bench: Bench) -> Iterator[Finding]:
    """Values of 70,000 are refused in float16, and the process works on."""
    model = bench.resolve(_with_large_values(bench))
    refused = False
    with harvesting(
        bench, "overflow", model, FEW, sites=[Site(0)], batch_tokens=192, dtype="float16"
    ) as made:
        try:
            made.run(0)
        except NonFiniteActivations:
            refused = True
    sound = bench.resolve(bench.tiny_llama)
    before, after = (_records(bench, f"overflow-{turn}", sound) for turn in ("a", "b"))
    seen = f"{'refused' if refused else 'written'}, then {len(after)} shards as before"
    yield compared(
        "overflow", "values of 70,000 for a store in float16",
        expected="refused, then 2 shards as before",
        seen=seen if before == after else f"{'refused' if refused else 'written'}, then others",
        right=refused and before == after, hint=REPORT,
    )  # fmt: skip


def _with_large_values(bench: Bench) -> Path:
    folder = bench.scratch / "models" / "large"
    if not folder.exists():
        shutil.copytree(bench.tiny_llama, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.embed_tokens.weight"][:] = 70_000.0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check_out_of_memory(bench: Bench) -> Iterator[Finding]:
    """A batch of a million tokens that does not fit is said, and the worker works after it."""
    many = Tokens(contexts=2400, length=512, contexts_per_unit=2400) if bench.on_gpu else FEW
    model = bench.resolve(bench.tiny_llama)
    with harvesting(bench, "full", model, many, sites=SITES, batch_tokens=10**6) as made:
        said = ""
        with memory_taken(bench, leave_bytes=512 * 2**20), _no_memory(bench):
            try:
                made.run(0)
            except DeviceOutOfMemory as error:
                said = str(error)
        bench.clear()
        after = made.run(0).records
    with harvesting(bench, "not-full", model, many, sites=SITES, batch_tokens=10**6) as other:
        undisturbed = other.run(0).records
    told = "the setting named" if "`batch_tokens: 500000`" in said else said or "nothing said"
    how = "" if bench.on_gpu else " (simulated)"
    yield compared(
        "out of memory", f"batch_tokens 1,000,000 in too little memory{how}, and the unit again",
        expected="the setting named, then equal shards",
        seen=f"{told}, then {'equal' if after == undisturbed else 'other'} shards",
        right=told == "the setting named" and after == undisturbed, hint=REPORT,
    )  # fmt: skip


def _no_memory(bench: Bench) -> AbstractContextManager[Any]:
    """On a CPU, an allocator that has nothing left; a GPU has really none."""
    return nullcontext() if bench.on_gpu else _Full()  # type: ignore[no-untyped-call]


class _Full(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The first step of a forward pass in this thread fails as it does where memory is used up."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.embedding:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 61.04 GiB.")
        return func(*args, **(kwargs or {}))
