"""Activation stores: write them from many processes, read them with NumPy.

    from actlake.storage import open_store

    store = open_store("runs/smollm2")
    store["resid_post.9"][:1000]      # (1000, 576)
    store.tokens["id"][:1000]

Nothing here needs torch, ray, transformers or wandb.
"""

from actlake.storage.arrays import RowArray
from actlake.storage.corpus import Context, Document
from actlake.storage.create import StoreBuilder, StoreRequest
from actlake.storage.errors import ActlakeError, StoreError
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.lease import Lease, Token
from actlake.storage.moments import Moments
from actlake.storage.provenance import Provenance
from actlake.storage.schema import Geometry, StoreSchema, plan_geometry
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore, Coverage, open_store
from actlake.storage.verify import Problem, VerifyReport, revoke, verify
from actlake.storage.writer import add_sites, write_unit

__all__ = [
    # reading
    "open_store",
    "ActivationStore",
    "Coverage",
    "RowArray",
    "Moments",
    "Site",
    # writing
    "Lease",
    "Token",
    "StoreBuilder",
    "StoreRequest",
    "Document",
    "Context",
    "add_sites",
    "write_unit",
    # what it is
    "StoreSchema",
    "Geometry",
    "plan_geometry",
    "Provenance",
    "Extent",
    "UnitSet",
    # is it whole
    "verify",
    "VerifyReport",
    "Problem",
    "revoke",
    # what goes wrong
    "ActlakeError",
    "StoreError",
]
