"""Replicas and stages on two cores: what cutting a model up costs, and that it changes no bit.

SmolLM2-135M, layers 0-15, harvested with the real job through real Ray actors, in turns:

    1x1   one replica, one stage, two threads
    1x2   one replica of two stages, one thread each
    2x1   two replicas, one thread each

The rate is that between the first commit after all replicas are ready and the last one before
work runs out, so that loading a model and the tail of a short run do not count; ratios are taken
within each round, and their median is reported. One more 1x1 run, on one thread, is what the
stores of 1x2 and 2x1 must equal byte for byte (threads decide the last bits, layouts must not).

Then two things without a model: a chain of two stages that only hands tensors on (`hop_ms`), and
units that do nothing, whose receipts a harvest's driver commits, counts and logs as it does real
ones (`driver_ms_per_unit`, CPU of the driver; three sites, without W&B). At last
`object_store.py` is run for its `s3_read_ratio`, so that all figures come from one script.

    python benchmarks/pipeline.py            about 5 minutes on 2 quiet cores; status 1 on a miss
"""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measuring import tell
from ray import cloudpickle
from rich.console import Console
from scale import FAN_OUT, committing, lay_down, receipt, records_of

from actlake.jobs.demo import demo_config
from actlake.jobs.harvest import HarvestConfig, StagesConfig, StorageConfig, harvest, job
from actlake.jobs.harvest.worker import UnitReceipt
from actlake.platform.cluster import (
    ClusterConfig,
    ReplicaSpec,
    Resources,
    Send,
    Session,
    StageSpec,
    run_units,
    session,
)
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site
from actlake.storage.location import LocalFolder

SITES = (Site(7), Site(15))  # 16 layers: eight for each of two stages
TOKENS = 24_576
UNIT_TOKENS = 1024
ROUNDS = 3
LAYOUTS = {"1x1": (1, 1, 2), "1x2": (1, 2, 1), "2x1": (2, 1, 1)}  # replicas, stages, threads
BARS = {"ratio_2x1": 0.9, "ratio_1x2": 0.85, "s3_read_ratio": 0.8}
BESIDE = ("ledger", "log", "partial")

HOP_SHAPE = (4, 256, 576)
HOPS = 60
NOTHINGS = 600

for module in (sys.modules[__name__], sys.modules["scale"]):  # workers cannot import them
    cloudpickle.register_pickle_by_value(module)


@dataclass
class Stopwatch:
    """Stands before the pool and notes when replicas were ready and units committed."""

    ready: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)

    def run_units(self, *args: Any, on_done: Callable, on_event: Callable, **options: Any) -> Any:
        def done(unit: int, receipts: list, timing: Any) -> None:
            on_done(unit, receipts, timing)
            self.commits.append(time.perf_counter())

        def event(what: Any) -> None:
            on_event(what)
            if what.kind == "replica_up":
                self.ready.append(time.perf_counter())

        return run_units(*args, on_done=done, on_event=event, **options)

    def tokens_per_s(self, replicas: int) -> float:
        """Of the steady part; a unit is UNIT_TOKENS tokens."""
        assert len(self.ready) == replicas, "a replica was lost"
        steady = [at for at in self.commits if at >= max(self.ready)]
        steady = steady[: len(steady) - (replicas - 1)]
        return UNIT_TOKENS * (len(steady) - 1) / (steady[-1] - steady[0])


def layout_config(folder: Path, replicas: int, stages: int, threads: int) -> HarvestConfig:
    return replace(
        demo_config(str(folder), tokens=TOKENS),
        sites=SITES,
        storage=StorageConfig(unit_rows=UNIT_TOKENS),
        batch_tokens=1024,
        replicas=replicas,
        stages=stages,
        threads=threads,
        pipeline=StagesConfig(balance="compute"),
        tracking=TrackingConfig(wandb="disabled"),
    )


def run_layout(folder: Path, replicas: int, stages: int, threads: int) -> float:
    """Harvest into `folder`; tokens a second."""
    watch = Stopwatch()
    job.run_units = watch.run_units
    try:
        result = harvest(
            layout_config(folder, replicas, stages, threads), console=Console(file=io.StringIO())
        )
    finally:
        job.run_units = run_units
    assert result.complete
    return watch.tokens_per_s(replicas)


def contents(folder: Path) -> dict[str, bytes]:
    """Arrays, Parquet and schema of a store; not who computed what when."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in BESIDE
    }


def layouts(folder: Path) -> dict[str, Any]:
    """All layouts in turn, and whether their stores are equal."""
    rates: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    run_layout(folder / "alone", 1, 1, 1)
    expected = contents(folder / "alone")
    unequal = 0
    for number in range(ROUNDS):
        for name, (replicas, stages, threads) in LAYOUTS.items():
            store = folder / f"{name}-{number}"
            rates[name].append(run_layout(store, replicas, stages, threads))
            if threads == 1:
                unequal += contents(store) != expected
        said = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
        print(f"round {number + 1} of {ROUNDS}, tokens/s: {said}", file=sys.stderr)
    ratios = {
        f"ratio_{name}": [ours / one for ours, one in zip(rates[name], rates["1x1"], strict=True)]
        for name in ("2x1", "1x2")
    }
    return {
        **{name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "tokens_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "unequal_stores": unequal,
    }


class Pass:
    """A stage that hands tensors on; the first one says how long it took."""

    def run(self, unit: int, send: Send | None) -> float:
        import torch

        assert send is not None
        hidden = torch.zeros(HOP_SHAPE)
        send((0, hidden))  # the first makes pages
        began = time.perf_counter()
        for number in range(1, HOPS):
            send((number, hidden))
        return (time.perf_counter() - began) / (HOPS - 1)

    def receive(self, unit: int, message: tuple[int, Any], send: Send | None) -> None:
        assert message[1].shape == HOP_SHAPE

    def finish(self, unit: int) -> None:
        return None


def hop_ms(cluster: Session, *, messages_in_flight: int, transport: str) -> float:
    """Milliseconds a hidden state of a batch takes from stage to stage, median of five units."""
    seconds: list[float] = []
    stage = StageSpec(make=Pass, resources=Resources(cpus=0.5))
    run_units(
        cluster,
        range(5),
        ReplicaSpec(
            stages=(stage, stage), messages_in_flight=messages_in_flight, transport=transport
        ),
        replicas=1,
        in_flight=1,
        on_done=lambda unit, receipts, timing: seconds.append(receipts[0]),
    )
    return 1000 * statistics.median(seconds)


class Nothing:
    """A worker whose units are done at once; its receipt is that of a stage with three sites."""

    def run(self, unit: int, send: Send | None) -> UnitReceipt:
        return receipt(records_of(unit))


def driver_ms(cluster: Session, folder: Path) -> float:
    """CPU milliseconds of the driver for a unit: hand it out, hear of it, commit it, log it."""
    location = LocalFolder(folder)
    lay_down(location, FAN_OUT)
    marks: list[float] = []
    with committing(folder, units_before=FAN_OUT) as commits:

        def done(unit: int, receipts: list, timing: Any) -> None:
            commits.commit(unit, receipts, timing)
            marks.append(time.process_time())

        run_units(
            cluster,
            range(FAN_OUT, FAN_OUT + NOTHINGS),
            ReplicaSpec(stages=(StageSpec(make=Nothing, resources=Resources(cpus=0.5)),)),
            replicas=2,
            on_done=done,
        )
    return 1000 * (marks[-1] - marks[99]) / (len(marks) - 100)


def s3_read_ratio() -> float:
    """From a store in a bucket against plain parallel GETs; see `object_store.py`."""
    script = Path(__file__).with_name("object_store.py")
    ran = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False)
    lines = ran.stdout.splitlines()
    if not lines:
        raise SystemExit(f"{script} gave no result (status {ran.returncode})")
    return float(json.loads(lines[-1])["s3_read_ratio"])


def main() -> int:
    cluster_config = ClusterConfig(address="local", num_cpus=4)
    with (
        tempfile.TemporaryDirectory(prefix="actlake-bench-") as scratch,
        session(cluster_config) as cluster,
    ):
        folder = Path(scratch)
        figures: dict[str, Any] = {
            "hop_ms": hop_ms(cluster, messages_in_flight=4, transport="auto"),
            "hop_alone_ms": hop_ms(cluster, messages_in_flight=1, transport="auto"),
            "hop_gloo_ms": hop_ms(cluster, messages_in_flight=4, transport="gloo"),
            "driver_ms_per_unit": driver_ms(cluster, folder / "ledger"),
        }
        figures |= layouts(folder)
    figures["s3_read_ratio"] = s3_read_ratio()
    report(figures)
    missed = [name for name, bar in BARS.items() if figures[name] < bar]
    if figures["unequal_stores"]:
        missed.append("unequal_stores")
    for name in missed:
        print(f"missed: {name} is {figures[name]:.3g}", file=sys.stderr)
    return 1 if missed else 0


def report(f: dict[str, Any]) -> None:
    rates = f["tokens_per_s"]
    spread = {name: f"{min(values):.2f}-{max(values):.2f}" for name, values in f["ratios"].items()}
    megabytes = 4 * HOP_SHAPE[0] * HOP_SHAPE[1] * HOP_SHAPE[2] / 1e6
    print(
        f"\nSmolLM2-135M, layers 0-15 of 30, 2 sites, batches of 1,024 tokens, {ROUNDS} rounds."
        f"\n1x1, two threads             {rates['1x1']:8,.0f} tokens/s"
        f"\n1x2, one thread each         {rates['1x2']:8,.0f} tokens/s: {f['ratio_1x2']:.2f} of "
        f"it ({spread['ratio_1x2']}; bar 0.85)"
        f"\n2x1, one thread each         {rates['2x1']:8,.0f} tokens/s: {f['ratio_2x1']:.2f} of "
        f"it ({spread['ratio_2x1']}; bar 0.90)"
        f"\nStores that differ from a 1x1 run of one thread: {f['unequal_stores']} of {2 * ROUNDS}"
        f"\nA hop of {megabytes:.1f} MB: {f['hop_ms']:.1f} ms in a stream, {f['hop_alone_ms']:.1f}"
        f" ms one at a time; by the direct transport's code on gloo {f['hop_gloo_ms']:.1f} ms"
        f"\nDriver: {f['driver_ms_per_unit']:.2f} ms of CPU a unit, ledger included"
        f"\nReading from a bucket: {f['s3_read_ratio']:.2f} of plain parallel GETs (bar 0.80)"
    )
    kept = (*BARS, "hop_ms", "hop_alone_ms", "hop_gloo_ms", "driver_ms_per_unit")
    tell({**{k: round(f[k], 3) for k in kept}, "unequal_stores": f["unequal_stores"]})


if __name__ == "__main__":
    sys.exit(main())
