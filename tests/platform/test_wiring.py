"""Which sites each family has, known from its configuration alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from actlake.platform.models import ModelConfig, ResolvedModel, resolve_model
from actlake.platform.models.errors import SiteNotInModel
from actlake.platform.models.points import POINTS
from actlake.platform.models.wiring import Tap, out_of
from actlake.storage.sites import Site

SEQUENTIAL = [
    "llama", "gpt2", "gemma2", "gemma3_text", "qwen3", "mistral", "olmo2", "granite", "mixtral",
    "opt",
]  # fmt: skip
PARALLEL = ["gpt_neox", "phi", "cohere", "falcon"]


def resolved(folder: Path) -> ResolvedModel:
    return resolve_model(ModelConfig(name=str(folder), device="cpu"))


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_a_sequential_block_has_every_point(family: str, tiny_folder: Callable[..., Path]) -> None:
    model = resolved(tiny_folder(family))

    model.check_sites(Site(layer, point) for layer in range(4) for point in POINTS)

    assert not model.parallel
    assert len(model.sites()) == 1 + 4 * 5  # resid_pre of later layers is stored as resid_post


@pytest.mark.parametrize("family", PARALLEL)
def test_a_parallel_block_has_every_point_but_the_stream_between(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))

    with pytest.raises(SiteNotInModel) as caught:
        model.check_sites([Site(2, "resid_mid")])

    assert model.parallel
    assert f"There is no site resid_mid.2 in {model.name} (family {family})" in str(caught.value)
    assert "in parallel, with no stream between them" in str(caught.value)
    assert "Layer 2 has resid_pre, resid_post, attn_out, mlp_in, mlp_out" in str(caught.value)


def test_gpt_neox_without_the_parallel_residual_is_sequential(
    tiny_folder: Callable[..., Path],
) -> None:
    model = resolved(tiny_folder("gpt_neox", use_parallel_residual=False))

    model.check_sites([Site(1, "resid_mid")])

    assert not model.parallel


@pytest.mark.parametrize(
    ("family", "attention", "mlp"),
    [
        ("llama", out_of("self_attn"), out_of("mlp")),
        ("gpt2", out_of("attn"), out_of("mlp")),
        (
            "gemma2",
            out_of("post_attention_layernorm"),
            out_of("post_feedforward_layernorm"),
        ),
        (
            "olmo2",
            out_of("post_attention_layernorm"),
            out_of("post_feedforward_layernorm"),
        ),
        ("granite", Tap("self_attn", "out", factor=0.22), Tap("mlp", "out", factor=0.22)),
        ("opt", out_of("self_attn"), out_of("fc2")),
    ],
)
def test_what_is_added_to_the_stream_is_read_behind_norms_and_multipliers(
    family: str, attention: Tap, mlp: Tap, tiny_folder: Callable[..., Path]
) -> None:
    wiring = resolved(tiny_folder(family)).anatomy.wirings[0]

    assert wiring["attn_out"] == attention
    assert wiring["mlp_out"] == mlp


def test_a_point_that_no_module_carries_is_refused_with_what_there_is(
    tiny_folder: Callable[..., Path],
) -> None:
    model = resolved(tiny_folder("bloom"))

    model.check_sites([Site(1, "resid_mid"), Site(1, "mlp_in")])

    with pytest.raises(SiteNotInModel, match="no module of its blocks carries that tensor"):
        model.check_sites([Site(1, "attn_out")])


def test_of_a_family_with_unknown_blocks_the_stream_can_still_be_read(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actlake.platform.models.wiring.LAYOUTS", {})

    model = resolved(tiny_folder("llama"))

    model.check_sites([Site(3, "resid_pre"), Site(3, "resid_post")])
    with pytest.raises(SiteNotInModel, match="does not know the modules inside this family"):
        model.check_sites([Site(3, "mlp_in")])


def test_a_layer_out_of_range_is_refused_with_the_number_there_are(
    tiny_folder: Callable[..., Path],
) -> None:
    model = resolved(tiny_folder("llama"))

    with pytest.raises(SiteNotInModel) as caught:
        model.check_sites([Site(0), Site(4)])

    assert "There is no site resid_post.4" in str(caught.value)
    assert "has 4 layers" in str(caught.value)
    assert "hint: layers are counted from 0, so the last is 3" in str(caught.value)
