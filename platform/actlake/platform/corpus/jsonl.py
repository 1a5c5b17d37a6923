"""Read JSONL: a line is a JSON object and a document; blank lines are none."""

import json
from collections.abc import Iterator

from actlake.platform.corpus.decoded import NotDecodable, decoded_lines
from actlake.platform.corpus.opened import opened
from actlake.platform.corpus.passages import Row, Unreadable
from actlake.platform.corpus.paths import SourceFile


def read_jsonl(file: SourceFile, encoding: str) -> Iterator[Row | Unreadable]:
    """Each line of the file, in order; one at a time is in memory."""
    with opened(file) as stream:
        for number, line in enumerate(decoded_lines(stream, encoding), start=1):
            place = f"{file.name}:{number}"
            if isinstance(line, NotDecodable):
                yield Unreadable(place, str(line))
            elif line.strip():
                yield _row(file.name, place, line)


def _row(source: str, place: str, line: str) -> Row | Unreadable:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return Unreadable(place, f"not JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Unreadable(place, f"not JSON that can be read: {error}")
    if not isinstance(fields, dict):
        return Unreadable(place, f"a JSON {type(fields).__name__}, not an object with columns")
    return Row(place, source, fields)
