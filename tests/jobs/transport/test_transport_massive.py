"""Massive rows are left out of a pair, at source and target, and of no other pair."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from actlake.jobs.massive_rows import find_massive
from actlake.jobs.transport import Listed, MomentsConfig, RowsConfig, TransportConfig, fit_transport
from actlake.jobs.transport.errors import InvalidTransport
from actlake.jobs.transport.moments_file import TRAIN, StoredMoments
from actlake.jobs.transport.moments_pass import compute_moments, request_moments
from actlake.jobs.transport.pairs import Pair
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site, open_store

PAIRS = (
    Pair(Site(0), Site(1)), Pair(Site(0), Site(2)), Pair(Site(0), Site(3)), Pair(Site(1), Site(2)),
    Pair(Site(0), Site(2), 1), Pair(Site(1), Site(3), -2),
)  # fmt: skip
UNTRACKED = TrackingConfig(wandb="disabled")


class Uneven:
    """A store in which some rows are massive at one layer or at two, and at no others."""

    def __init__(self, layers, folder: Path) -> None:
        rng = np.random.default_rng(1)
        self.layers = layers
        kept = np.flatnonzero(layers.kept)
        drawn = rng.permutation(kept)[:60]
        self.massive = {Site(1): drawn[:25], Site(2): drawn[15:40], Site(3): drawn[40:60]}
        for site, rows in self.massive.items():
            layers.acts[site][rows] *= rng.uniform(20, 60, (len(rows), 1)).astype(np.float32)
        self.folder = layers.build(folder)

    def wanted(self, split: str, pair: Pair) -> np.ndarray:
        """Rows of a pair by the definition, the medians taken here."""
        layers, rows = self.layers, []
        massive = {
            site: norms > 10 * np.median(norms[layers.rows("train")])
            for site, norms in (
                (site, np.linalg.norm(acts.astype(np.float64), axis=1))
                for site, acts in layers.acts.items()
            )
        }
        for i in range(len(layers.ids)):
            j = i + pair.offset
            if layers.split[i] != split or not 0 <= j < len(layers.ids):
                continue
            if layers.context[i] != layers.context[j] or not (layers.kept[i] and layers.kept[j]):
                continue
            if not (massive[pair.source][i] or massive[pair.target][j]):
                rows.append(i)
        return np.array(rows)


@pytest.fixture(scope="module")
def uneven(make_layers, tmp_path_factory) -> Uneven:
    return Uneven(make_layers(), tmp_path_factory.mktemp("uneven") / "store")


@pytest.fixture(scope="module")
def found(uneven, tmp_path_factory) -> StoredMoments:
    store = open_store(uneven.folder)
    request = request_moments(
        [store], PAIRS, groups=4, part_rows=256, max_norm=10.0, precision="float64"
    )
    return compute_moments([store], request, tmp_path_factory.mktemp("moments"))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_moments_from_one_pass_are_those_of_a_pass_over_the_pairs_own_rows(
    uneven, found, centred, pair
) -> None:
    for share, split in ((TRAIN, "train"), ("test", "test")):
        rows = uneven.wanted(split, pair)
        x = uneven.layers.acts[pair.source][rows]
        y = uneven.layers.acts[pair.target][rows + pair.offset]
        exact = centred(x, y)

        ours = found.moments(pair, share)

        assert ours.count == len(rows)
        dx, dy = np.sqrt(np.diagonal(exact.xx)), np.sqrt(np.diagonal(exact.yy))
        np.testing.assert_allclose((ours.mean_x - exact.mean_x) / dx, 0, atol=1e-9)
        for name, scale in (("xx", (dx, dx)), ("yx", (dy, dx)), ("yy", (dy, dy))):
            difference = (getattr(ours, name) - getattr(exact, name)) / np.outer(*scale)
            assert np.abs(difference).max() < 1e-9, name


def test_groups_of_test_documents_hold_the_massive_rows_of_other_sites_too(found) -> None:
    for pair in PAIRS:
        groups = [found.sums(pair, name) for name in found.groups]

        assert sum(one.count for one in groups) == found.sums(pair, "test").count


def test_a_fit_is_that_of_scikit_learn_on_the_rows_that_are_left(uneven, tmp_path) -> None:
    pair = Pair(Site(0), Site(2))
    result = fit_transport(
        TransportConfig(
            store=str(uneven.folder), out=str(tmp_path / "out"), alphas=(10.0,),
            pairs=Listed(listed=(str(pair), "resid_post.0->resid_post.1")),
            rows=RowsConfig(groups=4), tracking=UNTRACKED,
            moments=MomentsConfig(precision="float64"),
        ),
        console=Console(quiet=True),
    )  # fmt: skip

    def rows_of(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = uneven.wanted(split, pair)
        return tuple(uneven.layers.acts[s][rows].astype(np.float64) for s in (Site(0), Site(2)))

    (x, y), (new_x, new_y) = rows_of("train"), rows_of("test")
    theirs = Ridge(alpha=10.0, solver="svd").fit(x - x.mean(0), y)
    (r2,) = (
        row["r2"]
        for row in pq.read_table(result.folder / "maps.parquet").to_pylist()
        if (row["target"], row["map"], row["measure"]) == ("resid_post.2", "ridge", "uniform")
    )
    left_out = {
        row["target"]: row["massive_rows"]
        for row in pq.read_table(result.folder / "pairs.parquet").to_pylist()
    }
    assert r2 == pytest.approx(r2_score(new_y, theirs.predict(new_x - x.mean(0))), abs=1e-6)
    assert left_out == {"resid_post.1": 25, "resid_post.2": 25}
    page = result.report.read_text()
    assert "rows left out, with norms above 10 times the median" in page
    assert "of the training rows with the largest norms hold" in page


def test_null_leaves_no_row_out(uneven, tmp_path) -> None:
    store = open_store(uneven.folder)
    request = request_moments([store], PAIRS[:1], groups=4, part_rows=256)

    found = compute_moments([store], request, tmp_path)

    assert found.moments(PAIRS[0], TRAIN).count == len(uneven.layers.rows("train"))
    assert found.left_out(PAIRS[0]) == 0


def test_massive_rows_are_found_by_their_norms_in_all_splits(uneven) -> None:
    store = open_store(uneven.folder)

    massive = find_massive(store, store.sites, split="train", max_norm=10.0)

    assert massive is not None
    assert {site: set(rows) for site, rows in massive.rows.items() if len(rows)} == {
        site: set(rows) for site, rows in uneven.massive.items()
    }
    assert "60 of" in str(massive)


def test_a_multiple_that_cannot_be_is_refused(uneven, tmp_path) -> None:
    with pytest.raises(InvalidTransport, match=r"rows.max_norm is a multiple .* above 1, not 0\.5"):
        TransportConfig(store=str(uneven.folder), out=str(tmp_path), rows=RowsConfig(max_norm=0.5))
