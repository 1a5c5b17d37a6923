"""What of a corpus config decides the rows, without anything of this machine."""

from dataclasses import asdict
from typing import Any

from actlake.platform.corpus.beginning import Beginning
from actlake.platform.corpus.chat_template import ChatTemplate
from actlake.platform.corpus.config import CorpusConfig
from actlake.platform.corpus.demo_text import demo_text_digest
from actlake.platform.corpus.hub_dataset import dataset_name
from actlake.platform.corpus.paths import portable
from actlake.platform.corpus.sources import Builtin, Files, HubDataset


def corpus_provenance(
    config: CorpusConfig, beginning: Beginning, template: ChatTemplate | None = None
) -> dict[str, Any]:
    """The config as plain JSON; of a path only the part below its root, of ``bos`` what it is.

    Of conversations the template counts too, by its hash, as what decides their tokens.

    The text itself is known by the checksums of the rows. The demo text has a hash here, since
    it differs between versions of Python.
    """
    plain: dict[str, Any] = asdict(config)
    plain["bos"] = {"at": beginning.at, "ids": list(beginning.ids)}
    if isinstance(config.source, Files):
        plain["source"]["path"] = [portable(pattern) for pattern in config.source.paths]
    elif isinstance(config.source, HubDataset):
        plain["source"]["dataset"] = dataset_name(config.source)
    elif isinstance(config.source, Builtin):
        plain["source"]["sha256"] = demo_text_digest()
    if template is not None:
        plain["chat_template"] = {"sha256": template.sha256}
        if template.date is not None:
            plain["chat_template"]["date"] = template.date
    return plain
