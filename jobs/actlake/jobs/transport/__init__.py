"""Linear maps between layers: fit them, test them, load them.

    from actlake.jobs.transport import TransportConfig, TransportOperator, fit_transport

    result = fit_transport(TransportConfig(store="runs/smollm2", out="runs/transport"))
    operator = TransportOperator.load(result.operator("resid_post.4->resid_post.9"))
    mapped = operator(rows)

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
