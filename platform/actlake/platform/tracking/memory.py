"""A tracker that keeps everything in lists, for tests and notebooks."""

from collections.abc import Mapping
from pathlib import Path

from actlake.platform.tracking.tracker import Value, check_name, check_names, page_text, png_bytes


class MemoryTracker:
    """What was logged, in the order in which it came."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []
        self.values: dict[str, Value] = {}
        self.images: list[tuple[str, int, bytes]] = []
        self.pages: list[tuple[str, int, str]] = []
        self.artifacts: list[tuple[Path, str]] = []
        self.finished = False
        self.failed = False

    def series(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs of one metric."""
        return [(step, metrics[name]) for step, metrics in self.history if name in metrics]

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        check_names(metrics)
        self.history.append((step, {name: float(value) for name, value in metrics.items()}))

    def summary(self, values: Mapping[str, Value]) -> None:
        """See `Tracker.summary`."""
        self.values.update(values)

    def image(self, name: str, png: bytes | Path, *, step: int) -> None:
        """See `Tracker.image`."""
        self.images.append((check_name(name), step, png_bytes(png)))

    def html(self, name: str, page: str | Path, *, step: int) -> None:
        """See `Tracker.html`."""
        self.pages.append((check_name(name), step, page_text(page)))

    def artifact(self, path: Path, *, kind: str) -> None:
        """See `Tracker.artifact`."""
        self.artifacts.append((path, kind))

    def finish(self, *, failed: bool = False) -> None:
        """See `Tracker.finish`."""
        if not self.finished:
            self.finished, self.failed = True, failed
