"""Every family of decoders that transformers can build: a tiny model of each, measured.

    for found in measure_families(decoder_families()):
        print(found.family, found.verdict, found.reason)

Each is measured in a process of its own, forked from one that has imported everything: a family
that crashes or hangs is a finding about that family.
"""

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from actlake.platform.model_map.found import ModelMap
from actlake.platform.model_map.measure import measure_model, probe_ids
from actlake.platform.model_map.tiny import buildable, save_tiny
from actlake.platform.models.config import ModelConfig
from actlake.platform.models.errors import ModelError, ModelNotFound, NoTinyModel
from actlake.platform.models.points import POINTS, Point
from actlake.platform.models.source import resolve_model
from actlake.platform.models.wiring import STREAM

Verdict: TypeAlias = Literal["whole", "stream", "refused", "unbuilt", "broken"]
"""Every site is right; the stream is right and no more is handed out; refused before any work; no
tiny model comes of its defaults; wrong, or failing in any other way."""

LIMIT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFound:
    """What came of a tiny model of a family."""

    family: str
    verdict: Verdict

    points: tuple[Point, ...] = ()
    """That some layer hands out."""

    reason: str = ""
    """Why it is refused, unbuilt or broken, in one line; of others, what is not as usual."""


def decoder_families() -> list[str]:
    """The names, sorted, of all that transformers can build with a head that predicts text.

    Of a family with more than text it is that of its text decoder, such as ``gemma3_text``, where
    transformers builds that by itself. Encoders are among them, since transformers counts them
    there.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    return sorted({_family(CONFIG_MAPPING[name], name) for name in names})


def _family(cls: type, name: str) -> str:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return str(buildable(cls()).model_type)
    except StrictDataclassError:  # a family whose defaults contradict each other
        return name


def measure_family(family: str) -> FamilyFound:
    """Make a tiny model of a family and measure it, in this process."""
    with tempfile.TemporaryDirectory(prefix="actlake-family-") as scratch:
        folder = Path(scratch)
        try:
            save_tiny(family, folder)
        except (NoTinyModel, ModelNotFound) as error:
            return FamilyFound(family=family, verdict="unbuilt", reason=_line(error, folder))
        except ModelError as error:
            return FamilyFound(family=family, verdict="refused", reason=_line(error, folder))
        try:
            model = resolve_model(ModelConfig(name=str(folder), device="cpu"))
        except ModelError as error:
            return FamilyFound(family=family, verdict="refused", reason=_line(error, folder))
        except Exception as error:
            return _broken(family, f"{type(error).__name__}: {_line(error, folder)}")
        try:
            return _verdict(family, measure_model(model, probe_ids(model)), folder)
        except Exception as error:  # what resolves and then fails is broken, however it fails
            return _broken(family, f"{type(error).__name__}: {_line(error, folder)}")


def measure_families(
    families: Iterable[str],
    *,
    measure: Callable[[str], FamilyFound] = measure_family,
    limit_s: float = LIMIT_S,
) -> Iterator[FamilyFound]:
    """Measure tiny models of families, one after the other; a second or two each.

    Parameters
    ----------
    measure
        What is run in a family's process; it has to be importable there.
    limit_s
        After which a process is ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.llama.modeling_llama"])
    for family in families:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(measure, family, sending))
        process.start()
        sending.close()
        try:
            if receiving.poll(limit_s):
                yield receiving.recv()
            else:
                yield _broken(family, f"does not end within {limit_s:.0f} s")
        except EOFError:
            process.join()
            yield _broken(family, f"its process ended with status {process.exitcode}")
        finally:
            process.kill()
            process.join()


def _answer(measure: Callable[[str], FamilyFound], family: str, sending: Connection) -> None:
    """In the process of one family."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    sending.send(measure(family))


def _verdict(family: str, found: ModelMap, folder: Path) -> FamilyFound:
    if problems := found.problems():
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        return _broken(family, f"{problems[0]}{more}")
    there = {point for one in found.layers for point in one.points}
    reasons = [reason for reason in (found.head.refused, *(one.refused for one in found.layers))
               if reason]  # fmt: skip
    return FamilyFound(
        family=family,
        verdict="stream" if there <= STREAM.keys() else "whole",
        points=tuple(point for point in POINTS if point in there),
        reason=_line(reasons[0], folder) if reasons else "",
    )


def _broken(family: str, reason: str) -> FamilyFound:
    return FamilyFound(family=family, verdict="broken", reason=reason)


def _line(words: object, folder: Path) -> str:
    """The first lines of an error, as one, without the folder that happened to be used."""
    told = str(words).partition("\nhint: ")[0].replace(str(folder), "the model")
    return " ".join(told.split())[:240]
