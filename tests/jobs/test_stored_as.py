"""A result of float rows is not taken for one of the same tokens' int8 rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from actlake.jobs.sae import EvaluationConfig, ReportConfig, SAEConfig, SAESpec, train_saes
from actlake.jobs.sae.encode import encode_store
from actlake.jobs.steps import STEPS
from actlake.jobs.stored_as import dtypes_as_recorded, dtypes_of, inputs_of_store
from actlake.platform.config import to_dict
from actlake.platform.runs import RunRecord
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, ActlakeError, Context, Document, Site, write_store

SITES = (Site(0), Site(1))
QUIET = Console(quiet=True)


def made(folder: Path, dtype: Any) -> ActivationStore:
    """A store of 60 documents of five tokens, the same but for how its rows are stored."""
    items: list[Any] = []
    for number in range(60):
        split = "test" if number % 3 == 2 else "train"
        items.append(Document(f"{number}", "made", split))
        ids = (np.arange(5) + number).astype(np.int32)
        items.append(Context(ids, np.full(5, number), np.full(5, -1, np.int32), split))
    rng = np.random.default_rng(0)
    rows = {site: rng.normal(size=(300, 8)).astype(np.float32) for site in SITES}
    return write_store(
        folder, items, rows, provenance="made", splits=("train", "test"), dtype=dtype
    )


@pytest.fixture
def stores(tmp_path: Path) -> tuple[ActivationStore, ActivationStore]:
    plain, coded = (made(tmp_path / dtype, dtype) for dtype in ("float32", "int8"))
    assert plain.fingerprint == coded.fingerprint
    return plain, coded


@pytest.fixture
def training(tmp_path: Path) -> Callable[[ActivationStore], SAEConfig]:
    def config(store: ActivationStore) -> SAEConfig:
        return SAEConfig(
            store=store.url, out=str(tmp_path / "out"),
            sae=SAESpec(site=SITES[0], architecture="topk", d_sae=16, options={"k": 2}),
            split="train", batch_rows=10, epochs=1, threads=1, device="cpu",
            tracking=TrackingConfig(wandb="disabled"),
            evaluation=EvaluationConfig(rows=20), report=ReportConfig(latents=0, rows=20),
        )  # fmt: skip

    return config


def test_each_site_is_said_once_with_its_element_type(
    stores: tuple[ActivationStore, ActivationStore],
) -> None:
    asked = ["resid_post.1", SITES[0], "resid_pre.1"]

    assert dtypes_of(stores[0], asked) == "resid_post.0 float32, resid_post.1 float32"


def test_what_was_recorded_is_compared_with_the_store_as_it_is_now(
    stores: tuple[ActivationStore, ActivationStore],
) -> None:
    plain, coded = stores
    recorded = inputs_of_store(plain.url, plain, SITES[:1])

    now = dtypes_as_recorded(recorded, {"store": coded.url})

    assert now == {"store_dtypes": "resid_post.0 int8"}
    assert dtypes_as_recorded(recorded, {"store": plain.url}) == {
        "store_dtypes": recorded["store_dtypes"].fingerprint
    }


def test_a_training_is_not_gone_on_with_on_rows_of_another_element_type(
    stores: tuple[ActivationStore, ActivationStore],
    training: Callable[[ActivationStore], SAEConfig],
) -> None:
    plain, coded = stores
    train_saes(training(plain), console=QUIET)

    with pytest.raises(ActlakeError, match="another configuration") as raised:
        train_saes(training(coded), console=QUIET)

    said = 'store_dtypes: stored "resid_post.0 float32", asked "resid_post.0 int8"'
    assert said in str(raised.value)


def test_a_step_of_a_pipeline_is_not_done_on_rows_of_another_element_type(
    stores: tuple[ActivationStore, ActivationStore],
    training: Callable[[ActivationStore], SAEConfig],
) -> None:
    plain, coded = stores
    train_saes(training(plain), console=QUIET)

    assert STEPS["sae"].is_done(to_dict(training(plain)))
    assert not STEPS["sae"].is_done(to_dict(training(coded)))


def test_latents_of_float_rows_are_not_taken_for_those_of_int8_rows(
    stores: tuple[ActivationStore, ActivationStore],
    training: Callable[[ActivationStore], SAEConfig],
    tmp_path: Path,
) -> None:
    plain, coded = stores
    train_saes(training(plain), console=QUIET)
    sae = str(next(path.parent for path in (tmp_path / "out").rglob("sae_weights.safetensors")))
    encoded = tmp_path / "latents"
    encode_store(sae, plain.url, str(encoded), console=QUIET)

    with pytest.raises(ActlakeError, match="int8"):
        encode_store(sae, coded.url, str(encoded), console=QUIET)

    assert RunRecord.load(encoded).config["dtypes"] == "resid_post.0 float32"
