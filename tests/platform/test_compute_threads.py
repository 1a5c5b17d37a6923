"""One number for all pools of a process: those that are there, those of a child, and back again."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from actlake.platform.compute_threads import (
    compute_threads,
    set_compute_threads,
    thread_variables,
)
from actlake.platform.models import load_stage, resolve_model
from actlake.platform.models.config import ModelConfig
from actlake.storage import Site

Pools = Callable[[], dict[str, int]]

# What a worker prints of itself.
_SAYS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from conftest import pool_threads
from actlake.platform.compute_threads import set_compute_threads
if "torch" in sys.argv:
    import torch
set_compute_threads(3)
print(json.dumps(pool_threads()))
"""


def test_every_pool_has_the_threads_and_afterwards_those_it_had(pools: Pools) -> None:
    before = pools()

    with compute_threads(3):
        inside = pools()
        with compute_threads(1):
            deeper = pools()
        back = pools()

    assert {"torch", "arrow", "omp"} < inside.keys()
    assert any("blas" in name for name in inside), "NumPy's pool is not seen"
    assert set(inside.values()) == set(back.values()) == {3}
    assert set(deeper.values()) == {1}
    assert pools() == before


def test_an_error_gives_the_threads_back(pools: Pools) -> None:
    before = pools()

    with pytest.raises(RuntimeError, match="in the middle"), compute_threads(3):
        raise RuntimeError("in the middle")

    assert pools() == before


def test_threads_of_python_that_begin_meanwhile_compute_in_as_many(pools: Pools) -> None:
    seen: list[dict[str, int]] = []

    with compute_threads(3):
        begun = threading.Thread(target=lambda: seen.append(pools()))
        begun.start()
        begun.join()

    assert set(seen[0].values()) == {3}


def test_a_process_can_be_set_for_good(pools: Pools) -> None:
    with compute_threads(1):
        set_compute_threads(3)

        assert set(pools().values()) == {3}


def test_a_stage_sets_its_process_when_threads_are_asked_for(
    tiny_folder: Callable[..., Path], pools: Pools
) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))

    with compute_threads(1):
        load_stage(model, range(1), [Site(0)], threads=3)

        assert set(pools().values()) == {3}


@pytest.mark.parametrize("loaded", ["torch", "no torch"])
def test_every_pool_of_a_worker_is_set_whatever_it_has_loaded(loaded: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _SAYS, str(Path(__file__).parents[1]), loaded],
        env=os.environ | thread_variables(3), capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert set(json.loads(told.stdout).values()) == {3}
