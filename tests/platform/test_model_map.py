"""The map of a model: its figures against transformers alone, and faults put in on purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actlake.platform.model_map import ModelMap, measure_model, probe_ids, run_whole
from actlake.platform.models import ModelConfig, ResolvedModel, resolve_model
from actlake.platform.models.errors import ModelNotSupported
from actlake.storage.sites import Site

FAMILIES = [
    "llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen3", "mistral", "phi", "olmo2",
    "granite", "mixtral", "qwen3_moe", "gpt_oss", "cohere", "falcon", "opt", "bloom", "ctrl",
]  # fmt: skip


def resolved(folder: Path, **settings: Any) -> ResolvedModel:
    return resolve_model(ModelConfig(name=str(folder), device="cpu", **settings))


def said(found: ModelMap) -> list[str]:
    return [str(problem) for problem in found.problems()]


def measured(folder: Path, **settings: Any) -> ModelMap:
    model = resolved(folder, **settings)
    return measure_model(model, probe_ids(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_family_that_is_read_right_every_site_is_measured_and_nothing_is_wrong(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    found = measured(tiny_folder(family))

    assert found.problems() == []
    points = dict(found.points())
    assert points.keys() == set(resolved(tiny_folder(family)).sites())
    assert all(
        one.moved is not None and one.moved > 1e-5 and one.put_back for one in points.values()
    )
    compared = {site for site, one in points.items() if one.difference is not None}
    assert compared == {Site(0, "resid_pre"), *(Site(layer) for layer in range(4))}
    assert found.head.difference == 0.0
    for layer in found.layers:
        assert {"resid_pre + attn_out + mlp_out = resid_post"} <= layer.sums.keys() or (
            "attn_out" not in layer.points or "mlp_out" not in layer.points
        )


def causal_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("family", ["llama", "falcon", "gemma2", "opt", "gpt2"])
def test_the_reference_is_the_hidden_states_that_transformers_hands_out(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))
    ids_BL = probe_ids(model)

    reference = run_whole(model, ids_BL)

    with torch.no_grad():
        output = causal_model(tiny_folder(family))(ids_BL, output_hidden_states=True)
    assert len(reference.stream) == 5
    assert torch.equal(reference.logits_BLV, output.logits)
    assert torch.equal(reference.stream[Site(0, "resid_pre")], output.hidden_states[0])
    for layer in range(3):  # the last of transformers' is behind the final norm
        assert torch.equal(reference.stream[Site(layer)], output.hidden_states[layer + 1])


def test_how_far_an_edit_moves_the_prediction_is_what_plain_hooks_give(
    tiny_folder: Callable[..., Path],
) -> None:
    """A hook on transformers' own model, a KL divergence of torch's own."""
    folder = tiny_folder("llama")
    found = dict(measured(folder).points())
    ids_BL = probe_ids(resolved(folder))
    whole = causal_model(folder)
    blocks = whole.model.layers
    direction_D = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction_D /= direction_D.norm()

    def edit(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return (output + output.norm(dim=-1, keepdim=True) * direction_D).float()

    def logits() -> Tensor:
        with torch.no_grad():
            return whole(ids_BL).logits.double().log_softmax(-1).flatten(0, 1)

    clean = logits()
    for site, module in {
        Site(1): blocks[1],
        Site(3): blocks[3],
        Site(2, "attn_out"): blocks[2].self_attn.o_proj,
        Site(2, "mlp_out"): blocks[2].mlp,
    }.items():
        with module.register_forward_hook(edit):
            expected = nn.functional.kl_div(logits(), clean, log_target=True, reduction="batchmean")
        assert found[site].moved == pytest.approx(float(expected), rel=1e-3), site


def test_an_edit_that_reaches_nothing_is_found_out(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutated: the hook puts back what was there."""
    from actlake.platform.models.interventions import _Applied

    monkeypatch.setattr(_Applied, "__call__", lambda self, tensor: tensor.clone())

    found = measured(tiny_folder("llama"))

    assert "mlp_in.2 can be edited without moving what the model predicts" in said(found)
    assert len([wrong for wrong in said(found) if "without moving" in wrong]) == 21


def test_a_site_whose_own_tensor_changes_the_model_is_named(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutated: what is put at one site arrives a little larger."""
    from actlake.platform.models.interventions import _Applied

    plain = _Applied.__call__

    def grows(self: _Applied, tensor: Tensor) -> Tensor:
        factor = 1.0001 if self.intervention.site == Site(2, "mlp_in") else 1.0
        return plain(self, tensor) * factor

    monkeypatch.setattr(_Applied, "__call__", grows)

    wrong = said(measured(tiny_folder("llama")))

    assert wrong == ["mlp_in.2 changes what the model computes when its own tensor is put back"]


def test_an_edit_that_leaves_the_stream_as_it_was_is_found_out(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutated: what the MLP reads is edited, and not the stream it is added to."""
    from actlake.platform.models import interventions

    class Forgetful(interventions._Applied):
        def __call__(self, tensor: Tensor) -> Tensor:
            changed = super().__call__(tensor)
            if self.intervention.site.point == "resid_mid":
                return 0.5 * (tensor + changed)
            return changed

    monkeypatch.setattr(interventions, "_Applied", Forgetful)

    wrong = said(measured(tiny_folder("llama")))

    assert wrong == [
        f"resid_mid.{layer} is not what the block goes on with after an edit" for layer in range(4)
    ]


def test_a_stage_that_alters_what_it_is_given_is_found_out_at_the_bit(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from actlake.platform.models import ModelStage

    plain = ModelStage._inject

    def altered(self: ModelStage, module: nn.Module, args: Any, kwargs: Any) -> Any:
        assert self._pass is not None
        self._pass.inputs.view(-1)[0].nextafter_(torch.tensor(9e9))
        return plain(self, module, args, kwargs)

    monkeypatch.setattr(ModelStage, "_inject", altered)

    wrong = said(measured(tiny_folder("llama")))

    assert any(one.startswith("resid_post.1 differs from transformers' by up to ") for one in wrong)
    assert not any(one.startswith("resid_post.0 differs") for one in wrong)


def test_a_head_with_other_logits_is_found_out(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from actlake.platform.models import ModelHead

    plain = ModelHead.logits
    monkeypatch.setattr(ModelHead, "logits", lambda self, hidden: plain(self, hidden) + 0.25)

    assert said(measured(tiny_folder("llama"))) == ["the head has logits that differ by up to 0.25"]


def test_where_the_sums_do_not_hold_the_stream_is_measured_and_the_rest_refused(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    plain = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer,
        "forward",
        lambda self, *args, **kwargs: 1.01 * plain(self, *args, **kwargs),
    )

    found = measured(tiny_folder("llama"))

    assert found.problems() == []
    assert [list(one.points) for one in found.layers] == [
        ["resid_post", "resid_pre"],
        *[["resid_post"]] * 3,
    ]
    assert all("resid_mid + mlp_out = resid_post" in one.refused for one in found.layers)


def test_without_a_head_the_sites_are_measured_and_the_reason_is_kept(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ModelNotSupported("its head is of no known form\nhint: report the family")

    monkeypatch.setattr("actlake.platform.models.head._settle_form", refuse)

    found = measured(tiny_folder("llama"))

    assert found.problems() == []
    assert found.head.difference is None
    assert found.head.refused == "its head is of no known form"
    assert {one.moved for _, one in found.points()} == {None}


def test_weights_that_are_no_numbers_are_found_out(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file, save_file

    source = tiny_folder("llama")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    found = measured(tmp_path)

    wrong = said(found)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["problems"]
    assert "mlp_out.2 holds values that are no numbers" in wrong
    assert "mlp_in.2 holds values that are no numbers" not in wrong


def test_values_beyond_float16_are_said(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    source = tiny_folder("llama")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    found = measured(tmp_path)

    assert measured(source).fits_float16
    assert not found.fits_float16
    assert found.largest > 65_504


def test_the_map_is_plain_json_and_carries_its_verdict(tiny_folder: Callable[..., Path]) -> None:
    found = measured(tiny_folder("gpt_neox"))

    written = json.loads(json.dumps(found.as_json()))

    assert written["problems"] == []
    assert written["family"] == "gpt_neox"
    assert (
        written["layers"][2]["points"]["mlp_out"]["moved"]
        == found.layers[2].points["mlp_out"].moved
    )


def test_in_bfloat16_stages_are_still_the_whole_model_to_the_bit(
    tiny_folder: Callable[..., Path],
) -> None:
    found = measured(tiny_folder("granite"), dtype="bfloat16")

    assert found.problems() == []
    assert found.dtype == "bfloat16"
