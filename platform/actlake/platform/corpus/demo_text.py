"""The text that is on every machine: Python's own reference prose, a topic a document."""

import hashlib
from collections.abc import Iterator

from actlake.platform.corpus.passages import Passage

SOURCE = "pydoc_data.topics"


def read_demo_text() -> Iterator[Passage]:
    """Each topic of `pydoc_data.topics`, in order of name, with the id ``pydoc/<topic>``."""
    for topic, text in sorted(_topics().items()):
        name = f"pydoc/{topic}"
        yield Passage(place=name, source=SOURCE, id=name, text=text)


def demo_text_digest() -> str:
    """Hash of the text, which differs between versions of Python."""
    digest = hashlib.sha256()
    for passage in read_demo_text():
        digest.update(f"{passage.id}\n{passage.text}\n".encode())
    return digest.hexdigest()[:16]


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return dict(topics)
