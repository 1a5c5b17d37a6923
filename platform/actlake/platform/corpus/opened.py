"""Open a file of bytes, compressed or not; what is broken is named."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import pyarrow as pa

from actlake.platform.corpus.errors import UnreadableFile
from actlake.platform.corpus.paths import SourceFile


@contextmanager
def opened(file: SourceFile) -> Iterator[IO[bytes]]:
    """The file's content, decompressed as its suffix says (``.gz``, ``.zst``).

    Raises
    ------
    UnreadableFile
        It cannot be opened, is damaged, or ends too early.
    """
    try:
        with _open(file) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(
            f"{file.name} cannot be read: {error}\n"
            "hint: fetch the file again, or leave it out of the pattern"
        ) from error


def _open(file: SourceFile) -> IO[bytes]:
    if file.path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(file.path, "rb"))
    if file.path.suffix == ".zst":
        # Buffered, since Arrow's own streams do not iterate over lines.
        return io.BufferedReader(pa.input_stream(str(file.path), compression="zstd"))
    return file.path.open("rb")
