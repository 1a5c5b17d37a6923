"""Bytes to text, a piece at a time, in any encoding that Python knows."""

import codecs
from collections.abc import Iterator
from typing import IO

_BYTES_AT_ONCE = 2**20
_ASCII = bytes(range(128))
_UTF8 = ("utf-8", "utf-8-sig")
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class NotDecodable(ValueError):
    """Bytes are not what their encoding says; the text says at which."""


def decoded(stream: IO[bytes], encoding: str) -> Iterator[str]:
    """The stream's text in pieces of about a million characters, without a byte order mark.

    Raises
    ------
    NotDecodable
        At a byte that is not in the encoding; the text before it has been given.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    beginning = stream.read(len(_UTF8_MARK)) if _is_utf8(encoding) else b""
    offset = 0
    if beginning == _UTF8_MARK:
        beginning, offset = b"", len(_UTF8_MARK)
    while True:
        data = beginning + stream.read(_BYTES_AT_ONCE)
        state = decoder.getstate()
        # A decoder keeps the bytes of a character that is not complete; its errors count from them.
        kept = len(state[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeError as error:
            if isinstance(error, UnicodeDecodeError) and error.start > kept:
                decoder.setstate(state)
                yield decoder.decode(data[: error.start - kept])
            raise NotDecodable(_why(error, encoding, offset - kept)) from error
        if text:
            yield text
        if not data:
            return
        beginning = b""
        offset += len(data)


def decoded_lines(stream: IO[bytes], encoding: str) -> Iterator[str | NotDecodable]:
    """The stream's lines without their ends; in the place of one that is not decodable, why.

    Lines end with a line feed, mostly one byte of that value; what else ends lines in Unicode is
    part of JSON texts. Where an encoding has other line feeds, as UTF-16 has, nothing can be read
    after a byte that is wrong: the reason says so.
    """
    if not _has_ascii_bytes(encoding):
        yield from _lines_of_pieces(stream, encoding)
        return
    offset = 0
    for line in stream:
        start = 0
        if offset == 0 and _is_utf8(encoding) and line.startswith(_UTF8_MARK):
            start = len(_UTF8_MARK)
        try:
            yield line[start:].decode(encoding).rstrip("\r\n")
        except UnicodeError as error:
            yield NotDecodable(_why(error, encoding, offset + start))
        offset += len(line)


def _lines_of_pieces(stream: IO[bytes], encoding: str) -> Iterator[str | NotDecodable]:
    begun = ""
    try:
        for piece in decoded(stream, encoding):
            *lines, begun = (begun + piece).split("\n")
            yield from (line.rstrip("\r") for line in lines)
    except NotDecodable as error:
        yield NotDecodable(f"{error}; the rest of the file is left out")
        return
    if begun:
        yield begun.rstrip("\r")


def _has_ascii_bytes(encoding: str) -> bool:
    """Whether ASCII is itself in the encoding, so that a byte of a line feed's value is one."""
    try:
        return _ASCII.decode(encoding) == _ASCII.decode("ascii")
    except UnicodeError:
        return False


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in _UTF8


def _why(error: UnicodeError, encoding: str, offset: int) -> str:
    name = "UTF-8" if _is_utf8(encoding) else encoding
    if not isinstance(error, UnicodeDecodeError):
        return f"not {name}: {error}"
    wrong = error.object[error.start]
    at = offset + error.start
    guess = ""
    if _is_utf8(encoding) and at == 0 and error.object[:2] in _UTF16_MARKS:
        guess = "; it looks like UTF-16"
    return f"not {name} at byte {at} (0x{wrong:02x}){guess}"
