"""Numbers over rows, against their formulas in float64 and against SAELens on the same rows."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actlake.jobs.sae import evaluation
from actlake.jobs.sae.errors import InvalidSAE, NotEnoughRows
from actlake.jobs.sae.evaluation import evaluate_rows
from actlake.jobs.sae.trained import TrainedSAE


@dataclass
class Linear:
    """A coder of its own weights, which counts the rows it is given at once."""

    encoder: Tensor
    decoder: Tensor
    bias: Tensor
    at_once: list[int] = field(default_factory=list)

    @property
    def d_sae(self) -> int:
        return self.encoder.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        self.at_once.append(len(x))
        return (x.flatten(1) @ self.encoder - 0.5).relu()

    def reconstruct(self, x: Tensor, f: Tensor) -> Tensor:
        return (f @ self.decoder).unflatten(1, self.bias.shape) + self.bias


def coder(shape: tuple[int, ...], out: tuple[int, ...], *, d_sae: int = 20) -> Linear:
    made = torch.Generator().manual_seed(1)
    width, wide = int(np.prod(shape)), int(np.prod(out))
    # Multiples of 1/64, as the rows are of 1/8: products are exact, however rows are batched.
    encoder = (torch.randn(width, d_sae, generator=made) / width**0.5 * 64).round() / 64
    encoder[:, -3:] = 0  # three that are always dead
    return Linear(encoder, torch.randn(d_sae, wide, generator=made) / 9, torch.ones(out))


def rows(*shape: int, mean: float = 0.0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return (drawn * 8).round() / 8 + mean


def fvu(x: np.ndarray, made: np.ndarray) -> float:
    x, made = x.astype(np.float64), made.astype(np.float64)
    return float(((x - made) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


@settings(deadline=None, max_examples=15)
@given(cuts=st.sets(st.integers(1, 199), max_size=6), mean=st.sampled_from([0.0, 30.0, 1e3]))
def test_every_number_is_its_formula_over_all_rows_however_they_are_cut(cuts, mean) -> None:
    x, sae = rows(200, 6, mean=mean), coder((6,), (6,))
    f = sae.encode(x)
    made = sae.reconstruct(x, f).double().numpy()
    exact = x.double().numpy()
    norms, made_norms = np.linalg.norm(exact, axis=1), np.linalg.norm(made, axis=1)

    found = evaluate_rows(sae, x.tensor_split(sorted(cuts)))

    active = (f != 0).numpy()
    assert found.num_rows == 200
    assert found.fvu == pytest.approx(fvu(exact, made), rel=1e-6)
    assert found.explained_variance == 1 - found.fvu
    assert found.mse == pytest.approx(((exact - made) ** 2).sum(1).mean(), rel=1e-6)
    assert found.l0 == active.sum(1).mean()
    np.testing.assert_array_equal(found.density, active.mean(0))
    np.testing.assert_array_equal(found.l0_counts, np.bincount(active.sum(1)))
    assert found.dead_share == (active.sum(0) == 0).mean() >= 3 / 20
    cosine = (exact * made).sum(1) / (norms * made_norms)
    assert found.cosine == pytest.approx(cosine.mean(), rel=1e-6)
    assert found.relative_norm == pytest.approx((made_norms / norms).mean(), rel=1e-6)
    np.testing.assert_allclose(found.max_active, f.max(0).values.numpy())
    assert found.sites[0].mean_norm == pytest.approx(norms.mean(), rel=1e-6)


def test_the_mean_for_every_row_explains_nothing() -> None:
    x = rows(300, 5, mean=7.0)
    nothing = Linear(torch.zeros(5, 4), torch.zeros(4, 5), x.mean(0))

    found = evaluate_rows(nothing, [x])

    assert found.fvu == pytest.approx(1.0, abs=1e-6)
    assert (found.l0, found.dead_share) == (0.0, 1.0)
    assert np.isnan(found.mean_active).all()


def test_a_transcoder_is_held_against_the_rows_it_predicts() -> None:
    x, y, sae = rows(100, 6), rows(100, 4, mean=2.0), coder((6,), (4,))

    found = evaluate_rows(sae, [(x[:30], y[:30]), (x[30:], y[30:])])

    made = sae.reconstruct(x, sae.encode(x))
    assert found.fvu == pytest.approx(fvu(y.numpy(), made.numpy()), rel=1e-6)


def test_a_crosscoder_has_a_number_for_each_of_its_sites() -> None:
    x, sae = rows(100, 3, 4, mean=1.0), coder((3, 4), (3, 4))
    x[:, 2] *= 50  # a deep layer's norms do not drown the others

    found = evaluate_rows(sae, x.split(40))

    made = sae.reconstruct(x, sae.encode(x)).numpy()
    each = [fvu(x[:, s].numpy(), made[:, s]) for s in range(3)]
    assert [site.fvu for site in found.sites] == pytest.approx(each, rel=1e-6)
    assert found.fvu == pytest.approx(np.mean(each), rel=1e-6)
    assert set(found.as_metrics()) >= {"fvu", "fvu/0", "fvu/1", "fvu/2"}


def test_only_a_bounded_block_of_latents_is_in_memory(monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "_LATENTS_AT_ONCE", 20 * 16)
    sae = coder((6,), (6,))

    found = evaluate_rows(sae, iter([rows(1000, 6)]), rows=500)

    assert max(sae.at_once) == 16
    assert found.num_rows == 500 == sum(sae.at_once)


def test_quantiles_and_histograms_count_every_row_and_latent() -> None:
    found = evaluate_rows(coder((6,), (6,)), [rows(400, 6)])

    counts, edges = found.density_histogram()
    per_row = np.repeat(np.arange(len(found.l0_counts)), found.l0_counts)
    assert counts.sum() == 20
    assert (edges[0], edges[-1]) == (-9, 0)
    assert len(found.log_density) == round(20 * (1 - found.dead_share))
    for share in (0.01, 0.5, 0.99, 1.0):
        assert found.l0_quantile(share) == np.quantile(per_row, share, method="inverted_cdf")


def test_no_rows_and_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(NotEnoughRows, match="no rows to evaluate on"):
        evaluate_rows(coder((6,), (6,)), [])
    with pytest.raises(InvalidSAE, match=r"shape \(4,\) were made, .* rows of shape \(6,\)"):
        evaluate_rows(coder((6,), (4,)), [rows(10, 6)])


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_an_sae_in_use_is_scored_by_what_it_gives(architecture) -> None:
    made = torch.Generator().manual_seed(3)
    tensors = {
        "W_enc": torch.randn(6, 30, generator=made),
        "W_dec": torch.randn(30, 6, generator=made),
        "b_dec": torch.randn(6, generator=made),
        **{name: torch.randn(30, generator=made) for name in ("b_enc", "b_gate", "b_mag")},
        "r_mag": torch.zeros(30),
        "threshold": torch.rand(30, generator=made),
    }
    about = {"architecture": architecture, "k": 4, "normalize_activations": "none"}
    sae, x = TrainedSAE(about, tensors), rows(90, 6)

    found = evaluate_rows(sae, [x])

    assert found.fvu == pytest.approx(fvu(x.numpy(), sae(x).numpy()), rel=1e-5)
    assert found.l0 == pytest.approx(float((sae.encode(x) != 0).sum(1).double().mean()))
