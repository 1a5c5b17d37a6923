"""The pass over the rows: which rows, how exact, how often, and from where it goes on."""

from pathlib import Path

import numpy as np
import pytest

from actlake.jobs.transport import moments_pass
from actlake.jobs.transport.block_sums import NonFiniteRows
from actlake.jobs.transport.blocks import Design
from actlake.jobs.transport.errors import MomentsMismatch, NotEnoughRows
from actlake.jobs.transport.metrics import r2
from actlake.jobs.transport.moments_file import TRAIN, StoredMoments
from actlake.jobs.transport.moments_pass import (
    compute_moments,
    plan_moments,
    request_moments,
    shares_of,
)
from actlake.jobs.transport.operators import Fit
from actlake.jobs.transport.pairs import Pair, resolve_pairs
from actlake.jobs.transport.parts import rows_of_part
from actlake.platform.cluster import ClusterConfig, session
from actlake.storage import ActivationStore, Site, open_store

NEAR = Pair(Site(0), Site(1))
AHEAD = Pair(Site(0), Site(2), 1)
BEHIND = Pair(Site(1), Site(2), -2)
PAIRS = (NEAR, Pair(Site(0), Site(3)), Pair(Site(1), Site(3)), AHEAD, BEHIND)


def wanted_rows(layers, split: str, offset: int, *, excluded: bool = False) -> np.ndarray:
    """By its definition: row i and row i + offset are in one context and both count."""
    rows = []
    for i in range(len(layers.ids)):
        j = i + offset
        if layers.split[i] != split or not 0 <= j < len(layers.ids):
            continue
        if layers.context[i] != layers.context[j]:
            continue
        if excluded or (layers.kept[i] and layers.kept[j]):
            rows.append(i)
    return np.array(rows)


def small(store: ActivationStore, pairs=PAIRS, **options):
    return request_moments([store], pairs, **({"groups": 5, "part_rows": 256} | options))


@pytest.fixture(scope="module")
def found(layers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredMoments:
    store = open_store(layers_folder)
    return compute_moments([store], small(store), tmp_path_factory.mktemp("moments"))


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("offset", [0, 1, -2, 31, -40])
def test_every_row_that_counts_is_in_exactly_one_part(layers, store, offset, excluded) -> None:
    shares = shares_of([store], small(store))

    found = {
        name: np.concatenate(
            [
                rows_of_part(store, shares.of_document, part, offset, excluded=excluded)
                for part in shares.parts_of(name)
            ]
        )
        for name in shares.names
    }

    train = np.concatenate([found["fit"], found["validate"]])
    test = np.concatenate([found[name] for name in shares.test_groups])
    assert sorted(train) == wanted_rows(layers, "train", offset, excluded=excluded).tolist()
    assert sorted(test) == wanted_rows(layers, "test", offset, excluded=excluded).tolist()


def test_groups_are_runs_of_whole_test_documents_of_about_one_size(layers, store) -> None:
    shares = shares_of([store], small(store))

    groups = shares.of_document[
        [d for d, doc in enumerate(layers.documents) if doc.split == "test"]
    ]
    sizes = [shares.rows_of(name) for name in shares.test_groups]
    assert (np.diff(groups) >= 0).all()
    assert len(sizes) == 5
    assert sum(sizes) == (layers.split == "test").sum()
    assert max(sizes) - min(sizes) < 160  # documents have 20 to 140 rows and stay whole


@pytest.mark.parametrize("pair", [NEAR, AHEAD, BEHIND])
def test_moments_of_ill_conditioned_rows_are_those_of_float64(layers, found, centred, pair) -> None:
    for share, split in ((TRAIN, "train"), ("test", "test")):
        rows = wanted_rows(layers, split, pair.offset)
        x, y = layers.acts[pair.source][rows], layers.acts[pair.target][rows + pair.offset]
        exact = centred(x, y)

        ours = found.moments(pair, share)

        assert ours.count == len(rows)
        deviation_x, deviation_y = np.sqrt(np.diagonal(exact.xx)), np.sqrt(np.diagonal(exact.yy))
        np.testing.assert_allclose((ours.mean_x - exact.mean_x) / deviation_x, 0, atol=1e-7)
        for name, scale in (
            ("xx", np.outer(deviation_x, deviation_x)),
            ("yx", np.outer(deviation_y, deviation_x)),
            ("yy", np.outer(deviation_y, deviation_y)),
        ):
            difference = (getattr(ours, name) - getattr(exact, name)) / scale
            assert np.abs(difference).max() < 3e-7, name


def test_maps_from_ill_conditioned_moments_predict_as_those_of_float64(
    layers, found, centred
) -> None:
    train, test = layers.rows("train"), layers.rows("test")
    x, y = layers.acts[NEAR.source], layers.acts[NEAR.target]
    exact_train, exact_test = centred(x[train], y[train]), centred(x[test], y[test])
    assert np.linalg.cond(exact_train.xx) > 1e8

    ours = r2(Fit(found.moments(NEAR, TRAIN)).ols, found.moments(NEAR, "test"))
    exact = r2(Fit(exact_train).ols, exact_test)

    assert abs(ours.uniform - exact.uniform) < 1e-6
    assert abs(ours.variance_weighted - exact.variance_weighted) < 1e-6
    assert abs(ours.whitened - exact.whitened) < 1e-6


def test_groups_and_shares_add_up(found) -> None:
    for pair in PAIRS:
        whole = found.sums(pair, "test")
        groups = [found.sums(pair, name) for name in found.groups]

        together = sum(groups[1:], groups[0])

        assert together.count == whole.count
        np.testing.assert_allclose(
            together.yx, whole.yx, rtol=1e-5, atol=1e-5 * np.abs(whole.yx).max()
        )


def test_shared_blocks_are_in_the_design_once() -> None:
    sites = [Site(layer) for layer in range(8)]

    design = Design.of(resolve_pairs("all", sites, sites), two_stores=False)

    assert design.num_blocks == 8 + 28
    assert [design.alignments[0].runs(place) for place in range(8)] == [
        [(0, place + 1)] for place in range(8)
    ]


def test_a_pass_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    store, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(moments_pass, "SPAN_PARTS", 4)
    monkeypatch.setattr(moments_pass, "CHECKPOINT_EVERY_S", 0.0)
    undisturbed = compute_moments([store], small(store), tmp_path / "whole").folder
    parts = len(shares_of([store], small(store)).parts)
    kills = 0

    for after in range(1, 200):
        told = 0

        def on_rows(rows: int, after: int = after) -> None:
            nonlocal told
            told += 1
            if told > after:
                raise KeyboardInterrupt

        try:
            again = compute_moments([store], small(store), tmp_path / "killed", on_rows=on_rows)
            break
        except KeyboardInterrupt:
            kills += 1

    assert 1 < kills < parts
    for file in sorted(undisturbed.iterdir()):
        assert (again.folder / file.name).read_bytes() == file.read_bytes(), file.name


def test_moments_are_computed_once_and_answer_for_fewer_pairs(store, tmp_path, monkeypatch) -> None:
    first = compute_moments([store], small(store), tmp_path)
    monkeypatch.setattr(moments_pass, "sum_part", None)

    again = compute_moments([store], small(store), tmp_path)
    fewer = compute_moments([store], small(store, PAIRS[:2]), tmp_path)

    assert again.folder == fewer.folder == first.folder
    assert np.array_equal(fewer.sums(NEAR, "fit").yx, first.sums(NEAR, "fit").yx)


def test_moments_of_rows_in_another_dtype_are_others(layers, store, tmp_path) -> None:
    small_store = open_store(layers.build(tmp_path / "int8", dtype="int8"))
    assert small_store.fingerprint == store.fingerprint
    exact = compute_moments([store], small(store), tmp_path / "moments")

    rounded = compute_moments([small_store], small(small_store), tmp_path / "moments")

    assert rounded.folder != exact.folder
    assert not np.array_equal(rounded.sums(NEAR, "fit").yx, exact.sums(NEAR, "fit").yx)
    with pytest.raises(MomentsMismatch, match=r"are of resid_post\.0 as float32; .* as int8\nhint"):
        exact.check([small_store])


@pytest.mark.ray
def test_workers_on_ray_sum_the_same_bytes(store, found, tmp_path) -> None:
    with session(ClusterConfig(address="local", num_cpus=2, object_store_mb=100)) as cluster:
        there = compute_moments([store], small(store), tmp_path, session=cluster, workers=2)

    for file in sorted(found.folder.glob("*.safetensors")):
        assert (there.folder / file.name).read_bytes() == file.read_bytes(), file.name


def test_float64_products_are_an_option(layers, store, centred, tmp_path) -> None:
    found = compute_moments([store], small(store, [NEAR], precision="float64"), tmp_path)

    rows = layers.rows("test")
    exact = centred(layers.acts[Site(0)][rows], layers.acts[Site(1)][rows])
    scale = np.sqrt(np.outer(np.diagonal(exact.yy), np.diagonal(exact.xx)))
    # What is left is the rounding of the difference from the origin, read as float32.
    assert np.abs((found.moments(NEAR, "test").yx - exact.yx) / scale).max() < 1e-11


def test_the_plan_knows_memory_and_disk(store, found) -> None:
    request = small(store)

    plan = plan_moments([store], request, shares_of([store], request), threads=2)

    on_disk = sum(file.stat().st_size for file in found.folder.iterdir())
    assert plan.blocks == (3 + 3) + 2 * 3
    assert 0.5 * plan.disk_bytes < on_disk < 2 * plan.disk_bytes + 100_000
    assert "12 blocks of 7 columns" in str(plan)


def test_two_stores_of_other_widths_share_their_rows(
    make_layers, layers, store, centred, tmp_path
) -> None:
    other = make_layers(dim=7)
    other.__dict__.update(
        {name: getattr(layers, name) for name in ("ids", "contexts", "documents")}
    )
    rows = len(layers.ids)
    other.acts = {
        site: layers.acts[site][:, :7] * 2 + np.arange(rows)[:, None] % 3
        for site in (Site(0), Site(1))
    }
    theirs = open_store(other.build(tmp_path / "other", sites=(Site(0), Site(1)), name="second"))
    pair = Pair(Site(2), Site(0))
    request = request_moments([store, theirs], [pair], groups=3, part_rows=256)

    moments = compute_moments([store, theirs], request, tmp_path / "moments").moments(pair, "test")

    test = layers.rows("test")
    exact = centred(layers.acts[Site(2)][test], other.acts[Site(0)][test])
    assert moments.yx.shape == (7, 12)
    scale = np.sqrt(np.outer(np.diagonal(exact.yy), np.diagonal(exact.xx)))
    assert np.abs((moments.yx - exact.yx) / scale).max() < 3e-7


def test_what_cannot_be_summed_is_refused_by_name(
    layers, store, found, make_layers, tmp_path
) -> None:
    with pytest.raises(NotEnoughRows, match=r"There is no split 'valid'.*\n.*there is test, train"):
        shares_of([store], small(store, test="valid"))
    with pytest.raises(MomentsMismatch, match=r"not of the pair resid_post\.2->resid_post\.3"):
        found.sums(Pair(Site(2), Site(3)), "fit")
    with pytest.raises(MomentsMismatch, match="token offsets -2, 0, 1, not 5"):
        found.sums(Pair(Site(0), Site(1), 5), "fit")
    broken = make_layers()
    broken.acts[Site(1)][np.flatnonzero(broken.kept)[7], 3] = np.inf
    holed = open_store(broken.build(tmp_path / "broken", nonfinite="count"))
    with pytest.raises(NonFiniteRows, match=r"Rows of resid_post\.1 hold infinities"):
        compute_moments([holed], small(holed), tmp_path / "moments")
    other = make_layers(seed=1)
    with pytest.raises(MomentsMismatch, match="are of the store with fingerprint"):
        found.check([open_store(other.build(tmp_path / "other"))])
