"""Linear probes at every site of a store: train them, test them honestly, load them.

    from actlake.jobs.probe import Probe, ProbeConfig, TaskConfig, train_probes

    result = train_probes(
        ProbeConfig(store="runs/smollm2", out="runs/probes", tasks=(TaskConfig(labels="topic"),))
    )
    probe = Probe.load(result.probe("topic", "resid_post.9"))
    probe.predict(rows)

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
