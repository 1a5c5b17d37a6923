"""Numbers of a run as Prometheus gauges, beside those Ray has of itself.

    Gauges({"store": fingerprint}).set({"harvest/tokens_per_s": 812.0})

Every node answers at ``/metrics`` of its metrics port, which Prometheus finds by the file that
Ray writes (docs/cluster.md). ``harvest/tokens_per_s`` is there
``ray_actlake_harvest_tokens_per_s``, and ``harvest/replica_0/stage_1/wait_share`` is
``ray_actlake_harvest_wait_share`` with the labels ``replica="0"`` and ``stage="1"``.
"""

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

_LABELS = ("replica", "stage")
_LABEL = re.compile(rf"({'|'.join(_LABELS)})_(\d+)")
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


class Gauges:
    """Gauges of one run, made as they are needed. Only while a session is open.

    Parameters
    ----------
    labels
        Labels that all gauges of the run have, such as its store.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._gauges: dict[str, Any] = {}
        self._latest: frozenset[str] = frozenset()

    def set(self, numbers: Mapping[str, float]) -> None:
        """Set gauges to the latest numbers, and to 0 where there is none any more.

        Ray keeps a gauge's last value for ever, so a replica that was lost would seem to work on.
        """
        gone = self._latest - numbers.keys()
        self._latest = frozenset(numbers)
        for path, value in {**dict.fromkeys(gone, 0.0), **numbers}.items():
            name, labels = gauge_name(path)
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, tag_keys=(*self._labels, *_LABELS))
            here = {**dict.fromkeys(_LABELS, ""), **self._labels, **labels}
            self._gauges[name].set(float(value), tags=here)


def gauge_name(path: str) -> tuple[str, dict[str, str]]:
    """A metric's path as Prometheus has it: a name, and labels for its numbered parts."""
    words, labels = ["actlake"], {}
    for part in path.split("/"):
        if match := _LABEL.fullmatch(part):
            labels[match[1]] = match[2]
        else:
            words.append(_NOT_A_NAME.sub("_", part))
    return "_".join(words), labels
