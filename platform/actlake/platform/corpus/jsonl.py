"""Read JSONL: a line is a JSON object and a document; blank lines are none."""

import json
from collections.abc import Iterator

from actlake.platform.corpus.opened import opened
from actlake.platform.corpus.passages import Row, Unreadable
from actlake.platform.corpus.paths import SourceFile


def read_jsonl(file: SourceFile) -> Iterator[Row | Unreadable]:
    """Each line of the file, in order; one at a time is in memory."""
    offset = 0
    with opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _row(file.name, f"{file.name}:{number}", line, offset)
            offset += len(line)


def _row(source: str, place: str, line: bytes, offset: int) -> Row | Unreadable:
    try:
        text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
        fields = json.loads(text.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        at = offset + error.start
        return Unreadable(place, f"not UTF-8 at byte {at} (0x{line[error.start]:02x})")
    except json.JSONDecodeError as error:
        return Unreadable(place, f"not JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Unreadable(place, f"not JSON that can be read: {error}")
    if not isinstance(fields, dict):
        return Unreadable(place, f"a JSON {type(fields).__name__}, not an object with columns")
    return Row(place, source, fields)
