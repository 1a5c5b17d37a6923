"""Sentences of reviews with the mean of twenty people's ratings, from -4 to 4.

    rating       regression: the mean rating
    sentiment    binary: negative or positive, where the mean is at least half a point from 0

The data are those of Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text" (ICWSM-14): 10,605 sentences about films (Rotten
Tomatoes) and 3,708 of product reviews (Amazon), which the source distribution of
``vaderSentiment`` 3.3.2 carries. The package and the ratings are under the MIT licence; the
sentences are their authors', so the text is fetched (2.5 MB, checked by hash, kept in actlake's
cache) and never part of this repository.
"""

import hashlib
import html
import io
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from actlake.jobs.probe.datasets.errors import DataSetChanged, InvalidDataSet
from actlake.jobs.probe.datasets.labelled_corpus import (
    LabelledCorpus,
    LabelTable,
    split_of_entity,
)
from actlake.platform.models.cache import cached_folder
from actlake.platform.package_index import download_distribution
from actlake.storage.errors import nearest

PACKAGE = "vaderSentiment==3.3.2"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ORIGINS = {"movie": "movieReviewSnippets", "amazon": "amazonReviewSnippets"}
"""Where sentences are from, and the file with them."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rated sentence."""

    id: str
    review: str
    """The entity: the review it is from. A film's sentence is an entity of its own."""
    origin: str
    rating: float
    text: str

    @property
    def sentiment(self) -> str:
        """The side of 0 that its rating is on."""
        return "positive" if self.rating > 0 else "negative"


def sentiment(
    *,
    origins: Sequence[str] = tuple(ORIGINS),
    least_rating: float = 0.5,
    limit: int | None = None,
) -> LabelledCorpus:
    """A document for each rated sentence.

    Character entities (``&amp;``) are written out. A sentence that comes again is left out, and
    counted, since the same text would be in two splits.

    Parameters
    ----------
    origins
        ``movie``, ``amazon`` or both.
    least_rating
        How far from 0 a mean rating must be for the sentence to be negative or positive; the
        others have a rating and no sentiment.
    limit
        Most documents, drawn by a hash of their ids; by default all.

    Returns
    -------
    LabelledCorpus
        Label tables by document, ``rating`` and ``sentiment``, and the latter again for each
        origin (``sentiment_movie``), to train on one and test on the other; each also with
        ``origin`` and ``review``, the entity.

    Raises
    ------
    InvalidDataSet
        An unknown origin, or nothing is left.
    IndexUnreachable
        The package cannot be fetched.
    """
    for origin in origins:
        if origin not in ORIGINS:
            raise InvalidDataSet(
                f"There are no reviews from {origin!r}\n{nearest(origin, ORIGINS)}"
            )
    folder = cached_folder(f"data/vader-{SOURCE_SHA256[:8]}", _fetch)
    found = [sentence for origin in origins for sentence in _read(folder, origin)]
    distinct = {sentence.text.casefold(): sentence for sentence in reversed(found)}
    kept = _drawn([s for s in found if distinct[s.text.casefold()] is s], limit)
    clear = [s for s in kept if abs(s.rating) >= least_rating]
    if not clear:
        raise InvalidDataSet(
            f"No sentence is rated {least_rating} from 0 or more (origins: "
            f"{', '.join(origins) or 'none'}; limit: {limit})\n"
            "hint: lower least_rating, or raise limit"
        )
    return LabelledCorpus(
        name="sentiment",
        documents=pa.table(
            {
                "id": [s.id for s in kept],
                "text": [s.text for s in kept],
                "split": [split_of_entity(s.review) for s in kept],
                "origin": [s.origin for s in kept],
                "review": [s.review for s in kept],
                "rating": [s.rating for s in kept],
            }
        ),
        labels=(
            _by_document("rating", kept),
            _by_document("sentiment", clear),
            *(
                _by_document("sentiment", [s for s in clear if s.origin == origin], origin)
                for origin in origins
                if len(origins) > 1
            ),
        ),
        about={
            "source": f"Hutto and Gilbert 2014, by the source distribution of {PACKAGE}",
            "licence": "MIT (ratings); the sentences are their authors'",
            "origins": list(origins),
            "least_rating": least_rating,
            "limit": limit,
            "left_out_as_repeated": len(found) - len(distinct),
            "without_a_clear_sentiment": len(kept) - len(clear),
        },
    )


def _by_document(
    column: Literal["rating", "sentiment"], sentences: Sequence[Sentence], part: str | None = None
) -> LabelTable:
    table = {
        "document": [s.id for s in sentences],
        column: [getattr(s, column) for s in sentences],
        "origin": [s.origin for s in sentences],
        "review": [s.review for s in sentences],
    }
    return LabelTable(f"{column}_{part}" if part else column, "document", pa.table(table))


def _drawn(sentences: list[Sentence], limit: int | None) -> list[Sentence]:
    if limit is None or limit >= len(sentences):
        return sentences
    chosen = {s.id for s in sorted(sentences, key=_place_in_a_draw)[:limit]}
    return [s for s in sentences if s.id in chosen]


def _place_in_a_draw(sentence: Sentence) -> bytes:
    return hashlib.sha256(f"actlake draw 1\n{sentence.id}".encode()).digest()


def _read(folder: Path, origin: str) -> Iterator[Sentence]:
    file = folder / f"{ORIGINS[origin]}_GroundTruth.txt"
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            name, rating, text = line.split("\t")
            value = float(rating)
        except ValueError as error:
            raise DataSetChanged(
                f"{file.name}, line {number}, is no id, rating and text: {line[:60]!r}\n"
                f"hint: remove {folder}; it is fetched again"
            ) from error
        review, _, sentence = name.partition("_")
        yield Sentence(
            id=f"{origin}/{name}",
            review=f"{origin}/{review}" if sentence else f"{origin}/{name}",
            origin=origin,
            rating=value,
            text=html.unescape(text.strip()),
        )


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vader-", dir=folder.parent) as scratch:
        source = download_distribution(
            PACKAGE, sha256=SOURCE_SHA256, folder=Path(scratch), size="2.5 MB", kind="source"
        )
        inner = _member(source.read_bytes(), "hutto_ICWSM_2014.tar.gz")
        for stem in ORIGINS.values():
            name = f"{stem}_GroundTruth.txt"
            (folder / name).write_bytes(_member(inner, name))


def _member(archive: bytes, name: str) -> bytes:
    """The one member of a tar archive that has this file name; nothing is written to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        (found,) = (member for member in opened if Path(member.name).name == name)
        file = opened.extractfile(found)
        assert file is not None, name
        return file.read()
