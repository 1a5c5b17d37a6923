"""What was measured of a model, and what is wrong with it; plain data.

`ModelMap.problems` is the verdict: every sentence in it is a promise of actlake's that does not
hold for this model. A point that is refused with a reason is none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from actlake.platform.models.sums import TOLERANCE
from actlake.storage.sites import Point, Site

FLOAT16_LARGEST = 65_504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFound:
    """One site: what was handed out there, and what a change of it does."""

    norm: float
    """Mean length of its rows."""

    largest: float
    """Largest absolute value; NaN where a value is none, as it is where one is infinite."""

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

    def problems(self) -> Iterator[str]:
        """What is wrong, each as the end of a sentence about the site."""
        if not self.largest < float("inf"):
            yield "holds values that are no numbers"
        if not self.norm > 0:
            yield "holds zeros only"
        if self.difference is not None and self.difference != 0:
            yield f"differs from transformers' by up to {self.difference:.3g}"
        if self.put_back is False:
            yield "changes what the model computes when its own tensor is put back"
        if self.moved is not None and not self.moved > 0:
            yield "can be edited without moving what the model predicts"
        if self.sums_after_edit is not None and not self.sums_after_edit <= TOLERANCE:
            yield "is not what the block goes on with after an edit"


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

    def problems(self) -> list[str]:
        """What does not hold, in sentences; nothing where all is well."""
        wrong = [f"{site} {what}" for site, found in self.points() for what in found.problems()]
        wrong += [
            f"in layer {one.layer} it does not hold that {formula}: off by {error:.3g} roundings"
            for one in self.layers
            for formula, error in one.sums.items()
            if not error <= TOLERANCE
        ]
        if self.head.difference is not None and self.head.difference != 0:
            wrong.append(f"the head's logits differ by up to {self.head.difference:.3g}")
        return wrong

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, with the verdict."""
        return {**asdict(self), "problems": self.problems()}
