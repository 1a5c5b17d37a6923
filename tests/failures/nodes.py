"""Several Ray nodes on this machine, in a process of their own that obeys commands.

    python nodes.py CPUS CPUS:GPUS …   a head without CPUs, and a node for each word

Answers each line on stdin with a line of JSON: ``add CPUS`` starts one more node. The end of
stdin ends the cluster. A process that has a `Cluster` cannot have an embedded Ray as well, and
pytest has one in other tests; hence a process.
"""

import json
import sys
import tempfile

import ray
from ray.cluster_utils import Cluster

# A dead node is noticed within 3 s instead of 14; nothing else is changed.
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
STORE_BYTES = 100 * 2**20


def raylet_of(node) -> int:
    """The process of a node's raylet."""
    return node.all_processes["raylet"][0].process.pid


def amounts(words):
    """What a node has: ``2`` CPUs, or ``2:1`` CPUs and GPUs, which need not exist."""
    cpus, _, gpus = words.partition(":")
    return {
        "num_cpus": int(cpus),
        "num_gpus": int(gpus or 0),
        "object_store_memory": STORE_BYTES,
    }


def main() -> None:
    folder = tempfile.mkdtemp(prefix="rt")
    # A file of the machine would lead every bare `ray.init()` of other people here.
    ray._private.utils.write_ray_address = lambda *address: None
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "temp_dir": folder,
            "_system_config": QUICK,
        },
    )
    started = [cluster.add_node(wait=False, **amounts(words)) for words in sys.argv[1:]]
    cluster.wait_for_nodes()
    head = cluster.head_node.all_processes
    said = {
        "address": cluster.address,
        "folder": folder,
        "head": [head[name][0].process.pid for name in ("gcs_server", "raylet")],
        "raylets": [raylet_of(node) for node in started],
    }
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        node = cluster.add_node(**amounts(line.split()[1]))
        print(json.dumps({"raylet": raylet_of(node)}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
