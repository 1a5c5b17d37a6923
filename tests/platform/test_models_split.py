"""Dividing layers among stages, by arithmetic and by what people write."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.platform.models import (
    ModelConfig,
    check_split,
    layer_bytes,
    num_layers_needed,
    resolve_model,
    split_layers,
    stage_bytes,
)
from actlake.platform.models.errors import InvalidSplit
from actlake.storage.sites import Site


@given(data=st.data(), weights=st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_no_other_division_has_a_lighter_heaviest_stage(
    data: st.DataObject, weights: list[int]
) -> None:
    n = len(weights)
    num_stages = data.draw(st.integers(1, n))

    stages = split_layers(n, num_stages, weights=weights)

    def heaviest(bounds: list[int]) -> int:
        return max(sum(weights[a:b]) for a, b in pairwise(bounds))

    others = ([0, *cut, n] for cut in combinations(range(1, n), num_stages - 1))
    check_split(stages, n)
    assert len(stages) == num_stages
    assert heaviest([0, *(stage.stop for stage in stages)]) == min(map(heaviest, others))


def test_without_weights_layers_are_shared_evenly() -> None:
    assert split_layers(8, 2) == [range(4), range(4, 8)]
    assert sorted(map(len, split_layers(30, 4))) == [7, 7, 8, 8]


def test_the_embedding_weighs_on_the_first_stage(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("llama", vocab_size=4096)
    model = resolve_model(ModelConfig(name=str(folder), device="cpu"))

    weights = layer_bytes(model, 4)

    assert weights[0] - weights[1] == 4096 * 32 * 4
    assert split_layers(4, 2, weights=weights) == [range(1), range(1, 4)]
    assert stage_bytes(model, range(4)) == sum(weights) + 32 * 4  # the final norm


@pytest.mark.parametrize("num_stages", [0, -1, 5])
def test_more_stages_than_layers_are_refused(num_stages: int) -> None:
    with pytest.raises(InvalidSplit, match="hint: use from 1 to 4 stages"):
        split_layers(4, num_stages)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [range(1, 4)],
        [range(2), range(3, 4)],
        [range(3), range(2, 4)],
        [range(2), range(2, 2), range(2, 4)],
        [range(3)],
        [range(2), range(2, 5)],
        [range(0, 4, 2)],
    ],
    ids=str,
)
def test_stages_that_do_not_cover_the_layers_are_refused(stages: list[range]) -> None:
    with pytest.raises(InvalidSplit, match=r"do not cover layers \[0, 4\) in order"):
        check_split(stages, 4)


def test_layers_above_the_last_site_are_not_needed() -> None:
    assert num_layers_needed([Site(2), Site(5, "mlp_in")]) == 6
    assert num_layers_needed([Site(6, "resid_pre")]) == 6
    assert num_layers_needed([Site(0, "resid_pre")]) == 1
