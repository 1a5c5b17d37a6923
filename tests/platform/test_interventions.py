"""Interventions and the head against transformers' own causal model, to the last bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actlake.platform.models import (
    Intervention,
    ModelConfig,
    ResolvedModel,
    load_chain,
    load_head,
    replace_with,
    resolve_model,
    token_cross_entropy,
    token_divergence,
)
from actlake.platform.models.errors import InvalidIntervention, SiteNotInModel
from actlake.storage.sites import Site

FAMILIES = [
    "llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen3", "mistral", "phi", "olmo2",
    "granite", "mixtral", "qwen3_moe", "gpt_oss", "cohere", "falcon", "opt", "bloom", "ctrl",
]  # fmt: skip
WIRED_APART = ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "granite", "falcon", "opt"]
SPLITS = [range(2), range(2, 4)]


def resolved(folder: Path) -> ResolvedModel:
    return resolve_model(ModelConfig(name=str(folder), device="cpu"))


def tokens(num_contexts: int = 3, length: int = 11, vocab_size: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocab_size, (num_contexts, length), generator=generator)


def transformers_logits(folder: Path, ids_BL: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: Tensor = model(ids_BL, use_cache=False).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_and_head_give_the_logits_of_the_whole_model_to_the_bit(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder(family)

    ours = load_chain(resolved(folder), splits=SPLITS).logits(tokens())

    assert torch.equal(ours, transformers_logits(folder, tokens()))


@pytest.mark.parametrize("family", FAMILIES)
def test_putting_a_models_own_activations_back_at_every_site_changes_nothing(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))
    chain = load_chain(model, model.sites(), splits=SPLITS)
    own, clean = chain.capture(tokens()), chain.logits(tokens())

    one_by_one = {
        site: chain.logits(tokens(), [replace_with(site, own[site])])
        for site in model.sites()
        if site.layer == 2
    }
    at_once = chain.logits(tokens(), [replace_with(site, own[site]) for site in model.sites()])

    assert [site for site, again in one_by_one.items() if not torch.equal(again, clean)] == []
    assert torch.equal(at_once, clean)


@pytest.mark.parametrize("family", WIRED_APART)
def test_what_is_put_at_a_site_is_what_the_model_goes_on_with(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))
    chain = load_chain(model, model.sites(), splits=SPLITS)
    clean = chain.capture(tokens())

    for site in [site for site in model.sites() if site.layer == 1]:
        other = clean[site] + torch.randn(clean[site].shape, generator=torch.Generator())
        changed = chain.capture(tokens(), [replace_with(site, other)])

        torch.testing.assert_close(changed[site], other)
        assert not torch.equal(changed[Site(3)], clean[Site(3)]), site
        below = [s for s in model.sites() if s.layer < 1]
        assert all(torch.equal(changed[s], clean[s]) for s in below), site
        points = model.anatomy.wirings[1]
        if "attn_out" in points and site.point != "resid_post":
            if "resid_mid" in points:
                mid, mlp = changed[Site(1, "resid_mid")], changed[Site(1, "mlp_out")]
                torch.testing.assert_close(mid + mlp, changed[Site(1)], rtol=1e-5, atol=1e-4)
            else:
                both = changed[Site(1, "attn_out")] + changed[Site(1, "mlp_out")]
                torch.testing.assert_close(
                    clean[Site(0)] + both, changed[Site(1)], rtol=1e-5, atol=1e-4
                )


def test_a_change_at_some_positions_leaves_the_tokens_before_them_alone(
    tiny_folder: Callable[..., Path],
) -> None:
    chain = load_chain(resolved(tiny_folder("falcon")))
    clean = chain.logits(tokens())
    where_BL = torch.zeros(3, 11, dtype=torch.bool)
    where_BL[:, 6] = True

    zeroed = chain.logits(tokens(), [replace_with(Site(1), torch.zeros(3, 11, 32), where_BL)])

    assert torch.equal(zeroed[:, :6], clean[:, :6])
    assert float((zeroed[:, 6:] - clean[:, 6:]).abs().min(-1).values.max()) > 0


def test_the_tensor_that_was_put_in_is_not_written_to(tiny_folder: Callable[..., Path]) -> None:
    chain = load_chain(resolved(tiny_folder("falcon")))
    given = torch.ones(3, 11, 32)

    for site in (Site(1), Site(1, "attn_out"), Site(1, "mlp_out")):
        chain.logits(tokens(), [replace_with(site, given)])

    assert torch.equal(given, torch.ones(3, 11, 32))


@pytest.mark.parametrize("family", ["olmo2", "granite", "llama"])
def test_a_change_may_write_into_its_argument(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    model = resolved(tiny_folder(family))
    chain = load_chain(model, model.sites())

    def in_place(acts_BLD: Tensor) -> Tensor:
        acts_BLD[:, 4:] *= 1.5
        return acts_BLD

    def apart(acts_BLD: Tensor) -> Tensor:
        return torch.cat([acts_BLD[:, :4], acts_BLD[:, 4:] * 1.5], dim=1)

    for site in [site for site in model.sites() if site.layer == 1]:
        written, returned = (
            chain.logits(tokens(), [Intervention(site, change)]) for change in (in_place, apart)
        )
        assert torch.equal(written, returned), site
        assert not torch.equal(returned, chain.logits(tokens())), site


def test_resid_pre_of_a_later_layer_is_changed_where_the_layer_below_ends(
    tiny_folder: Callable[..., Path],
) -> None:
    chain = load_chain(resolved(tiny_folder("llama")), splits=SPLITS)
    ones = torch.ones(3, 11, 32)

    pre = chain.logits(tokens(), [replace_with(Site(2, "resid_pre"), ones)])
    post = chain.logits(tokens(), [replace_with(Site(1, "resid_post"), ones)])

    assert torch.equal(pre, post)


def test_interventions_on_one_site_follow_each_other(tiny_folder: Callable[..., Path]) -> None:
    chain = load_chain(resolved(tiny_folder("llama")))
    clean = chain.logits(tokens())
    doubled = Intervention(Site(1), lambda acts: acts * 2)
    halved = Intervention(Site(1), lambda acts: acts / 2)

    assert torch.equal(chain.logits(tokens(), [doubled, halved]), clean)
    assert not torch.equal(chain.logits(tokens(), [doubled]), clean)


def test_a_change_of_another_shape_or_an_unknown_site_is_refused_by_name(
    tiny_folder: Callable[..., Path],
) -> None:
    chain = load_chain(resolved(tiny_folder("llama")))

    with pytest.raises(InvalidIntervention, match=r"at resid_post.1 returned \(3, 11, 31\)"):
        chain.logits(tokens(), [Intervention(Site(1), lambda acts: acts[..., :-1])])
    with pytest.raises(InvalidIntervention, match="returned NoneType"):
        chain.logits(tokens(), [Intervention(Site(1), lambda acts: None)])  # type: ignore[arg-type, return-value]
    with pytest.raises(SiteNotInModel, match="4 layers"):
        chain.logits(tokens(), [Intervention(Site(4), lambda acts: acts)])


def test_smollm2_predicts_as_the_whole_model_and_survives_patching_with_itself(
    smollm2_folder: Path,
) -> None:
    ids_BL = tokens(2, 24, vocab_size=49_152)
    sites = [Site(4), Site(14), Site(20, "attn_out"), Site(20, "mlp_out")]
    chain = load_chain(resolved(smollm2_folder), sites, splits=[range(30)])

    own, clean = chain.capture(ids_BL), chain.logits(ids_BL)
    patched = chain.logits(ids_BL, [replace_with(site, own[site]) for site in sites])

    assert torch.equal(clean, transformers_logits(smollm2_folder, ids_BL))
    assert torch.equal(patched, clean)
    assert float(token_divergence(clean, patched).abs().max()) == 0.0


def test_a_head_alone_holds_no_block(smollm2_folder: Path) -> None:
    head = load_head(resolved(smollm2_folder))

    assert head.param_bytes == 4 * (49_152 * 576 + 576)


def test_cross_entropy_and_divergence_are_those_of_the_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    ids_BL = torch.randint(7, (2, 5), generator=generator)

    ce, kl = token_cross_entropy(p, ids_BL), token_divergence(p, q)

    probability = p.double().softmax(-1)
    expected = -probability[:, :-1].gather(-1, ids_BL[:, 1:, None])[..., 0].log()
    torch.testing.assert_close(ce.double(), expected, rtol=1e-5, atol=1e-6)
    ratio = (probability / q.double().softmax(-1)).log()
    torch.testing.assert_close(kl.double(), (probability * ratio).sum(-1), rtol=1e-5, atol=1e-6)
