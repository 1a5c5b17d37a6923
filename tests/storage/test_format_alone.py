"""docs/store-format.md is enough: `plain_reader`, which knows nothing of actlake, reads it all."""

import ast
from pathlib import Path

import numpy as np
import plain_reader
import pytest
from plain_reader import PlainReader

SITE = "resid_post.3"


@pytest.fixture(params=["as committed", "merged"])
def reader(request, full, release, add_unknown, merge):
    """Of a store with two released units and a site that nobody knows yet."""
    release(full, SITE, [2, 4])
    add_unknown(full, "resid_post.8", {"dim": 6, "dtype": "float4", "compression": "none"})
    if request.param == "merged":
        merge(full)
    return PlainReader(full)


def acts_of(known, site):
    return next(acts for at, acts in known.acts.items() if str(at) == site)


def test_the_reader_knows_nothing_of_actlake():
    tree = ast.parse(Path(plain_reader.__file__).read_text())
    imported = [
        name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    ]  # fmt: skip

    assert imported
    assert not any("actlake" in name for name in imported)


def test_tokens_and_contexts_are_read(reader, known):
    np.testing.assert_array_equal(reader.tokens("id"), known.ids)
    np.testing.assert_array_equal(reader.tokens("position"), known.positions)
    np.testing.assert_array_equal(reader.tokens("document", "<i8"), known.document)
    starts = reader.index("contexts/start", "<i8", "contexts", more=1)
    codes = reader.index("contexts/split", "|i1", "contexts")
    splits = np.array(reader.schema["splits"])[np.repeat(codes, np.diff(starts))]
    np.testing.assert_array_equal(splits, known.split)


def test_rows_and_norms_are_read(reader, known):
    for site in reader.sites:
        acts = acts_of(known, site)
        for unit in reader.covered[site]:
            rows = acts[24 * unit : 24 * (unit + 1)]
            norms = np.linalg.norm(rows.astype(np.float64), axis=1)
            np.testing.assert_allclose(reader.norms(site, unit), norms, rtol=1e-6)
            if unit not in reader.released.get(site, ()):
                np.testing.assert_array_equal(reader.rows(site, unit), rows)


def test_moments_are_read_also_of_released_units(reader, known):
    for site in reader.sites:
        for unit in range(11):
            here = slice(24 * unit, 24 * (unit + 1))
            rows = acts_of(known, site)[here].astype(np.float64)
            moments = reader.moments(site, 1, unit)
            for code, split in enumerate(reader.schema["splits"]):
                for kind in (0, 1):
                    of_group = (known.split[here] == split) & (known.excluded[here] == kind)
                    group, count = rows[of_group], int(of_group.sum())
                    assert moments["count"][code, kind] == count
                    norm_sum = np.linalg.norm(group, axis=1).sum()
                    np.testing.assert_allclose(moments["norm_sum"][code, kind], norm_sum)
                    mean = group.mean(axis=0) if count else np.zeros(6)
                    m2 = count * group.var(axis=0) if count else np.zeros(6)
                    np.testing.assert_allclose(moments["mean"][code, kind], mean)
                    np.testing.assert_allclose(moments["m2"][code, kind], m2, atol=1e-14)


def test_coverage_released_units_and_unknown_sites_are_read(reader):
    assert reader.unknown == ["resid_post.8"]
    assert set(reader.sites) == {"resid_post.0", SITE}
    assert reader.coverage("resid_post.0") == (11, 11, 11)
    assert reader.coverage(SITE) == (11, 11, 9)
    assert reader.released == {SITE: {2, 4}}
    assert len(reader.records) == 23  # one of the unknown site


def test_a_total_is_the_sum_of_its_units_up_the_tree(many_units):
    """To the last bit, by the formula of the page."""
    reader, site = PlainReader(many_units), SITE

    def merged(a, b):
        n_a, n_b = a["count"][..., None], b["count"][..., None]
        n, d = n_a + n_b, b["mean"] - a["mean"]
        with np.errstate(invalid="ignore"):
            both = {
                "count": a["count"] + b["count"],
                "mean": a["mean"] + d * (n_b / n),
                "m2": a["m2"] + b["m2"] + d**2 * (n_a * n_b / n),
                "norm_sum": a["norm_sum"] + b["norm_sum"],
            }
        alone = {"count": 0, "norm_sum": 0, "mean": 1, "m2": 1}
        for name, has_dim in alone.items():  # an empty one leaves the other as it is
            for one, other in ((a, b), (b, a)):
                empty = (one["count"] == 0)[..., None] if has_dim else one["count"] == 0
                both[name] = np.where(empty, other[name], both[name])
        return both

    for block in (0, 1):
        total = reader.moments(site, 32, block)
        parts = [reader.moments(site, 1, unit) for unit in range(32 * block, 32 * block + 32)]
        expected = parts[0]
        for part in parts[1:]:
            expected = merged(expected, part)
        assert {name: array.tobytes() for name, array in total.items()} == {
            name: np.asarray(array).tobytes() for name, array in expected.items()
        }
    assert reader.moments(site, 32, 2) is None
