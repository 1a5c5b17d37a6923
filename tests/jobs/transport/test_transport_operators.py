"""Maps and metrics against scikit-learn, SciPy, float64 on rows, and their own identities."""

from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score

from actlake.jobs.jackknife import jackknife, jackknife_mean, over_groups
from actlake.jobs.transport.errors import InvalidRank, InvalidTransport, NotEnoughRows
from actlake.jobs.transport.metrics import r2, r2_along, rank_curves, spectrum
from actlake.jobs.transport.moments import PairSums
from actlake.jobs.transport.moments_file import TRAIN
from actlake.jobs.transport.moments_pass import compute_moments, request_moments
from actlake.jobs.transport.operators import AffineMap, Fit
from actlake.jobs.transport.pairs import Grid, Listed, Pair, resolve_pairs
from actlake.jobs.transport.parts import warn_if_few
from actlake.storage import Site, open_store

X, Y, TRAINED, TESTED = 9, 7, 900, 400


@pytest.fixture(scope="module")
def rows():
    """Well-conditioned rows of unequal widths, with means, half of it predictable."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TRAINED + TESTED, X)) @ rng.normal(size=(X, X)) + 3
    y = np.tanh(x) @ rng.normal(size=(X, Y)) + 0.5 * rng.normal(size=(len(x), Y)) - 2
    return x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:]


@pytest.fixture(scope="module")
def train(rows, centred):
    return centred(*rows[:2])


@pytest.fixture(scope="module")
def test(rows, centred):
    return centred(*rows[2:])


def scores(fitted, x, y) -> tuple[float, float]:
    return r2_score(y, fitted(x)), r2_score(y, fitted(x), multioutput="variance_weighted")


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
def test_ridge_is_that_of_scikit_learn(rows, train, test, alpha, intercept) -> None:
    x, y, new_x, new_y = rows
    theirs = Ridge(alpha=alpha, fit_intercept=intercept).fit(x, y)

    ours = Fit(train, intercept=intercept).ridge(alpha)

    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-9)
    np.testing.assert_allclose(ours(new_x), theirs.predict(new_x), atol=1e-8)
    found = r2(ours, test)
    np.testing.assert_allclose(
        (found.uniform, found.variance_weighted), scores(theirs.predict, new_x, new_y), atol=1e-9
    )


@pytest.mark.parametrize("intercept", [True, False])
def test_least_squares_is_that_of_scikit_learn(rows, train, intercept) -> None:
    theirs = LinearRegression(fit_intercept=intercept).fit(*rows[:2])

    ours = Fit(train, intercept=intercept).ols

    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-9)
    np.testing.assert_allclose(ours.bias, np.broadcast_to(theirs.intercept_, Y), atol=1e-8)


def test_the_chosen_alpha_is_the_one_that_predicts_other_rows_best(rows, train, test) -> None:
    x, y, new_x, new_y = rows
    alphas = [0.01, 1.0, 30.0, 300.0, 3000.0]
    theirs = {a: scores(Ridge(alpha=a).fit(x, y).predict, new_x, new_y) for a in alphas}

    for place, by in enumerate(("uniform", "variance_weighted")):
        best, found = Fit(train).best_ridge(alphas, test, by=by)

        np.testing.assert_allclose([found[a] for a in alphas], [theirs[a][place] for a in alphas])
        assert best.alpha == max(alphas, key=lambda a: theirs[a][place])


def test_procrustes_is_that_of_scipy(rows, centred) -> None:
    x, y = rows[0][:, :Y], rows[1]

    ours = Fit(centred(x, y)).procrustes

    rotation, _ = orthogonal_procrustes(x - x.mean(0), y - y.mean(0))
    np.testing.assert_allclose(ours.weight, rotation.T, atol=1e-10)
    np.testing.assert_allclose(ours.weight @ ours.weight.T, np.eye(Y), atol=1e-12)


def test_the_whitened_r2_is_that_of_whitened_rows(rows, train, test) -> None:
    _, _, x, y = rows
    fitted = Fit(train).ridge(10.0)

    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(y.T, bias=True)))

    expected = r2_score(y @ whiten.T, fitted(x) @ whiten.T)
    assert abs(r2(fitted, test).whitened - expected) < 1e-12


def test_r2_along_a_direction_is_that_of_the_projected_rows(rows, train, test) -> None:
    _, _, x, y = rows
    directions = np.random.default_rng(1).normal(size=(5, Y))
    fitted = Fit(train).ols

    found = r2_along(fitted, test, directions)

    expected = r2_score(y @ directions.T, fitted(x) @ directions.T, multioutput="raw_values")
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
def test_curves_over_ranks_are_the_metrics_of_each_map(train, test, intercept) -> None:
    fit = Fit(train, intercept=intercept)

    for maps in (cut(fit.ridge(5.0)) for cut in (fit.truncated, fit.reduced_rank, fit.canonical)):
        curves = rank_curves(maps, test)

        one_by_one = [r2(maps.of_rank(rank), test) for rank in range(maps.max_rank + 1)]
        assert maps.max_rank == min(X, Y)
        for name in ("uniform", "variance_weighted", "whitened"):
            expected = [getattr(found, name) for found in one_by_one]
            np.testing.assert_allclose(getattr(curves, name), expected, atol=1e-10, err_msg=name)


def test_each_family_of_ranks_is_the_best_in_its_own_metric(train) -> None:
    fit = Fit(train)
    svd, reduced, cca = (
        rank_curves(maps, train)
        for maps in (cut(fit.ols) for cut in (fit.truncated, fit.reduced_rank, fit.canonical))
    )
    ceiling = spectrum(train).ceiling

    np.testing.assert_allclose(cca.whitened, ceiling, atol=1e-10)
    assert (cca.whitened >= np.maximum(svd.whitened, reduced.whitened) - 1e-12).all()
    best = np.maximum(svd.variance_weighted, cca.variance_weighted)
    assert (reduced.variance_weighted >= best - 1e-12).all()
    assert (cca.whitened[1:-1] > svd.whitened[1:-1] + 1e-3).any()


def test_at_full_rank_in_sample_all_families_are_least_squares_and_the_ceiling(train) -> None:
    fit = Fit(train)
    found = r2(fit.ols, train)

    for maps in (cut(fit.ols) for cut in (fit.truncated, fit.reduced_rank, fit.canonical)):
        np.testing.assert_allclose(maps.of_rank(maps.max_rank).weight, fit.ols.weight, atol=1e-9)
    assert abs(spectrum(train).efficiency(np.array([0] * Y + [found.whitened]))[-1] - 1) < 1e-10


@pytest.mark.parametrize("intercept", [True, False])
def test_all_families_of_ranks_are_cut_from_one_ridge_map(train, test, intercept) -> None:
    fit = Fit(train, intercept=intercept)
    ridge = fit.ridge(500.0)

    families = [cut(ridge) for cut in (fit.truncated, fit.reduced_rank, fit.canonical)]

    for maps in families:
        np.testing.assert_allclose(maps.of_rank(maps.max_rank).weight, ridge.weight, atol=1e-9)
        assert rank_curves(maps, test).uniform[-1] == pytest.approx(r2(ridge, test).uniform)


def test_the_reduced_ridge_map_is_the_truncated_fit_of_rows_with_a_penalty(rows, train) -> None:
    x, y = rows[:2]
    alpha, rank = 300.0, 3
    # Ridge is least squares on rows to which √α of each dimension is added, as rows of zeros.
    padded_x = np.vstack([x - x.mean(0), np.sqrt(alpha) * np.eye(X)])
    padded_y = np.vstack([y - y.mean(0), np.zeros((X, Y))])
    coefficients = np.linalg.lstsq(padded_x, padded_y, rcond=None)[0]
    _, _, directions = np.linalg.svd(padded_x @ coefficients, full_matrices=False)

    ours = Fit(train).reduced_rank(Fit(train).ridge(alpha)).of_rank(rank)

    by_hand = (coefficients @ directions[:rank].T @ directions[:rank]).T
    np.testing.assert_allclose(ours.weight, by_hand, atol=1e-9)


def test_canonical_correlations_are_those_of_an_svd_of_the_rows_and_of_scikit_learn(
    rows, train
) -> None:
    x, y = rows[:2]
    left, _ = np.linalg.qr(x - x.mean(0))
    right, _ = np.linalg.qr(y - y.mean(0))
    exact = np.linalg.svd(left.T @ right, compute_uv=False)
    theirs = CCA(n_components=2, max_iter=5000, tol=1e-10).fit(x, y)
    a, b = theirs.transform(x, y)

    found = spectrum(train)

    np.testing.assert_allclose(found.correlations, exact, atol=1e-10)
    by_sklearn = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(found.correlations[:2], by_sklearn, atol=1e-4)
    assert abs(found.pillai_trace - (exact**2).sum()) < 1e-9


def test_what_chance_gives_of_the_correlations_is_the_mean_over_permuted_rows(
    rows, train, centred
) -> None:
    x, y = rows[:2]
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(x - x.mean(0))
    right, _ = np.linalg.qr(y - y.mean(0))
    traces = [np.square(left.T @ right[rng.permutation(len(y))]).sum() for _ in range(400)]

    related = spectrum(train)
    unrelated = spectrum(centred(x, y[rng.permutation(len(y))]))

    for found in (related, unrelated):
        error = 4 * np.std(traces) / np.sqrt(len(traces))
        assert found.permuted_pillai_trace == pytest.approx(np.mean(traces), abs=error)
    assert related.pillai_trace > 30 * related.permuted_pillai_trace
    assert unrelated.pillai_trace < np.max(traces)


def test_a_layer_to_itself_is_the_identity(rows, centred) -> None:
    itself = centred(rows[0], rows[0])
    fit = Fit(itself)

    for fitted in (fit.ols, fit.procrustes, fit.identity, fit.canonical(fit.ols).of_rank(X)):
        np.testing.assert_allclose(fitted.weight, np.eye(X), atol=1e-9)
        found = r2(fitted, itself)
        np.testing.assert_allclose(
            (found.uniform, found.variance_weighted, found.whitened), 1, atol=1e-12
        )
    assert r2(fit.mean, itself).uniform == 0.0
    assert spectrum(itself).pillai_trace == pytest.approx(X)


def test_there_is_no_identity_between_unequal_widths(train) -> None:
    assert Fit(train).identity is None
    assert Fit(train).procrustes.weight.shape == (Y, X)


def test_a_singular_covariance_is_mapped_by_its_rank(rows, centred) -> None:
    x, y, new_x, new_y = rows
    doubled = [
        np.concatenate([a, a[:, :3] * 100, np.ones((len(a), 1))], axis=1) for a in (x, new_x)
    ]
    moments = centred(doubled[0], y)
    fit = Fit(moments)

    found = r2(fit.ols, centred(doubled[1], new_y))

    theirs = LinearRegression().fit(x, y)
    assert moments.whiten_x.rank == X
    assert fit.canonical(fit.ols).max_rank == min(X, Y)
    assert abs(found.uniform - r2_score(new_y, theirs.predict(new_x))) < 1e-9
    assert np.isfinite(fit.ridge(1e-9).weight).all()


def test_a_dimension_without_variance_counts_as_scikit_learn_counts_it(rows, centred) -> None:
    x, y, new_x, new_y = (a.copy() for a in rows)
    y[:, 2] = new_y[:, 2] = 4.0
    fit = Fit(centred(x, y))

    found = r2(fit.ols, centred(new_x, new_y))

    assert abs(found.uniform - r2_score(new_y, fit.ols(new_x))) < 1 / Y + 1e-9
    assert centred(x, y).whiten_y.rank == Y - 1
    assert np.isfinite(found.whitened)


def test_on_real_rows_maps_predict_as_those_of_scikit_learn(smollm2_store: Path, tmp_path) -> None:
    store = open_store(smollm2_store)
    pair = Pair(Site(3), Site(9))
    found = compute_moments([store], request_moments([store], [pair], groups=2), tmp_path)
    kept = {
        split: np.flatnonzero(
            ~store.excluded(whole) & (store.splits_of(whole) == store.schema.splits.index(split))
        )
        for whole in [store.schema.unit_extent(0).__class__(0, len(store))]
        for split in ("train", "test")
    }
    x, y, new_x, new_y = (
        store[site].take(kept[split]).astype(np.float64)
        for split in ("train", "test")
        for site in (pair.source, pair.target)
    )
    train, test = found.moments(pair, TRAIN), found.moments(pair, "test")
    assert train.count == len(x)

    for alpha in (100.0, 1e4):
        theirs = Ridge(alpha=alpha).fit(x, y)
        ours = Fit(train).ridge(alpha)

        mine = r2(ours, test)
        expected = scores(theirs.predict, new_x, new_y)
        np.testing.assert_allclose((mine.uniform, mine.variance_weighted), expected, atol=1e-5)
        spread = np.abs(ours(new_x) - theirs.predict(new_x)) / new_y.std(axis=0)
        assert spread.max() < 1e-3
        assert np.sqrt((spread**2).mean()) < 1e-5


def sums_of(x, y, origin_x, origin_y) -> PairSums:
    dx, dy = x - origin_x, y - origin_y
    return PairSums(
        len(x), origin_x, origin_y, dx.sum(0), dy.sum(0), dx.T @ dx, dy.T @ dx, dy.T @ dy
    )


def test_the_jackknife_leaves_out_one_group_after_the_other(rows, train) -> None:
    _, _, x, y = rows
    fitted = Fit(train).ridge(10.0)
    groups = np.array_split(np.arange(TESTED), 8)
    parts = [sums_of(x[g], y[g], np.full(X, 3.0), np.full(Y, -2.0)) for g in groups]
    total = sum(parts[1:], parts[0])

    found = over_groups(total, parts, lambda sums: r2(fitted, sums.centred(1e-12)).uniform)

    without = [r2_score(np.delete(y, g, axis=0), fitted(np.delete(x, g, axis=0))) for g in groups]
    spread = np.sqrt(7 / 8 * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert found.value == pytest.approx(r2_score(y, fitted(x)))
    assert found.half_width == pytest.approx(2.365 * spread)


def test_the_jackknife_of_a_mean_is_the_usual_interval_and_needs_two_groups() -> None:
    values = np.random.default_rng(0).normal(size=20)

    found = jackknife_mean(values, np.ones(20))

    assert found.value == pytest.approx(values.mean())
    assert found.half_width == pytest.approx(2.093 * values.std(ddof=1) / np.sqrt(20))
    assert np.isnan(jackknife(0.5, [0.4]).low)


SITES = [Site(0, "resid_pre"), *(Site(layer) for layer in range(6)), Site(2, "mlp_out")]


def test_all_pairs_go_from_every_site_to_every_deeper_one() -> None:
    pairs = resolve_pairs("all", SITES, SITES)

    assert len(pairs) == 8 * 7 // 2
    assert Pair(Site(2, "mlp_out"), Site(2)) in pairs
    assert Pair(Site(2), Site(2, "mlp_out")) not in pairs
    assert len(resolve_pairs("all", SITES, SITES, one_store=False)) == 64
    assert len(resolve_pairs("all", SITES, SITES, offsets=(0, 1))) == 56


def test_grids_and_lists_name_their_pairs() -> None:
    grid = resolve_pairs(Grid(layers=(0, 3), k=(1, 4), beyond="skip"), SITES, SITES)
    listed = resolve_pairs(Listed(listed=("resid_pre.3->resid_post.4@-1",)), SITES, SITES)

    assert [str(pair) for pair in grid] == [
        "resid_post.0->resid_post.1", "resid_post.0->resid_post.4", "resid_post.3->resid_post.4",
    ]  # fmt: skip
    assert listed == (Pair(Site(2), Site(4), -1),)
    assert [pair.distance for pair in grid] == [1, 4, 1]


def test_what_cannot_be_fitted_is_refused_by_name(train, centred) -> None:
    with pytest.raises(Exception, match=r"Layer 3 \+ 4 is above the last layer .* 5"):
        resolve_pairs(Grid(layers=(0, 3), k=(1, 4)), SITES, SITES)
    with pytest.raises(Exception, match=r"target of .* is not stored; the last stored layer is 5"):
        resolve_pairs(Listed(listed=("resid_post.0->resid_post.9",)), SITES, SITES)
    with pytest.raises(Exception, match=r"source of .* is not stored\n.*resid_post.1"):
        resolve_pairs(Listed(listed=("mlp_out.1->resid_post.4",)), [Site(1)], SITES)
    with pytest.raises(Exception, match=r"Cannot read the pair 'resid_post.0'"):
        resolve_pairs(Listed(listed=("resid_post.0",)), SITES, SITES)
    with pytest.raises(InvalidTransport, match="no pair to fit"):
        resolve_pairs("all", SITES[:1], SITES[:1])
    with pytest.raises(InvalidTransport, match="alpha is -1"):
        Fit(train).ridge(-1.0)
    with pytest.raises(InvalidRank, match="no map of rank 8: ranks go from 0 to 7"):
        Fit(train).canonical(Fit(train).ols).of_rank(8)
    with pytest.raises(NotEnoughRows, match="at least 2 rows, and there are 1"):
        sums_of(np.ones((1, 2)), np.ones((1, 2)), np.ones(2), np.ones(2)).centred()
    assert warn_if_few(5_000, 576) is not None
    assert "500 rows to fit a map from 576" in str(warn_if_few(500, 576))
    assert warn_if_few(5_760, 576) is None
    assert AffineMap("mean", np.zeros((2, 2)), np.ones(2))(np.ones((3, 2))).shape == (3, 2)
