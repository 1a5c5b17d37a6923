"""Read text files: a file is a document, or several where it is cut."""

from collections.abc import Iterator
from dataclasses import replace

from actlake.platform.corpus.cut import in_parts, parts_of
from actlake.platform.corpus.decoded import NotDecodable, decoded
from actlake.platform.corpus.opened import opened
from actlake.platform.corpus.passages import Passage, Unreadable
from actlake.platform.corpus.paths import SourceFile


def read_text_file(
    file: SourceFile, encoding: str, *, part_characters: int | None = None
) -> Iterator[Passage | Unreadable]:
    """One document: the whole file, its line ends as they are, without a byte order mark.

    Parameters
    ----------
    part_characters
        Cut it into parts of about so many characters, of which a few are in memory at once. The
        file is read twice then, so that there is no part of one that is not decodable.
    """
    passage = Passage(place=file.name, source=file.name, id=file.name, text="")
    try:
        with opened(file) as stream:
            if part_characters is None:
                yield replace(passage, text="".join(decoded(stream, encoding)))
                return
            for _ in decoded(stream, encoding):
                pass
    except NotDecodable as error:
        yield Unreadable(file.name, str(error))
        return
    with opened(file) as stream:
        yield from in_parts(passage, parts_of(decoded(stream, encoding), part_characters))
