"""Small JSON files that carry their own checksum.

    {"crc32c": "1a2b3c4d", "content": {...}}

The checksum is CRC32C of the content's canonical form (sorted keys, no spaces, ASCII), so a
person may reformat such a file but not change it unnoticed.
"""

import json
from typing import Any

import google_crc32c
import numpy as np

from actlake.storage.errors import StoreDamaged

_INDENTED_BYTES = 2**16  # longer ones are not for people, and indenting is ten times slower


def crc32c(*parts: Any, after: int = 0) -> int:
    """CRC32C (Castagnoli) of the bytes of all `parts`, one after the other.

    `after` is that of the bytes before them.
    """
    value = after
    for part in parts:  # the C function takes bytes and NumPy arrays, but no memoryview
        value = google_crc32c.extend(value, np.frombuffer(part, np.uint8))
    return int(value)


def seal(content: Any) -> bytes:
    """The file's bytes for `content`, which must be JSON-able; equal contents, equal bytes."""
    text = _canonical(content)
    checksum = crc32c(text)
    if len(text) < _INDENTED_BYTES:
        text = json.dumps(content, indent=1, allow_nan=False).encode()
    return b'{"crc32c": "%08x",\n "content": %s}\n' % (checksum, text)


def unseal(data: bytes, *, name: str) -> Any:
    """The content of a sealed file.

    Raises
    ------
    StoreDamaged
        It is not whole: not JSON, not sealed, or changed after it was written. `name` says
        which file in the message.
    """
    try:
        body = json.loads(data)
        content, expected = body["content"], body["crc32c"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamaged(f"{name} is not a whole sealed JSON file: {error}") from error
    found = f"{crc32c(_canonical(content)):08x}"
    if found != expected:
        raise StoreDamaged(
            f"{name} has changed since it was written: CRC32C {found}, not {expected}"
        )
    return content


def _canonical(content: Any) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()
