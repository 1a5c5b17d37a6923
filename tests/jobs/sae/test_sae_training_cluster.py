"""Training on a cluster that is joined: there, with what is reserved, whatever the driver has."""

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from actlake.jobs.sae.config import EvaluationConfig, ReportConfig, SAEConfig, SAESpec
from actlake.jobs.sae.job import plan_saes, train_saes
from actlake.jobs.sae.speeds import Speeds
from actlake.platform.cluster import ClusterConfig, ResourcesConfig, Session, WorkStopped, session
from actlake.platform.models.errors import InvalidModelConfig
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site
from actlake.storage.location import locate


@pytest.fixture
def config(spoken: Any, tmp_path: Path) -> SAEConfig:
    return SAEConfig(
        store=str(spoken.folder),
        out=str(tmp_path / "out"),
        sae=SAESpec(name="topk", site=Site(1), d_sae=48, options={"k": 4}),
        batch_rows=64,
        log_every=5,
        threads=1,
        evaluation=EvaluationConfig(rows=200),
        report=ReportConfig(latents=0),
        tracking=TrackingConfig(wandb="disabled"),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    """Of one node that says it has a GPU, as the machine it is on has not."""
    sizes = ClusterConfig(address="local", num_cpus=3, num_gpus=1, object_store_mb=100)
    with session(sizes) as here:
        yield here


def weights(out: str) -> dict[str, bytes]:
    return {
        name: part.numpy().tobytes()
        for name, part in load_file(Path(out) / "topk" / "sae_weights.safetensors").items()
    }


@pytest.mark.ray
def test_one_worker_on_a_joined_cluster_trains_there_with_what_it_reserves(
    config: SAEConfig,
    cluster: Session,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def in_the_driver(*arguments: object) -> None:
        raise AssertionError("it trains in the driver")

    here = replace(config, device="cpu", out=config.out + "-here")
    train_saes(here)
    monkeypatch.setattr("actlake.jobs.sae.job.work_on", in_the_driver)
    there = replace(
        config,
        cluster=ClusterConfig(address=cluster.address),
        resources=ResourcesConfig(cpus=2, gpus=0, memory_mb=64),
    )

    with caplog.at_level(logging.INFO, logger="actlake"):
        train_saes(there)

    assert weights(there.out) == weights(here.out)
    assert "1 worker(s) on cpu, with 2 CPU + 64 MiB and 1 thread(s) each" in caplog.text
    assert train_saes(replace(there, resources=ResourcesConfig())).was_there


@pytest.mark.ray
def test_auto_reserves_a_gpu_of_the_cluster_and_looks_for_it_where_it_trains(
    config: SAEConfig, cluster: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker has a GPU reserved and finds none: it does not go on silently without."""
    there = replace(config, cluster=ClusterConfig(address=cluster.address))

    with (
        caplog.at_level(logging.INFO, logger="actlake"),
        pytest.raises(InvalidModelConfig, match="'cuda' was asked for"),
    ):
        train_saes(there)

    assert "1 worker(s) on cuda, with 1 CPU + 1 GPU and 1 thread(s) each" in caplog.text


@pytest.mark.ray
def test_sigterm_in_mid_run_ends_with_a_checkpoint(
    config: SAEConfig, cluster: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace(
        config,
        epochs=1000,
        cluster=ClusterConfig(address=cluster.address),
        resources=ResourcesConfig(gpus=0),
    )
    monkeypatch.setattr(Speeds, "hear", lambda *news: os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(WorkStopped, match=r"Stopped after step [\d,]+ of 13,\d+"):
        train_saes(there)

    assert 0 < plan_saes(replace(there, cluster=ClusterConfig(address="local"))).done < 13_000


def test_a_plan_for_a_cluster_needs_neither_the_cluster_nor_its_device(config: SAEConfig) -> None:
    there = replace(config, device="cuda", cluster=ClusterConfig(address="203.0.113.1:6379"))

    plan = str(plan_saes(there))

    assert "on cuda of a cluster" in plan
    assert "not guessed" in plan


def test_a_store_in_a_bucket_gives_the_weights_of_a_folder(
    config: SAEConfig, spoken: Any, bucket: Any
) -> None:
    copy = locate(f"{bucket.url}/store")
    for path in sorted(spoken.folder.rglob("*")):
        if path.is_file():
            copy.write(str(path.relative_to(spoken.folder)), [path.read_bytes()])
    # `auto` would mix the rows of a bucket in another way.
    local = replace(config, device="cpu", shuffle="exact")
    remote = replace(local, store=copy.url, out=config.out + "-remote")

    train_saes(local)
    train_saes(remote)

    assert weights(remote.out) == weights(local.out)
