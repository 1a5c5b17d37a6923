"""Labelled text for probes, without a hub: places, sentiment, and features of tokens.

    from actlake.jobs.probe.datasets import attach_tables, places, sentiment, token_features

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
