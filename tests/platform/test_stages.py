"""Stages against the oracle: transformers' own whole model, to the last bit."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actlake.platform.models import (
    Capture,
    ModelConfig,
    ResolvedModel,
    load_head,
    load_stage,
    num_layers_needed,
    resolve_model,
    stage_bytes,
)
from actlake.platform.models.errors import (
    InvalidSplit,
    ModelNotSupported,
    SiteNotInModel,
    WeightsMismatch,
)
from actlake.storage.sites import Site

FAMILIES = [
    "llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen3", "mistral", "phi", "olmo2",
    "granite", "mixtral", "qwen3_moe", "gpt_oss", "cohere", "falcon", "opt", "bloom", "ctrl",
]  # fmt: skip
ONE_STAGE = [range(4)]
TWO_STAGES = [range(2), range(2, 4)]


def resolved(folder: Path) -> ResolvedModel:
    return resolve_model(ModelConfig(name=str(folder), device="cpu"))


def tokens(num_contexts: int = 3, length: int = 11, vocab_size: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocab_size, (num_contexts, length), generator=generator)


def run_stages(
    model: ResolvedModel, splits: list[range], sites: list[Site], ids_BL: Tensor
) -> dict[Site, Tensor]:
    """All sites, from stages that pass the hidden state on."""
    seen: dict[Site, Tensor] = {}
    flowing: Tensor | None = ids_BL
    for layers in splits:
        stage = load_stage(model, layers, sites)
        assert flowing is not None
        flowing = stage.run(flowing, lambda site, tensor: seen.update({site: tensor.clone()}))
    assert flowing is None
    return seen


def whole_model(folder: Path, ids_BL: Tensor) -> dict[Site, Tensor]:
    """The residual stream at every layer, as transformers itself gives it."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    blocks = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers
    )
    last: list[Tensor] = []
    # hidden_states[-1] is behind the final norm, so the last block is asked itself.
    blocks[-1].register_forward_hook(
        lambda module, args, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        states = model(ids_BL, use_cache=False, output_hidden_states=True).hidden_states
    stream = {Site(0, "resid_pre"): states[0]}
    stream |= {Site(layer): state for layer, state in enumerate(states[1:-1])}
    return stream | {Site(len(blocks) - 1): last[0]}


def largest_difference(ours: dict[Site, Tensor], theirs: dict[Site, Tensor]) -> float:
    return max(float((ours[site] - theirs[site]).abs().max()) for site in theirs)


@pytest.mark.parametrize("splits", [ONE_STAGE, TWO_STAGES], ids=["one stage", "two stages"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_of_the_stages_is_that_of_the_whole_model_to_the_bit(
    family: str, splits: list[range], tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder(family)
    sites = [Site(0, "resid_pre"), *(Site(layer) for layer in range(4))]

    ours = run_stages(resolved(folder), splits, sites, tokens())

    theirs = whole_model(folder, tokens())
    assert ours.keys() == theirs.keys() == set(sites)
    assert largest_difference(ours, theirs) == 0.0


def test_a_family_that_writes_into_all_it_is_given_reaches_nobodys_tensors(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama")
    sites = [Site(0, "resid_pre"), *(Site(layer) for layer in range(4))]
    undisturbed = run_stages(resolved(folder), TWO_STAGES, sites, tokens())
    clean = load_head(resolved(folder)).logits(undisturbed[Site(3)])

    with monkeypatch.context() as patched:
        write_into_all_that_is_given(patched)
        lower, upper = (load_stage(resolved(folder), layers, sites) for layers in TWO_STAGES)
        head = load_head(resolved(folder))
        seen: dict[Site, Tensor] = {}
        keep: Capture = lambda site, tensor: seen.update({site: tensor.clone()})  # noqa: E731
        given = tokens()
        between = lower.run(given, keep)
        assert between is not None
        was = between.clone()
        upper.run(between, keep)
        last = seen[Site(3)].clone()
        logits = head.logits(last)

    assert largest_difference(seen, undisturbed) == 0.0
    assert torch.equal(given, tokens())
    assert torch.equal(between, was)
    assert torch.equal(last, undisturbed[Site(3)])
    assert torch.equal(logits, clean)


def write_into_all_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's model and blocks overwrite every tensor they get, once they have used it."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

    def overwriting(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            fresh = [t.clone() if isinstance(t, Tensor) else t for t in args]
            named = {k: t.clone() if isinstance(t, Tensor) else t for k, t in kwargs.items()}
            for tensor in given:
                tensor.zero_()
            return forward(self, *fresh, **named)

        return run

    for cls in (LlamaModel, LlamaDecoderLayer):
        monkeypatch.setattr(cls, "forward", overwriting(cls.forward))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_sublayers_add_makes_the_next_stream(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))
    seen = run_stages(model, TWO_STAGES, model.sites(), tokens())

    assert seen.keys() == set(model.sites())
    for layer in range(4):
        before, after = seen[Site(layer, "resid_pre").stored], seen[Site(layer)]
        points = model.anatomy.wirings[layer]
        if "attn_out" in points:
            both = seen[Site(layer, "attn_out")] + seen[Site(layer, "mlp_out")]
            torch.testing.assert_close(before + both, after, rtol=1e-5, atol=1e-4)
            assert float(both.abs().max()) > 0.01
        if "resid_mid" in points and "mlp_out" in points:
            mid = seen[Site(layer, "resid_mid")]
            assert torch.equal(before + seen[Site(layer, "attn_out")], mid)
            assert torch.equal(mid + seen[Site(layer, "mlp_out")], after)


@pytest.mark.parametrize("splits", [[range(8)], [range(4), range(4, 8)]], ids=["one", "two"])
def test_smollm2_in_stages_is_smollm2_to_the_bit(splits: list[range], smollm2_folder: Path) -> None:
    ids_BL = tokens(2, 48, vocab_size=49_152)
    sites = [Site(layer) for layer in range(8)]

    ours = run_stages(resolved(smollm2_folder), splits, sites, ids_BL)

    theirs = whole_model(smollm2_folder, ids_BL)
    assert largest_difference(ours, {site: theirs[site] for site in sites}) == 0.0


def test_every_site_inside_smollm2s_blocks_adds_up(smollm2_folder: Path) -> None:
    model = resolved(smollm2_folder)
    points = ("resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out")
    sites = [Site(layer, point) for layer in (2, 3) for point in points]

    seen = run_stages(model, [range(2), range(2, 4)], sites, tokens(2, 32, vocab_size=49_152))

    assert seen.keys() == set(sites)
    attn, mlp = seen[Site(3, "attn_out")], seen[Site(3, "mlp_out")]
    assert torch.equal(seen[Site(2)] + attn, seen[Site(3, "resid_mid")])
    assert torch.equal(seen[Site(3, "resid_mid")] + mlp, seen[Site(3)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "falcon"])
def test_padding_on_the_right_changes_no_real_token(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))
    sites = [Site(3)]
    short_1L = tokens(1, 7)
    padded_BL = torch.zeros(2, 11, dtype=torch.int64)
    padded_BL[0, :7] = short_1L
    padded_BL[1] = tokens(1, 11)

    alone = run_stages(model, TWO_STAGES, sites, short_1L)[Site(3)]
    among = run_stages(model, TWO_STAGES, sites, padded_BL)[Site(3)]

    torch.testing.assert_close(among[:1, :7], alone, rtol=1e-5, atol=1e-5)


def test_only_resident_weights_are_loaded_and_their_bytes_are_known_before(
    tiny_folder: Callable[..., Path],
) -> None:
    for family in FAMILIES:
        model = resolved(tiny_folder(family))
        expected = [stage_bytes(model, layers) for layers in TWO_STAGES]

        stages = [load_stage(model, layers, [Site(3)]) for layers in TWO_STAGES]

        assert [stage.param_bytes for stage in stages] == expected, family
        embedding, block = model.anatomy.embedding_params, model.anatomy.block_params[0]
        assert expected[0] - expected[1] == 4 * embedding
        assert expected[1] == 4 * (2 * block + model.anatomy.shared_params)


def test_a_stage_of_smollm2_holds_a_fraction_of_it(smollm2_folder: Path) -> None:
    model = resolved(smollm2_folder)

    first, later = (load_stage(model, layers, [Site(9)]) for layers in (range(5), range(5, 10)))

    assert (first.param_bytes >> 20, later.param_bytes >> 20) == (175, 67)
    assert later.param_bytes == 4 * (5 * 3_540_096 + 576)


def test_sites_are_handed_out_in_the_order_they_are_computed(
    tiny_folder: Callable[..., Path],
) -> None:
    model = resolved(tiny_folder("llama"))

    seen = run_stages(model, [range(1)], [s for s in model.sites() if s.layer == 0], tokens())

    order = ["resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"]
    assert [site.point for site in seen] == order


def test_the_stage_stops_behind_the_last_site(tiny_folder: Callable[..., Path]) -> None:
    model = resolved(tiny_folder("llama"))
    stage = load_stage(model, range(4), [Site(1, "mlp_in")])
    ran: list[str] = []
    for name, module in stage.module.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))

    stage.run(tokens(), lambda site, tensor: None)

    assert "layers.0" in ran
    assert "layers.1.self_attn" in ran
    assert not [name for name in ran if name.startswith(("layers.1.mlp", "layers.2", "norm"))]


def test_a_stage_between_others_sends_though_it_hands_out_nothing(
    tiny_folder: Callable[..., Path],
) -> None:
    model = resolved(tiny_folder("llama"))
    stage = load_stage(model, range(2), [Site(3)])
    seen: list[Site] = []

    leaving = stage.run(tokens(), lambda site, tensor: seen.append(site))

    assert stage.sites == ()
    assert seen == []
    assert leaving is not None
    assert leaving.shape == (3, 11, 32)


def test_no_gradients_are_recorded(tiny_folder: Callable[..., Path]) -> None:
    stage = load_stage(resolved(tiny_folder("llama")), range(2), [Site(0), Site(3)])
    seen: list[Tensor] = []

    leaving = stage.run(tokens(), lambda site, tensor: seen.append(tensor))

    assert leaving is not None
    for tensor in [*seen, leaving]:
        assert tensor.is_inference()
        assert not tensor.requires_grad
    assert not any(parameter.requires_grad for parameter in stage.module.parameters())


def test_what_capture_returns_or_raises_does_not_reach_the_next_pass(
    tiny_folder: Callable[..., Path],
) -> None:
    stage = load_stage(resolved(tiny_folder("llama")), range(2), [Site(0), Site(3)])
    clean = stage.run(tokens(), lambda site, tensor: None)

    def fails(site: Site, tensor: Tensor) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        stage.run(tokens(), fails)
    again = stage.run(tokens(), lambda site, tensor: torch.zeros_like(tensor))  # type: ignore[arg-type, return-value]

    assert clean is not None
    assert again is not None
    assert torch.equal(clean, again)


def test_resid_pre_of_a_later_layer_is_handed_out_as_the_post_below(
    tiny_folder: Callable[..., Path],
) -> None:
    model = resolved(tiny_folder("gpt2"))

    seen = run_stages(model, TWO_STAGES[:1], [Site(2, "resid_pre")], tokens())

    assert list(seen) == [Site(1, "resid_post")]
    assert num_layers_needed([Site(2, "resid_pre")]) == 2


def test_bfloat16_stages_equal_each_other_and_hand_out_bfloat16(
    tiny_folder: Callable[..., Path],
) -> None:
    folder = tiny_folder("granite")
    model = resolve_model(ModelConfig(name=str(folder), device="cpu", dtype="bfloat16"))
    sites = [Site(1, "attn_out"), Site(3)]

    one = run_stages(model, ONE_STAGE, sites, tokens())
    two = run_stages(model, TWO_STAGES, sites, tokens())

    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}
    assert largest_difference(one, two) == 0.0
    assert load_stage(model, range(2, 4), sites).param_bytes == stage_bytes(model, range(2, 4))


def test_the_text_decoder_of_a_model_with_images_is_loaded_from_its_checkpoint(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = tmp_path / "nested"
    save_nested(tiny_folder("gemma3_text"), folder)
    model = resolved(folder)
    sites = [Site(0, "resid_pre"), *(Site(layer) for layer in range(4))]

    ours = run_stages(model, TWO_STAGES, sites, tokens())

    assert model.nested
    assert model.family == "gemma3_text"
    assert largest_difference(ours, whole_model(tiny_folder("gemma3_text"), tokens())) == 0.0


def save_nested(text: Path, folder: Path) -> None:
    """The decoder of `text` in the place that image models keep it, images left out."""
    import json

    from safetensors.torch import load_file, save_file

    folder.mkdir()
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    config["text_config"] = json.loads((text / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(text / "model.safetensors")
    nested = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    save_file(nested, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_weight_that_is_missing_is_named(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "holed"
    folder.mkdir()
    source = tiny_folder("llama")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = resolved(folder)

    load_stage(model, range(2), [Site(3)])

    with pytest.raises(WeightsMismatch, match=r"missing: model\.layers\.3\.mlp\.up_proj\.weight"):
        load_stage(model, range(2, 4), [Site(3)])


def test_weights_of_another_shape_are_refused(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    wide = tiny_folder("llama", intermediate_size=64)
    (folder / "config.json").write_bytes((tiny_folder("llama") / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((wide / "model.safetensors").read_bytes())

    with pytest.raises(WeightsMismatch, match="do not fit its configuration") as caught:
        load_stage(resolved(folder), range(2), [Site(1)])

    assert "hint: check that config.json belongs to these weights" in str(caught.value)


def test_a_cut_off_weight_file_is_refused(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    source = tiny_folder("llama")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])

    with pytest.raises(WeightsMismatch, match="copy or download them again"):
        load_stage(resolved(folder), range(2), [Site(1)])


def test_a_family_that_adds_up_otherwise_is_found_out_before_it_hands_out(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    plain = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer,
        "forward",
        lambda self, *args, **kwargs: 1.01 * plain(self, *args, **kwargs),
    )
    model = resolved(tiny_folder("llama"))

    with pytest.raises(ModelNotSupported, match=r"resid_mid \+ mlp_out = resid_post"):
        load_stage(model, range(2), [Site(1, "mlp_out")])
    stream_only = load_stage(model, range(2), [Site(1)])

    assert stream_only.sites == (Site(1),)


def test_sites_and_layers_are_checked_before_weights(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolved(tiny_folder("gpt_neox"))
    monkeypatch.setattr("actlake.platform.models.loading._load_module", None)

    with pytest.raises(SiteNotInModel, match="4 layers"):
        load_stage(model, range(4), [Site(4)])
    with pytest.raises(SiteNotInModel, match="in parallel"):
        load_stage(model, range(4), [Site(1, "resid_mid")])
    with pytest.raises(InvalidSplit, match=r"Layers \[2, 5\) are not layers"):
        load_stage(model, range(2, 5), [Site(3)])
    with pytest.raises(InvalidSplit, match=r"No wanted site lies in or above layers \[2, 4\)"):
        load_stage(model, range(2, 4), [Site(1)])
