"""Which documents are read at all: a random share of them, and each text once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from actlake.platform.corpus.config import CorpusConfig, Sample
from actlake.platform.corpus.identity import SeenNames, content_id
from actlake.platform.corpus.passages import Passage, Unreadable
from actlake.platform.corpus.splits import point_of


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The place of a document that is not read; it is counted."""

    place: str
    why: Literal["sample", "duplicate"]
    """It is not in the sample, or its text is that of an earlier document."""


def chosen(
    items: Iterable[Passage | Unreadable], config: CorpusConfig, *, known: Iterable[str] = ()
) -> Iterator[Passage | Unreadable | LeftOut]:
    """The documents in their order, with a `LeftOut` in the place of each that is not wanted.

    Of equal texts the first in the sample stays, and none that is among `known`. Texts are compared
    by 64 bits of a hash, which two of 10 million different ones share with a chance of 3 in a
    million. A document without text is no duplicate: it is counted as empty.
    """
    texts = SeenNames()
    for text in known if config.deduplicate else ():
        texts.add(text)
    sample = config.sample
    for item in items:
        if isinstance(item, Unreadable):
            yield item
            continue
        if sample and not _is_in(sample, item):
            yield LeftOut(item.place, "sample")
        elif config.deduplicate and item.content and not texts.add(item.content):
            yield LeftOut(item.place, "duplicate")
        else:
            yield item


def _is_in(sample: Sample, passage: Passage) -> bool:
    key = content_id(passage.content) if passage.id is None else passage.id
    return point_of("sample", sample.seed, key) < sample.fraction
