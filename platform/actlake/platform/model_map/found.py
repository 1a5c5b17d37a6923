"""What was measured of a model, and what is wrong with it; plain data.

`ModelMap.problems` is the verdict: each is a promise of actlake's that does not hold for this
model. A point that is refused with a reason is none.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from actlake.platform.models.points import Point
from actlake.platform.models.sums import TOLERANCE
from actlake.storage.sites import Site

FLOAT16_LARGEST = 65_504.0

Promise = Literal["captured", "cut", "sums", "edits", "head"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A promise that does not hold for a model."""

    promise: Promise
    where: str
    """A site, a layer or the head."""
    says: str

    def __str__(self) -> str:
        """A sentence: ``resid_post.3 differs from transformers' by up to 0.01``."""
        return f"{self.where} {self.says}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFound:
    """One site: what was handed out there, and what a change of it does."""

    norm: float
    """Mean length of its rows."""

    largest: float
    """Largest absolute value; infinite or NaN where one of them is."""

    difference: float | None
    """Largest difference to transformers' whole model, with every layer a stage of its own; 0
    means the same bits. None inside blocks, where the sums stand for it."""

    put_back: bool | None = None
    """Whether the model computes the same bits with the site's own tensor put in its place. None
    where there is no head to tell."""

    moved: float | None = None
    """How far an edit moves what the model predicts: KL divergence from the distribution without
    it, mean over tokens, nats. The edit adds to each row a direction of the row's own length."""

    sums_after_edit: float | None = None
    """The worst sum over the edited tensor, as in `LayerFound.sums`; None where no sum has it."""

    def problems(self, site: Site) -> Iterator[Problem]:
        """What is wrong at a site."""
        if not self.largest < float("inf"):
            yield Problem("captured", str(site), "holds values that are no numbers")
        if not self.norm > 0:
            yield Problem("captured", str(site), "holds zeros only")
        if self.difference is not None and self.difference != 0:
            words = f"differs from transformers' by up to {self.difference:.3g}"
            yield Problem("cut", str(site), words)
        if self.put_back is False:
            words = "changes what the model computes when its own tensor is put back"
            yield Problem("edits", str(site), words)
        if self.moved is not None and not self.moved > 0:
            words = "can be edited without moving what the model predicts"
            yield Problem("edits", str(site), words)
        if self.sums_after_edit is not None and not self.sums_after_edit <= TOLERANCE:
            words = "is not what the block goes on with after an edit"
            yield Problem("edits", str(site), words)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFound:
    """One layer, cut out of the model as a stage of its own."""

    layer: int

    points: Mapping[Point, PointFound]
    """Of its sites; ``resid_pre`` of the first layer only, of others it is the post below."""

    sums: Mapping[str, float]
    """Of each formula, how far it is from true, in units of the dtype's rounding of its terms."""

    refused: str = ""
    """Why the points inside the block are not handed out; empty where they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFound:
    """The head, given what leaves the last of the stages."""

    difference: float | None
    """Largest difference of its logits to transformers' whole model's; None where refused."""

    refused: str = ""
    """Why there is no head; empty where there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMap:
    """All that was measured of one model."""

    name: str
    family: str
    revision: str
    dtype: str
    device: str
    attention: str
    dim: int
    tokens: tuple[int, int]
    """Contexts and their length."""

    layers: tuple[LayerFound, ...]
    head: HeadFound

    def points(self) -> Iterator[tuple[Site, PointFound]]:
        """Every site with what was found there, in order."""
        for one in self.layers:
            for point, found in one.points.items():
                yield Site(one.layer, point), found

    @property
    def largest(self) -> float:
        """Largest absolute value at any site."""
        return max(found.largest for _, found in self.points())

    @property
    def fits_float16(self) -> bool:
        """Whether every value seen can be stored in float16."""
        return self.largest <= FLOAT16_LARGEST

    def problems(self) -> list[Problem]:
        """What does not hold; nothing where all is well."""
        wrong = [problem for site, found in self.points() for problem in found.problems(site)]
        wrong += [
            Problem("sums", f"layer {one.layer}", f"off by {error:.3g} roundings in {formula}")
            for one in self.layers
            for formula, error in one.sums.items()
            if not error <= TOLERANCE
        ]
        if self.head.difference is not None and self.head.difference != 0:
            words = f"has logits that differ by up to {self.head.difference:.3g}"
            wrong.append(Problem("head", "the head", words))
        return wrong

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, with the verdict; null where a number is none."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {**plain, "problems": [asdict(problem) for problem in self.problems()]}


def _plain(value: Any) -> Any:
    """The same with None for NaN and infinity, for which JSON has no words."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
