"""What is called well mixed is: exact orders measure as ideal, the store's own order does not."""

import pytest

from actlake.storage import Site, open_store
from actlake.storage.reading.shuffle_quality import shuffle_quality

SITE = Site(3)


def measure(folder, **how):
    return shuffle_quality(open_store(folder).batches(SITE, 20, **how), num_batches=40)


def test_an_exact_shuffle_is_as_good_as_a_uniform_draw(full):
    quality = measure(full, shuffle="exact")

    assert quality.num_batches == 40
    assert quality.entropy == pytest.approx(1, abs=0.02)
    assert quality.documents == pytest.approx(quality.ideal_documents, rel=0.03)


def test_a_larger_pool_mixes_better(full):
    in_order, small, large, exact = (
        measure(full, shuffle="none").entropy,
        measure(full, shuffle="pool", pool_rows=24).entropy,
        measure(full, shuffle="pool", pool_rows=120).entropy,
        measure(full, shuffle="exact").entropy,
    )

    assert in_order < small < large < exact + 0.01
    assert in_order < 0.7
