"""A model, measured: what of it can be read and edited, as findings and as a table."""

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from actlake.jobs.doctor.check import Finding
from actlake.platform.free_memory import free_memory
from actlake.platform.model_map import (
    LayerFound,
    ModelMap,
    TextFound,
    examine_text,
    measure_model,
    probe_ids,
    save_tiny,
    text_ids,
)
from actlake.platform.model_map.found import FLOAT16_LARGEST, Promise
from actlake.platform.models import ModelConfig, ResolvedModel, load_tokenizer, resolve_model
from actlake.platform.models.errors import TokenizerNotSupported
from actlake.platform.models.points import POINTS, Point
from actlake.storage.sites import Site
from actlake.storage.summary import human_bytes

_REPORT = "do not use these for results; report the family with this table"


class MeasuredModel:
    """A check of one model, that keeps the map it made.

    Parameters
    ----------
    name
        A model; with `random` the name that transformers gives a family.
    """

    def __init__(self, name: str, *, random: bool) -> None:
        self.name = name
        self.random = random
        self.map: ModelMap | None = None
        self.text: TextFound | None = None

    def __call__(self) -> Iterator[Finding]:
        """Measure it."""
        with ExitStack() as stack:
            place = self.name
            if self.random:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="actlake-doctor-"))
                place = str(save_tiny(self.name, Path(scratch)))
            model = resolve_model(ModelConfig(name=place))
            yield _model(model, self.name)
            if too_large := _too_large(model):
                yield too_large
                return
            ids_BL = probe_ids(model)
            if not self.random:
                try:
                    tokenizer = load_tokenizer(model)
                except TokenizerNotSupported as error:
                    says, _, hint = str(error).partition("\nhint: ")
                    yield Finding("tokenizer", "warn", says, hint)
                else:
                    self.text, ids_BL = examine_text(tokenizer), text_ids(tokenizer)
            with _loading_unsaid():
                self.map = replace(measure_model(model, ids_BL), name=self.name)
        yield from findings(self.map)
        if self.text is not None:
            yield from text_findings(self.text)

    def as_json(self) -> dict[str, Any] | None:
        """The map, and under ``text`` what the tokenizer does; None where no map was made."""
        if self.map is None:
            return None
        return self.map.as_json() | {"text": None if self.text is None else asdict(self.text)}


@contextmanager
def _loading_unsaid() -> Iterator[None]:
    """Within it no line is logged for each stage that is loaded; here every layer is one."""
    loading = logging.getLogger("actlake.platform.models.loading")
    level = loading.level
    loading.setLevel(logging.WARNING)
    try:
        yield
    finally:
        loading.setLevel(level)


def _model(model: ResolvedModel, name: str) -> Finding:
    numerics = f"{model.dtype_name} on {model.device.value}, attention {model.attention.value}"
    says = f"{name}: {model.family}, {model.num_layers} layers of width {model.dim}; {numerics}"
    return Finding("model", "ok", says)


def _too_large(model: ResolvedModel) -> Finding | None:
    """A finding where the weights do not fit into the memory of the device."""
    parameters = model.anatomy.stage_params(range(model.num_layers))
    needed = (parameters + model.vocab_size * model.dim) * model.dtype.value.itemsize
    free = free_memory(model.device.value)
    if free is None or needed < free:
        return None
    return Finding(
        "model", "fail",
        f"its weights take {human_bytes(needed)} and {model.device.value} has {human_bytes(free)}",
        f"measure it on a larger device, or a small one of its kind: --model "
        f"{model.whole_config.model_type} --random",
    )  # fmt: skip


def findings(found: ModelMap) -> Iterator[Finding]:
    """What the map says of each promise."""
    points = dict(found.points())
    yield _promise(found, "captured", "sites", f"{len(points)} sites handed out")
    if refused := [one.refused for one in found.layers if one.refused]:
        yield Finding(
            "sites", "warn",
            f"inside {len(refused)} of {len(found.layers)} blocks nothing is handed out: "
            f"{refused[0]}",
            "harvest the stream (resid_pre, resid_post), and report the family",
        )  # fmt: skip
    compared = sum(one.difference is not None for one in points.values())
    yield _promise(
        found, "cut", "stage cut",
        f"cut at every layer, the stream is transformers' own to the bit at {compared} sites",
    )  # fmt: skip
    if errors := [error for one in found.layers for error in one.sums.values()]:
        yield _promise(
            found, "sums", "sums",
            f"h + a + m = h' in {len(errors)} sums, {_exactness(max(errors))}",
        )  # fmt: skip
    if found.head.refused:
        yield Finding("head", "warn", f"no logits, so edits are not measured: {found.head.refused}",
                      "the sites can be harvested; losses and edits cannot be had")  # fmt: skip
    else:
        yield _promise(found, "head", "head", "its logits are transformers' own to the bit")
        yield _promise(found, "edits", "edits", _edits(found))
    yield _range(found)


def _promise(found: ModelMap, promise: Promise, name: str, well: str) -> Finding:
    wrong = [str(problem) for problem in found.problems() if problem.promise == promise]
    if not wrong:
        return Finding(name, "ok", well)
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Finding(name, "fail", "; ".join(wrong[:3]) + more, _REPORT)


def _exactness(error: float) -> str:
    return f"off by {error:.1g} roundings at most" if error else "to the bit"


def _edits(found: ModelMap) -> str:
    moved = {site: one.moved for site, one in found.points() if one.moved is not None}
    least, most = min(moved, key=lambda site: moved[site]), max(moved, key=lambda site: moved[site])
    return (
        f"put back, a site's own tensor changes no bit; moved by their own length, rows move what "
        f"is predicted by {_number(moved[least])} ({least}) to {_number(moved[most])} nats ({most})"
    )


def _range(found: ModelMap) -> Finding:
    where = max(found.points(), key=lambda one: one[1].largest)[0]
    contexts, length = found.tokens
    says = f"the largest value on {contexts * length} tokens is {found.largest:,.6g}, at {where}"
    if found.fits_float16:
        return Finding("dtype range", "ok", f"{says}; float16 reaches {FLOAT16_LARGEST:,.0f}")
    return Finding("dtype range", "warn", f"{says}, beyond float16's {FLOAT16_LARGEST:,.0f}",
                   "set storage.dtype: bfloat16")  # fmt: skip


def text_findings(text: TextFound) -> Iterator[Finding]:
    """What the tokenizer was seen to do."""
    yield Finding("BOS", "ok", text.beginning)
    if text.uncovered:
        yield Finding(
            "tokenizer", "warn", f"characters of {', '.join(text.uncovered)} belong to no token",
            "what rows say of where in a text they are is not exact there",
        )  # fmt: skip
    elif text.altered:
        yield Finding(
            "tokenizer", "warn", f"altered when decoded again: {', '.join(text.altered)}",
            "rows keep their places in the original text; what is decoded is another",
        )  # fmt: skip
    else:
        yield Finding("tokenizer", "ok", "texts of all kinds tried come back as they were")
    if text.chat is None:
        yield Finding("chat template", "ok", "none")
    elif text.doubled:
        yield Finding(
            "chat template", "warn", "it writes the beginning of text that the tokenizer adds",
            "harvest chats with corpus.bos: never, or they begin twice",
        )  # fmt: skip
    else:
        yield Finding("chat template", "ok", f"a question is {text.chat!r}")


_LEGEND = (
    "The six sites: by how many nats a token the prediction moves when each row of the site is "
    "moved by its own length. =: the resid_post one line up. -: not handed out. !: wrong.\n"
    "norm: mean length of the rows of resid_post. largest: absolute value, of all sites.\n"
    "cut: how far the stream, cut here, is from transformers' own. sums: how many roundings "
    "h + a + m is from h'. In both 0 is the same bits."
)


def table(found: ModelMap) -> Table:
    """A row for each layer: what an edit of each of its sites moves, and what was compared."""
    shown = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=_LEGEND, caption_justify="left"
    )
    # Names of sites take two lines, so that the table fits a terminal of eighty columns.
    for heading in ("layer", *POINTS, "norm", "largest", "cut", "sums"):
        shown.add_column(heading.replace("_", "_\n"), justify="right")
    wrong = {problem.where for problem in found.problems()}
    for one in found.layers:
        shown.add_row(
            str(one.layer),
            *(_cell(found, one.layer, point, wrong) for point in POINTS),
            _number(one.points["resid_post"].norm),
            _number(max(point.largest for point in one.points.values())),
            *_compared(one, wrong),
        )
    return shown


def _compared(one: LayerFound, wrong: Collection[str]) -> tuple[str, str]:
    """How far the stream and the sums of a layer are from what they should be."""
    away = max(point.difference for point in one.points.values() if point.difference is not None)
    off = max(one.sums.values(), default=None)
    bad = "!" if f"layer {one.layer}" in wrong else ""
    return f"{'!' if away else ''}{away:.2g}", "-" if off is None else f"{bad}{off:.1g}"


def _cell(found: ModelMap, layer: int, point: Point, wrong: Collection[str]) -> str:
    one = found.layers[layer].points.get(point)
    if one is None:
        return "=" if point == "resid_pre" and layer else "-"
    bad = "!" if str(Site(layer, point)) in wrong else ""
    return f"{bad}{_number(one.moved)}" if one.moved is not None else f"{bad}yes"


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
