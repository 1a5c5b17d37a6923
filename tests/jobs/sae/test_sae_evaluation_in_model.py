"""Reconstructions in the running model: against SAELens' `run_evals`, and against hooks by hand."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from actlake.jobs.jackknife import jackknife_mean
from actlake.jobs.sae.errors import InvalidSAE, NotEnoughRows
from actlake.jobs.sae.evaluation import evaluate_rows
from actlake.jobs.sae.in_model import ALL_SITES, ModelScores, evaluate_in_model, evaluate_sites
from actlake.jobs.sae.trained import read_sae
from actlake.jobs.whole_contexts import contexts_of_split
from actlake.storage import Site

FROM, TO = Site(1, "mlp_in"), Site(1, "mlp_out")


@pytest.fixture(scope="module")
def reference(spoken):
    """transformers' own model, whole."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(spoken.model_folder).eval()


def shrunk(x: Tensor) -> Tensor:
    return 0.8 * x + 0.05


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("sites", [[Site(0)], [Site(1)], [Site(0), Site(1), Site(2)], [TO]])
def test_an_sae_that_gives_back_what_it_got_changes_nothing_at_all(spoken, sites) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 8)

    found = evaluate_in_model(same, spoken.chain, contexts, sites)

    assert (found.delta_ce.value, found.kl.value) == (0.0, 0.0)
    assert (found.delta_ce.low, found.delta_ce.high) == (0.0, 0.0)
    assert found.ce_recovered.value == 1.0
    assert found.kl_zero.value > 0.01


def test_zeros_recover_nothing(spoken) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 8)

    found = evaluate_in_model(torch.zeros_like, spoken.chain, contexts, [Site(1)], ablate="spliced")

    assert found.ce_recovered.value == 0.0
    assert found.kl_recovered.value == 0.0
    assert found.ce_sae == found.ce_zero


def test_the_mlp_itself_is_a_perfect_transcoder(spoken, reference) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 8)
    mlp = reference.model.layers[1].mlp

    perfect = evaluate_in_model(mlp, spoken.chain, contexts, [FROM], [TO])
    poor = evaluate_in_model(same, spoken.chain, contexts, [FROM], [TO])

    assert abs(perfect.delta_ce.value) < 1e-6
    assert perfect.kl.value < 1e-9
    assert poor.kl.value > 1e-3


def test_the_sae_is_given_the_rows_of_the_store_and_no_excluded_one(spoken) -> None:
    given: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        given.append(x)
        return shrunk(x)

    contexts = contexts_of_split(spoken.store(), "test", 100)
    found = evaluate_in_model(remember, spoken.chain, contexts, [Site(1)])

    here = spoken.contexts("test")
    allowed = spoken.allowed[here]
    stored = spoken.acts[Site(1)].reshape(*spoken.ids.shape, -1)[here][allowed]
    torch.testing.assert_close(torch.cat(given), torch.from_numpy(stored))
    assert found.num_spliced == allowed.sum()
    assert found.num_left == (~allowed).sum()
    assert found.num_contexts == len(here)


def by_hand(spoken, reference, sites: list[int], allowed: np.ndarray, change, *, everywhere):
    """Cross-entropy and KL of every position, with plain hooks."""
    here = spoken.contexts("test")
    ids = torch.from_numpy(spoken.ids[here].astype(np.int64))
    where = torch.from_numpy(allowed[here]).unsqueeze(-1) | everywhere
    clean: dict[int, Tensor] = {}

    def hook(layer):
        def splice(module, args, output):
            if layer not in clean:
                clean[layer] = output.clone()
                return None
            return torch.where(where, change(clean[layer]), output)

        return splice

    hooks = [reference.model.layers[layer].register_forward_hook(hook(layer)) for layer in sites]
    with torch.inference_mode():
        before, after = reference(ids).logits.double(), reference(ids).logits.double()
    for one in hooks:
        one.remove()
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    ce = -log_q[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return ce.numpy(), (log_p.exp() * (log_p - log_q)).sum(-1).numpy()


@pytest.mark.parametrize("layers", [[1], [0, 2]])
@pytest.mark.parametrize("exclude", ["default", "special", "nothing"])
def test_sae_and_crosscoder_give_what_hooks_by_hand_give(
    spoken, reference, layers, exclude
) -> None:
    allowed = {
        "default": spoken.allowed, "special": spoken.ids != spoken.end,
        "nothing": np.ones(spoken.ids.shape, bool),
    }[exclude]  # fmt: skip
    contexts = contexts_of_split(spoken.store(), "test", 100, exclude=exclude)

    found = evaluate_in_model(shrunk, spoken.chain, contexts, [Site(layer) for layer in layers])

    kept = allowed[spoken.contexts("test")]
    ce, kl = by_hand(spoken, reference, layers, allowed, shrunk, everywhere=False)
    zero_ce, zero_kl = by_hand(
        spoken, reference, layers, allowed, torch.zeros_like, everywhere=True
    )
    assert found.ce_sae.value == pytest.approx(ce[kept[:, :-1]].mean(), rel=1e-5)
    assert found.kl.value == pytest.approx(kl[kept].mean(), rel=1e-4)
    assert found.ce_zero.value == pytest.approx(zero_ce[kept[:, :-1]].mean(), rel=1e-5)
    assert found.kl_zero.value == pytest.approx(zero_kl[kept].mean(), rel=1e-4)


def test_each_site_of_a_crosscoder_is_tested_alone_and_noise_at_one_shows(
    spoken, reference
) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 100)
    sites = [Site(0), Site(1), Site(2)]

    def noise_but_at_the_deepest(x_NSD: Tensor) -> Tensor:
        noise = torch.randn(x_NSD.shape, generator=torch.Generator().manual_seed(0))
        noise[:, -1] = 0.8 * x_NSD[:, -1] + 0.05
        return noise

    found = evaluate_sites(noise_but_at_the_deepest, spoken.chain, contexts, sites)

    kept = spoken.allowed[spoken.contexts("test")][:, :-1]
    deepest, _ = by_hand(spoken, reference, [2], spoken.allowed, shrunk, everywhere=False)
    assert list(found) == [*map(str, sites), ALL_SITES]
    assert found["resid_post.2"].ce_sae.value == pytest.approx(deepest[kept].mean(), rel=1e-5)
    # All at once, the noise at the other two sites hardly shows; alone it does.
    kl = {name: scores.kl.value for name, scores in found.items()}
    assert kl[ALL_SITES] < 2 * kl["resid_post.2"]
    assert min(kl["resid_post.0"], kl["resid_post.1"]) > 10 * kl[ALL_SITES]


def test_an_interval_leaves_out_one_document_at_a_time(spoken, reference) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 100)

    found = evaluate_in_model(shrunk, spoken.chain, contexts, [Site(1)])

    ce, _ = by_hand(spoken, reference, [1], spoken.allowed, shrunk, everywhere=False)
    here = spoken.contexts("test")
    kept = spoken.allowed[here][:, :-1]
    documents = spoken.documents[here][:, :-1][kept]
    _, place = np.unique(documents, return_inverse=True)
    wanted = jackknife_mean(np.bincount(place, ce[kept]), np.bincount(place).astype(float))
    assert found.num_documents == len(here) * 2
    assert found.ce_sae.low == pytest.approx(wanted.low, rel=1e-5)
    assert found.ce_sae.high == pytest.approx(wanted.high, rel=1e-5)
    assert found.ce_recovered.low < found.ce_recovered.value < found.ce_recovered.high


def test_contexts_together_or_alone_give_the_same_numbers(spoken) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 7)
    mean = torch.from_numpy(spoken.store().moments(Site(1), split="train").mean)

    def run(tokens: int) -> ModelScores:
        return evaluate_in_model(
            shrunk, spoken.chain, contexts, [Site(1)], means={Site(1): mean}, tokens_at_once=tokens
        )

    alone, together = run(1), run(10_000)

    assert alone.as_metrics() == pytest.approx(together.as_metrics(), rel=1e-4)
    assert alone.ce_mean is not None
    assert alone.ce_mean.value != alone.ce_zero.value


def test_what_cannot_be_spliced_is_refused(spoken) -> None:
    contexts = contexts_of_split(spoken.store(), "test", 2)

    with pytest.raises(NotEnoughRows, match="no position to put a reconstruction at, in 0 context"):
        evaluate_in_model(same, spoken.chain, [], [Site(1)])
    with pytest.raises(InvalidSAE, match=r"hands out no attn_out\.0"):
        evaluate_in_model(same, spoken.chain, contexts, [Site(0, "attn_out")])
    with pytest.raises(InvalidSAE, match=r"to replace resid_post\.1, resid_post\.2"):
        evaluate_in_model(same, spoken.chain, contexts, [Site(1)], [Site(1), Site(2)])


class Tokens:
    """What `run_evals` asks of a store of tokens: the test contexts, all at once."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.store_batch_size_prompts, self.context_size = ids.shape

    def get_batch_tokens(self, batch_size: int | None = None) -> Tensor:
        return self.ids

    def reset_input_dataset(self) -> None:
        pass


def saved_sae(folder, architecture: str, hook: str):
    """An SAE of SAELens' own making, with weights at random."""
    from sae_lens import SAE

    about = {
        "architecture": architecture, "d_in": 16, "d_sae": 48, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": hook, "sae_lens_version": "6.54.12"},
    }  # fmt: skip
    if architecture == "topk":
        about |= {"k": 6, "rescale_acts_by_decoder_norm": False}
    sae = SAE.from_dict(about)
    made = torch.Generator().manual_seed(7)
    with torch.no_grad():
        decoder = torch.randn(48, 16, generator=made)
        sae.W_dec.copy_(decoder / decoder.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-0.3)
        sae.b_dec.copy_(torch.randn(16, generator=made) * 0.1)
        if architecture == "jumprelu":
            sae.threshold.fill_(0.4)
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.filterwarnings("ignore")  # those of SAELens' imports
def test_run_evals_of_saelens_agrees_to_five_digits(
    spoken, reference, tmp_path, architecture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens.evals import EvalConfig, run_evals
        from sae_lens.load_model import HookedProxyLM
        from sae_lens.training.activation_scaler import ActivationScaler

        theirs = saved_sae(tmp_path / "sae", architecture, "model.layers.1")
    here = spoken.contexts("test")
    ids = torch.from_numpy(spoken.ids[here].astype(np.int64))
    ours = read_sae(str(tmp_path / "sae"))

    metrics, per_feature = run_evals(
        sae=theirs,
        activation_store=Tokens(ids),
        model=HookedProxyLM(reference, tokenizer=None, hook_names=["model.layers.1"]),
        activation_scaler=ActivationScaler(),
        eval_config=EvalConfig(
            n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1, compute_kl=True,
            compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
            compute_variance_metrics=True, compute_featurewise_density_statistics=True,
        ),
        exclude_special_tokens=[spoken.end],
    )  # fmt: skip
    contexts = contexts_of_split(spoken.store(), "test", 100, exclude="special")
    found = evaluate_in_model(ours, spoken.chain, contexts, [Site(1)]).as_metrics()
    special = (spoken.ids == spoken.end)[here]
    rows = spoken.acts[Site(1)].reshape(*spoken.ids.shape, -1)[here][~special]
    scores = evaluate_rows(ours, [torch.from_numpy(rows)])

    kept = metrics["model_performance_preservation"] | metrics["model_behavior_preservation"]
    expected = {
        "ce_clean": kept["ce_loss_without_sae"],
        "ce_sae": kept["ce_loss_with_sae"],
        "ce_zero": kept["ce_loss_with_ablation"],
        "ce_recovered": kept["ce_loss_score"],
        "kl": kept["kl_div_with_sae"],
        "kl_zero": kept["kl_div_with_ablation"],
        "kl_recovered": kept["kl_div_score"],
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)
    quality = metrics["reconstruction_quality"]
    assert scores.explained_variance == pytest.approx(quality["explained_variance"], rel=1e-5)
    assert scores.mse == pytest.approx(quality["mse"], rel=1e-5)
    assert scores.cosine == pytest.approx(quality["cossim"], rel=1e-5)
    assert scores.l0 == pytest.approx(metrics["sparsity"]["l0"], rel=1e-6)
    assert scores.relative_norm == pytest.approx(metrics["shrinkage"]["l2_ratio"], rel=1e-5)
    assert scores.sites[0].relative_bias == pytest.approx(
        metrics["shrinkage"]["relative_reconstruction_bias"], rel=1e-5
    )
    np.testing.assert_allclose(scores.density, per_feature["feature_density"], rtol=1e-6)
