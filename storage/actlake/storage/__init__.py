"""Activation stores: write them from many processes, read them with NumPy.

    from actlake.storage import open_store

    store = open_store("runs/smollm2")
    store["resid_post.9"][:1000]      # (1000, 576)
    store.tokens["id"][:1000]

Nothing here needs torch, ray, transformers or wandb.
"""

from actlake.storage.add_sites import add_sites
from actlake.storage.arrays import RowArray
from actlake.storage.corpus import Context, Document
from actlake.storage.create import StoreBuilder, StoreRequest
from actlake.storage.errors import ActlakeError, StoreError
from actlake.storage.export import ExportResult, export_store
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.fence import Token
from actlake.storage.lease import Lease
from actlake.storage.moments import Moments
from actlake.storage.provenance import Provenance
from actlake.storage.querying.labels import Alignment, Labels
from actlake.storage.querying.paired import Paired, paired_stores
from actlake.storage.querying.rows import Rows
from actlake.storage.reading.batches import Batch, Batches
from actlake.storage.reading.many import ManyStores, open_stores
from actlake.storage.reading.shuffle_quality import ShuffleQuality, shuffle_quality
from actlake.storage.scaled_rows import ScaledRows
from actlake.storage.schema import Geometry, StoreSchema, plan_geometry
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore, Coverage, open_store
from actlake.storage.verify import Damage, Problem, VerifyReport, verify
from actlake.storage.write_store import write_store
from actlake.storage.writer import restore_unit, write_unit

__all__ = [
    # reading
    "open_store",
    "open_stores",
    "ActivationStore",
    "ManyStores",
    "Batch",
    "Batches",
    "ShuffleQuality",
    "shuffle_quality",
    "Coverage",
    "RowArray",
    "ScaledRows",
    "Moments",
    "Site",
    # asking
    "Rows",
    "Paired",
    "paired_stores",
    "Labels",
    "Alignment",
    # writing
    "write_store",
    "Lease",
    "Token",
    "StoreBuilder",
    "StoreRequest",
    "Document",
    "Context",
    "add_sites",
    "write_unit",
    "restore_unit",
    "export_store",
    "ExportResult",
    # what it is
    "StoreSchema",
    "SiteSchema",
    "Geometry",
    "plan_geometry",
    "Provenance",
    "Extent",
    "UnitSet",
    # is it whole
    "verify",
    "VerifyReport",
    "Problem",
    "Damage",
    # what goes wrong
    "ActlakeError",
    "StoreError",
]
