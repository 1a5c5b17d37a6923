"""Tensors from stage to stage: the same bits by every way, and a lost stage noticed on each."""

import ast
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.util import collective
from ray.util.collective.const import get_store_name
from ray.util.collective.util import NCCLUniqueIDStore

from actlake.platform.cluster import (
    InvalidClusterConfig,
    ReplicaSpec,
    Resources,
    Send,
    Session,
    StageSpec,
    run_chain,
    run_units,
)
from actlake.platform.cluster.wire import ObjectStoreWire, choose, end_meetings

cloudpickle.register_pickle_by_value(sys.modules[__name__])

BATCHES = 5


class Add:
    """Adds its own number to every hidden state; the last one's receipt is what arrived."""

    def __init__(self, number: int, mark: Path | None = None) -> None:
        self.number = number
        self.mark = mark
        self.seen: dict[int, list[tuple[int, bytes]]] = {}

    def run(self, unit: int, send: Send | None) -> None:
        generator = torch.Generator().manual_seed(unit)
        for batch in range(BATCHES):
            hidden = torch.randn(7, 100 + batch, generator=generator).to(torch.bfloat16)
            self.receive(unit, (batch, hidden), send)

    def receive(self, unit: int, message: tuple[int, Any], send: Send | None) -> None:
        batch, hidden = message
        if self.mark is not None and unit == 1 and batch == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        hidden = hidden + self.number
        if send is None:
            self.seen.setdefault(unit, []).append((batch, hidden.float().numpy().tobytes()))
        else:
            send((batch, hidden))

    def finish(self, unit: int) -> list[tuple[int, bytes]]:
        return self.seen.pop(unit, [])


def chain(transport: str, mark: Path | None = None) -> ReplicaSpec:
    return ReplicaSpec(
        stages=tuple(
            StageSpec(
                make=Add,
                kwargs={"number": number, "mark": mark if number == 1 else None},
                resources=Resources(cpus=0.5),
            )
            for number in range(3)
        ),
        transport=transport,
        messages_in_flight=2,
    )


def harvested(cluster: Session, spec: ReplicaSpec) -> tuple[dict[int, Any], int]:
    found: dict[int, Any] = {}
    result = run_units(
        cluster, range(4), spec, replicas=1,
        on_done=lambda unit, receipts, timing: found.update({unit: receipts[-1]}),
    )  # fmt: skip
    assert result.complete
    return found, result.replicas_lost


@pytest.fixture(scope="module")
def expected() -> dict[int, Any]:
    workers = [Add(number) for number in range(3)]
    return {unit: run_chain(workers, unit)[-1] for unit in range(4)}


@pytest.mark.ray
def test_hidden_states_pass_three_stages_by_the_direct_transport_unchanged(
    ray_session: Session, expected: dict[int, Any]
) -> None:
    found, lost = harvested(ray_session, chain("gloo"))

    assert found == expected
    assert lost == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("transport", ["gloo", "object_store"])
def test_a_stage_killed_between_two_others_is_noticed_and_the_chain_replaced(
    ray_session: Session, expected: dict[int, Any], tmp_path: Path, transport: str
) -> None:
    found, lost = harvested(ray_session, chain(transport, tmp_path / "killed"))

    assert found == expected
    assert lost == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_through_the_object_store_is_a_copy_with_the_same_bits(dtype: Any) -> None:
    wire = ObjectStoreWire()
    tensor = torch.randn(3, 5).to(dtype)

    number, arrived = wire.receive(wire.send((4, tensor), lambda payload: payload))

    assert number == 4
    assert arrived.dtype == dtype
    assert torch.equal(arrived, tensor)
    assert arrived.data_ptr() != tensor.data_ptr()


def test_the_direct_way_is_taken_where_every_stage_has_it() -> None:
    assert choose("auto", [["nccl"], ["nccl"]]) == "nccl"
    assert choose("auto", [["nccl"], []]) == "object_store"
    assert choose("auto", []) == "object_store"


def test_nccl_by_name_is_refused_where_a_stage_does_not_have_it() -> None:
    with pytest.raises(InvalidClusterConfig, match=r"stages 1 cannot use it[\s\S]+hint: transport"):
        choose("nccl", [["nccl"], []])


def test_nccl_for_stages_without_gpus_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidClusterConfig, match="needs a GPU for each stage"):
        chain("nccl")


@pytest.mark.ray
def test_the_meeting_places_of_nccl_go_with_their_replica(
    ray_session: Session, wait_for: Callable[..., None]
) -> None:
    """Made here by hand, since NCCL itself cannot be; their names are made by Ray's own code."""
    source = Path(collective.__file__).with_name("collective_group") / "nccl_collective_group.py"
    parsed = ast.parse(source.read_text()).body
    functions = {one.name: one for one in parsed if isinstance(one, ast.FunctionDef)}
    names: dict[str, Any] = {}
    module = ast.Module([functions["_get_comm_key_send_recv"]], type_ignores=[])
    exec(compile(module, str(source), "exec"), names)
    hops = [names["_get_comm_key_send_recv"](rank, 0, rank + 1, 0) for rank in (0, 1)]
    stores = [get_store_name(f"{hop}@{group}") for hop in hops for group in ("ours", "another")]
    made = [
        NCCLUniqueIDStore.options(name=name, lifetime="detached", num_cpus=0).remote(name)
        for name in stores
    ]
    ray.get([store.set_id.remote(b"id") for store in made])

    end_meetings("ours", size=4)  # the third hop was never used

    def left() -> set[str]:
        return set(stores) & set(ray.util.list_named_actors())

    wait_for(lambda: left() == {stores[1], stores[3]}, "our meeting places stay, or others go")
    end_meetings("another", size=4)
    wait_for(lambda: not left(), "meeting places stay")
