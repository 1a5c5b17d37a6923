"""Open a corpus: one table from source to reader."""

from collections.abc import Iterable, Iterator, Mapping

from actlake.platform.corpus.chat_template import ChatTemplate
from actlake.platform.corpus.chosen import LeftOut, chosen
from actlake.platform.corpus.config import CorpusConfig
from actlake.platform.corpus.cut import cut_documents
from actlake.platform.corpus.demo_text import read_demo_text
from actlake.platform.corpus.errors import ColumnMissing
from actlake.platform.corpus.hub_dataset import read_hub_dataset
from actlake.platform.corpus.jsonl import read_jsonl
from actlake.platform.corpus.parquet import read_parquet
from actlake.platform.corpus.passages import (
    ColumnPlan,
    Passage,
    Row,
    Unreadable,
    Vocabulary,
    passages,
    refuse,
)
from actlake.platform.corpus.paths import SourceFile, find_files
from actlake.platform.corpus.sources import Files, HubDataset
from actlake.platform.corpus.text_files import read_text_file


def read_corpus(
    config: CorpusConfig,
    template: ChatTemplate | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    known: Iterable[str] = (),
) -> Iterator[Passage | Unreadable | LeftOut]:
    """Every document of the source, in its fixed order, one at a time; cut and chosen as asked.

    Parameters
    ----------
    template
        What writes conversations as texts, where the source has such.
    vocabulary
        What token ids are checked against, where documents are given as such.
    known
        Texts of earlier documents, elsewhere, where each text is wanted once.

    Raises
    ------
    CorpusError
        Whatever a reader refuses; see `actlake.platform.corpus.errors`.
    """
    whole = _whole_documents(config, template, vocabulary)
    cut = whole if config.cut_documents is None else cut_documents(whole, config.cut_documents)
    yield from chosen(cut, config, known=known)


def _whole_documents(
    config: CorpusConfig, template: ChatTemplate | None, vocabulary: Vocabulary | None
) -> Iterator[Passage | Unreadable]:
    source = config.source
    column = config.splits.needed_column
    also = () if column is None else (column,)
    if isinstance(source, Files):
        plan = _plan(source, also, template, vocabulary)
        yield from _read_files(source, plan, config.cut_documents)
    elif isinstance(source, HubDataset):
        plan = _plan(source, also, template, vocabulary)
        yield from _refusing(passages(read_hub_dataset(source, plan), plan))
    else:
        yield from read_demo_text()


def _plan(
    source: Files | HubDataset,
    also: tuple[str, ...],
    template: ChatTemplate | None,
    vocabulary: Vocabulary | None,
) -> ColumnPlan:
    keep = source.columns
    if keep is not None and not isinstance(keep, Mapping):
        keep = {name: name for name in keep}
    return ColumnPlan(
        text=source.messages_column or source.text_column,
        id=source.id_column,
        keep=keep,
        also=also,
        segments=source.segments_column,
        template=template,
        ids=source.ids_column,
        vocabulary=vocabulary,
    )


def _read_files(
    source: Files, plan: ColumnPlan, part_characters: int | None
) -> Iterator[Passage | Unreadable]:
    for file in find_files(source.paths, source.format):
        if file.format == "text":
            _refuse_columns(file, plan)
            found = read_text_file(file, source.encoding, part_characters=part_characters)
        else:
            found = passages(_read_table(file, source.encoding, plan), plan)
        yield from found if source.undecodable == "skip" else _refusing(found)


def _refuse_columns(file: SourceFile, plan: ColumnPlan) -> None:
    for column in (plan.text if plan.template else None, plan.ids, plan.segments):
        if column is not None:
            raise ColumnMissing(
                f"{file.name} is a text and has no column {column!r}\n"
                "hint: conversations, ids and segments are read from JSONL and Parquet; narrow the "
                "pattern"
            )


def _read_table(file: SourceFile, encoding: str, plan: ColumnPlan) -> Iterator[Row | Unreadable]:
    return read_jsonl(file, encoding) if file.format == "jsonl" else read_parquet(file, plan)


def _refusing(found: Iterator[Passage | Unreadable]) -> Iterator[Passage]:
    for item in found:
        if isinstance(item, Unreadable):
            raise refuse(item)
        yield item
