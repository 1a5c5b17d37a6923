"""Sparse autoencoders, transcoders and crosscoders: train them from a store, test them, use them.

    from actlake.jobs.sae import SAEConfig, SAESpec, read_sae, train_saes
    from actlake.storage import Site

    spec = SAESpec(site=Site(9), architecture="topk", d_sae=4608, options={"k": 32})
    result = train_saes(SAEConfig(store="runs/smollm2", out="runs/sae", sae=spec))
    sae = read_sae(str(result.folder(spec)))

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
