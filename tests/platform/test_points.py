"""The points that a model can be read at, and what other libraries call them."""

import pytest

from actlake.platform.models.points import POINTS, check_points, sae_lens_hook
from actlake.storage import Site
from actlake.storage.errors import InvalidSite


def test_every_point_of_a_block_is_one_that_a_model_can_be_read_at():
    check_points(Site(layer, point) for layer in (0, 40) for point in POINTS)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (Site(6, "resid_pst"), r"no point 'resid_pst' in a block .*\nhint: did you mean 'resid_"),
        (Site(6, "sae.topk_32"), r"no point 'sae.topk_32' in a block .*\nhint: there is resid_pre"),
        (Site(None, "resid_post"), r"resid_post is of no block[\s\S]*hint: give a site of a block"),
    ],
)
def test_sites_that_no_model_has_are_refused_by_name(site, words):
    with pytest.raises(InvalidSite, match=words):
        check_points([Site(0), site])


def test_a_point_that_sae_lens_does_not_know_keeps_its_name():
    assert sae_lens_hook(Site(6, "mlp_in")) == "blocks.6.ln2.hook_normalized"
    assert sae_lens_hook(Site(6, "router_logits")) == "router_logits.6"
