"""Work on Ray: a session, replicas of staged workers, and a pool that loses no unit.

    class Worker:                                     # plain; tests run it without Ray
        def run(self, unit, send): ...

    with session(ClusterConfig()) as cluster:
        replica = ReplicaSpec(stages=(StageSpec(make=Worker, threads=2),))
        result = run_units(cluster, range(100), replica, replicas=2, on_done=commit)

Ray is imported in this folder and nowhere else; none of its types leaves it.

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
