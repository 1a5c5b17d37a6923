"""How close a harvest comes to the bare forward pass, and to the usual script.

Three things take the same unique tokens of SmolLM2, in turn, in short rounds (the machine's
speed drifts), each after a warm-up:

    bare     the model truncated above the last site, forward passes only: the physical limit
    harvest  our worker: hooks, rounding to float16, checksums, statistics, fsynced shards
    script   the usual script: the whole model with output_hidden_states=True, then the same
             three layers into Zarr arrays with zarr-python's defaults, padded batches

Tokens are counted once each and without padding, so what is padded or computed twice counts
against us. The harvest here is one replica of one stage in this process, on two threads, two
units in flight as in the actor; Ray adds a millisecond a unit.

    python benchmarks/harvest.py            about 6 minutes on 2 cores
"""

import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import zarr
from measuring import PeakMemory, tell

from actlake.jobs.demo import demo_config
from actlake.jobs.harvest.batches import unit_batches
from actlake.jobs.harvest.config import StorageConfig
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.planning import site_schemas
from actlake.jobs.harvest.preparation import prepare_store
from actlake.jobs.harvest.worker import HarvestWorker
from actlake.platform.models import load_stage, num_layers_needed
from actlake.storage import Lease, Site, add_sites, open_store
from actlake.storage.location import LocalFolder

SITES = (Site(4), Site(9), Site(14))
THREADS = 2
TOKENS = 80_000
BATCH_TOKENS = 2048
UNIT_TOKENS = 4096
ROUNDS = 6
UNITS_A_ROUND = 3


class Bare:
    """Forward passes through the layers that are needed, and nothing else."""

    def __init__(self, model, store) -> None:
        self.store = store
        needed = num_layers_needed(SITES)
        self.stage = load_stage(model, range(needed), [Site(needed - 1)], threads=THREADS)

    def run(self, units: list[int]) -> int:
        tokens = 0
        for unit in units:
            for batch in batches_of(self.store, unit):
                self.stage.run(torch.from_numpy(batch.ids), lambda site, acts: None)
                tokens += batch.num_tokens
        return tokens


class Harvest:
    """Our worker, writing and committing while the next unit is computed."""

    def __init__(self, model, store, lease) -> None:
        self.lease = lease
        self.store = store
        self.worker = HarvestWorker(
            store_url=store.url,
            token=lease.token,
            model=model,
            layers=range(num_layers_needed(SITES)),
            sites=SITES,
            batch_tokens=BATCH_TOKENS,
            batching="padded",
            threads=THREADS,
        )

    def run(self, units: list[int]) -> int:
        with ThreadPoolExecutor(2) as in_flight:
            receipts = list(in_flight.map(lambda unit: self.worker.run(unit, None), units))
        for receipt in receipts:
            self.lease.ledger.commit(receipt.records)
        return sum(len(self.store.schema.unit_extent(unit)) for unit in units)


class UsualScript:
    """What people write: all layers, all hidden states, zarr defaults."""

    def __init__(self, folder: Path, model, store) -> None:
        from transformers import AutoModelForCausalLM

        self.store = store
        self.model = AutoModelForCausalLM.from_pretrained(model.location, dtype=torch.float32)
        shape = (store.schema.rows, model.dim)
        self.arrays = {
            site: zarr.create_array(folder / str(site), shape=shape, dtype="float16")
            for site in SITES
        }

    def run(self, units: list[int]) -> int:
        tokens = 0
        for unit in units:
            extent = self.store.schema.unit_extent(unit)
            kept = {site: [] for site in SITES}
            rows = []
            for batch in batches_of(self.store, unit):
                with torch.no_grad():
                    out = self.model(torch.from_numpy(batch.ids), output_hidden_states=True)
                rows.append(batch.rows)
                for site in SITES:
                    flat = out.hidden_states[site.layer + 1].flatten(0, 1)
                    kept[site].append(flat[batch.taken].to(torch.float16).numpy())
                tokens += batch.num_tokens
            order = np.argsort(np.concatenate(rows))
            for site in SITES:
                self.arrays[site][extent.slice()] = np.concatenate(kept[site])[order]
        return tokens


def batches_of(store, unit):
    extent = store.schema.unit_extent(unit)
    contexts = store.contexts_of(extent)
    starts = store.contexts["start"].read(contexts.start, contexts.stop + 1)
    ids = store.tokens["id"].read(int(starts[0]), extent.stop)
    return list(unit_batches(starts, ids, extent, batch_tokens=BATCH_TOKENS, batching="padded"))


def timed(contender, units: list[int]) -> float:
    """Unique real tokens a second."""
    began = time.perf_counter()
    tokens = contender.run(units)
    return tokens / (time.perf_counter() - began)


def main() -> None:

    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as scratch:
        folder = Path(scratch)
        config = demo_config(str(folder / "store"), tokens=TOKENS)
        storage = StorageConfig(unit_rows=UNIT_TOKENS)
        config = replace(config, sites=SITES, storage=storage, threads=THREADS)
        model, workers = resolve(config)
        with Lease.acquire(LocalFolder(folder / "store")) as lease:
            store = prepare_store(
                lease, config, model, workers, progress=lambda **counts: None
            ).store
            add_sites(lease, store, site_schemas(config, model), {})
            store = open_store(store.location)
            bare = Bare(model, store)
            with PeakMemory() as memory:
                ours = Harvest(model, store, lease)
                ours.run([0])
            rates = compare(store, bare, ours, UsualScript(folder, model, store), memory)
        report(rates, memory.peak)


def compare(store, bare, ours, script, memory) -> dict[str, list[float]]:
    """Rounds of the three in turn, over units that nobody has seen."""
    rates: dict[str, list[float]] = {"bare": [], "harvest": [], "script": []}
    bare.run([0])
    script.run([0])
    units = iter(range(1, store.schema.num_units))
    for number in range(ROUNDS):
        mine = [next(units) for _ in range(UNITS_A_ROUND)]
        rates["bare"].append(timed(bare, mine))
        with PeakMemory() as peak:
            rates["harvest"].append(timed(ours, mine))
        memory.peak = max(memory.peak, peak.peak)
        if number % 2 == 0:  # three times slower: a declared subset, every second round
            rates["script"].append(timed(script, mine[:1]))
        print(
            f"round {number + 1} of {ROUNDS}: bare {rates['bare'][-1]:,.0f}, "
            f"harvest {rates['harvest'][-1]:,.0f}, usual script {rates['script'][-1]:,.0f}",
            file=sys.stderr,
        )
    return rates


def report(rates: dict[str, list[float]], peak_mb: float) -> None:
    pairs = [ours / bare for ours, bare in zip(rates["harvest"], rates["bare"], strict=True)]
    harvest_ratio = statistics.median(pairs)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    script_ratio = statistics.median(
        ours / script for ours, script in zip(rates["harvest"][::2], rates["script"], strict=True)
    )
    print(
        f"\nSmolLM2-135M, layers 0-14 of 30, 3 sites in float16, {THREADS} threads, context 256."
        f"\nBare forward pass    {middle['bare']:8,.0f} tokens/s"
        f"\nHarvest              {middle['harvest']:8,.0f} tokens/s: {harvest_ratio:.2f} of it, "
        f"median of {len(pairs)} pairs {min(pairs):.2f}-{max(pairs):.2f} (bar: 0.90)"
        f"\nUsual script         {middle['script']:8,.0f} tokens/s: the harvest is "
        f"{script_ratio:.2f} times as fast (bar: 1.5)"
        f"\nPeak anonymous memory while harvesting, model and imports included: {peak_mb:,.0f} MB"
    )
    tell(
        {
            "harvest_ratio": round(harvest_ratio, 3),
            "vs_usual_script": round(script_ratio, 3),
            "tokens_per_s": round(middle["harvest"], 1),
            "bare_tokens_per_s": round(middle["bare"], 1),
            "peak_anon_mb": round(peak_mb, 1),
        }
    )


if __name__ == "__main__":
    main()
