"""Architectures and their options: as in SAELens, and refused by name where they cannot be."""

import dataclasses

import pytest
import torch

from actlake.jobs.sae.architectures import OPTIONS, check_architecture
from actlake.jobs.sae.errors import InvalidSAE
from actlake.jobs.sae.trainable import build_sae

OURS_ELSEWHERE = {
    "d_in", "d_sae", "dtype", "device", "normalize_activations", "reshape_activations",
    "metadata", "use_sparse_activations",
}  # fmt: skip
"""Fields of SAELens' configurations that say nothing about the dictionary."""


@pytest.mark.parametrize("architecture", OPTIONS)
def test_options_are_saelens_fields_with_their_defaults(saelens, architecture) -> None:
    fields = dataclasses.fields(saelens.config_class(architecture))

    theirs = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in fields
        if field.name not in OURS_ELSEWHERE
    }
    if architecture == "matching_pursuit":
        theirs["decoder_init_norm"] = 1.0  # which SAELens sets with a warning
    ours = {field.name: field.default for field in dataclasses.fields(OPTIONS[architecture])}
    assert {name: as_list(value) for name, value in ours.items()} == theirs


def as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("architecture", "options", "words"),
    [
        ("topkk", {}, "no architecture 'topkk'\nhint: did you mean 'topk'"),
        ("topk", {"K": 3, "kk": 3}, "topk has no option 'K'\nhint: "),
        ("topk", {"aux_loss_coeficient": 3}, "did you mean 'aux_loss_coefficient'"),
        ("topk", {"l1_coefficient": 3}, "topk has no option 'l1_coefficient'"),
        ("topk", {"k": 65}, "k must be above 0 and at most d_sae, and is 65 with d_sae 64"),
        ("topk", {"k": 0}, "k must be above 0"),
        ("topk", {"k": 1.5}, "the options of topk\n  k: 1.5 is not a whole number"),
        ("batchtopk", {"k": 64.5}, "at most d_sae, and is 64.5"),
        ("matryoshka_batchtopk", {"k": 2}, "matryoshka_widths must ascend"),
        ("matryoshka_batchtopk", {"k": 2, "matryoshka_widths": [9, 9]}, "must ascend"),
        ("matryoshka_batchtopk", {"k": 2, "matryoshka_widths": [9, 65]}, "at most d_sae 64"),
        ("jumprelu", {"jumprelu_sparsity_loss_mode": "quadratic"}, "needs a target_l0"),
        ("jumprelu", {"jumprelu_sparsity_loss_mode": "squared"}, "jumprelu_sparsity_loss_mode"),
        ("jumprelu", {"jumprelu_bandwidth": 0}, "jumprelu_bandwidth must be above 0"),
        ("standard", {"decoder_init_norm": 0}, "decoder_init_norm must be above 0"),
        ("standard", {"lp_norm": 0}, "lp_norm must be above 0"),
        ("matching_pursuit", {"decoder_init_norm": 0.1}, "decoder_init_norm must be 1"),
        ("matching_pursuit", {"max_iterations": 0}, "max_iterations must be at least 1"),
    ],
)
def test_what_an_architecture_cannot_have_is_refused_by_name(architecture, options, words) -> None:
    with pytest.raises(InvalidSAE, match=words):
        check_architecture(architecture, options, d_sae=64)


def test_transcoders_and_crosscoders_have_three_architectures() -> None:
    with pytest.raises(InvalidSAE, match="A transcoder cannot be gated\nhint: it can be topk"):
        build_sae("gated", {}, d_in=4, d_out=3, d_sae=8, seed=0)
    with pytest.raises(InvalidSAE, match="A crosscoder cannot be standard"):
        build_sae("standard", {}, d_in=4, d_sae=8, num_sites=2, seed=0)
    with pytest.raises(InvalidSAE, match="has no d_out"):
        build_sae("topk", {"k": 2}, d_in=4, d_out=4, d_sae=8, num_sites=2, seed=0)
    with pytest.raises(InvalidSAE, match="d_sae must be at least 1"):
        build_sae("topk", {"k": 2}, d_in=4, d_sae=0, seed=0)


def test_a_seed_gives_the_same_weights_and_leaves_other_randomness_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)

    one, same, other = (
        build_sae("topk", {"k": 2}, d_in=4, d_out=3, d_sae=8, seed=seed) for seed in (1, 1, 2)
    )

    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.weights.W_enc, same.weights.W_enc)
    assert not torch.equal(one.weights.W_enc, other.weights.W_enc)
