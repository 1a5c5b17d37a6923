"""Read text files: a file is a document."""

from collections.abc import Iterator

from actlake.platform.corpus.opened import opened
from actlake.platform.corpus.passages import Passage, Unreadable
from actlake.platform.corpus.paths import SourceFile

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text_file(file: SourceFile) -> Iterator[Passage | Unreadable]:
    """One document: the whole file, its line ends as they are, without a byte order mark."""
    with opened(file) as stream:
        data = stream.read()
    mark = len(_UTF8_MARK) if data.startswith(_UTF8_MARK) else 0
    try:
        text = data[mark:].decode()
    except UnicodeDecodeError as error:
        yield Unreadable(file.name, _why(data, mark + error.start))
        return
    yield Passage(place=file.name, source=file.name, id=file.name, text=text)


def _why(data: bytes, offset: int) -> str:
    guess = "; it looks like UTF-16" if data.startswith(_UTF16_MARKS) else ""
    return f"not UTF-8 at byte {offset} (0x{data[offset]:02x}){guess}"
