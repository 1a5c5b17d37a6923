"""What laying out a corpus did, counted."""

from collections.abc import Mapping
from dataclasses import dataclass

from actlake.platform.corpus.config import InText

EXAMPLES_AT_MOST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusReport:
    """Counts that add up; nothing left out is left uncounted.

        documents_seen == documents + empty_documents + skipped_documents
                          + unsampled_documents + duplicate_documents
        tokens_seen    == text_tokens + truncated_tokens + cut_tokens
        rows           == text_tokens + separators + bos_tokens == sum of rows_per_split

    Documents after a budget was reached are not seen.
    """

    documents: int
    """Documents with at least one row."""
    empty_documents: int
    """Documents without a token, null or blank; they have no rows and no ordinal."""
    skipped_documents: int
    """Places that could not be decoded, where that was allowed."""
    repeated_documents: int
    """Documents named after their content that equal an earlier one; their rows are kept."""
    unsampled_documents: int
    """Documents that are not in the sample that was asked for."""
    duplicate_documents: int
    """Documents left out since their text is that of an earlier one, where that was asked for."""

    rows: int
    """Tokens laid out, of every kind."""
    contexts: int
    text_tokens: int
    """Tokens of the text itself."""
    separators: int
    bos_tokens: int
    special_tokens: Mapping[str, int]
    """How often each special token is written in the texts, whole, of documents that have rows."""
    special_tokens_are: InText
    """What they were taken for."""
    truncated_tokens: int
    """Tokens beyond the context, of documents that were truncated."""
    cut_tokens: int
    """Tokens that the last document lost to the budget."""

    rows_per_split: Mapping[str, int]
    """Every split that was asked for is here, also with 0."""
    documents_per_split: Mapping[str, int]
    expected_shares: Mapping[str, float]
    """Of each split the share of rows to be expected; empty where a column says the splits."""

    truncated_documents: int
    continued_documents: int
    """Documents longer than a context that go on in further ones (layout `documents`)."""
    documents_without_places: int
    """Documents given as ids, of whose tokens nobody knows where in the text they stand."""
    budget_reached: bool
    """Whether `max_tokens` or `max_documents` ended the reading."""

    empty_examples: tuple[str, ...]
    """Where the first few empty documents are."""
    skipped_examples: tuple[str, ...]
    """Where the first few skipped documents are, and why."""

    @property
    def documents_seen(self) -> int:
        """Documents that were read, whatever became of them."""
        read = self.documents + self.empty_documents + self.skipped_documents
        return read + self.unsampled_documents + self.duplicate_documents

    @property
    def tokens_seen(self) -> int:
        """Tokens of the text of all documents that have rows."""
        return self.text_tokens + self.truncated_tokens + self.cut_tokens

    @property
    def shares_are_far_off(self) -> bool:
        """Whether a split has less than half of the rows expected of it, or more than twice."""
        return any(
            not expected / 2 <= self._share(split) <= 2 * expected
            for split, expected in self.expected_shares.items()
        )

    @property
    def shares_said(self) -> str:
        """For a person: what each split has of the rows, and what to do where that is far off."""
        shares = ", ".join(
            f"{split} {self._share(split):.1%} ({expected:.1%} expected)"
            for split, expected in self.expected_shares.items()
        )
        return (
            f"Splits have other shares of the rows than expected: {shares}; few documents hold "
            "most of the text: corpus.cut_documents divides long ones, corpus.splits.seed draws "
            "other splits"
        )

    def _share(self, split: str) -> float:
        return self.rows_per_split[split] / max(1, self.rows)

    def __str__(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.documents:,} documents, {self.rows:,} rows in {self.contexts:,} contexts",
            *(
                f"  {split}: {rows:,} rows ({self._share(split):.1%}) of "
                f"{self.documents_per_split[split]:,} documents"
                for split, rows in self.rows_per_split.items()
            ),
            f"  {self.text_tokens:,} of text, {self.separators:,} separators, "
            f"{self.bos_tokens:,} beginnings of text",
        ]
        if self.special_tokens:
            lines.append(f"  {special_tokens_said(self.special_tokens_are, self.special_tokens)}")
        if self.budget_reached:
            lines.append(f"  stopped at the budget; {self.cut_tokens:,} tokens cut from the last")
        if self.truncated_documents:
            lines.append(
                f"  {self.truncated_documents:,} documents truncated by "
                f"{self.truncated_tokens:,} tokens"
            )
        if self.continued_documents:
            lines.append(f"  {self.continued_documents:,} documents go on in further contexts")
        if self.repeated_documents:
            lines.append(f"  {self.repeated_documents:,} documents equal an earlier one")
        if self.unsampled_documents:
            lines.append(f"  {self.unsampled_documents:,} documents left out by the sample")
        if self.duplicate_documents:
            lines.append(
                f"  {self.duplicate_documents:,} documents left out whose text is an earlier one's"
            )
        if self.documents_without_places:
            lines.append(
                f"  {self.documents_without_places:,} documents whose ids are not those of a text "
                "beside them: they are found by token, and not by text"
            )
        lines += _named("empty", self.empty_documents, self.empty_examples)
        lines += _named("skipped", self.skipped_documents, self.skipped_examples)
        return "\n".join(lines)


def special_tokens_said(are: InText, written: Mapping[str, int] | None = None) -> str:
    """For a person: what special tokens in the text are, and how many there are where known."""
    taken = {
        "ordinary": "ordinary text",
        "special": "the tokens themselves",
        "refuse": "refused",
    }[are]
    if written is None:
        return f"special tokens written in the text are {taken}"
    if not written:
        return "no special token is written in the text"
    shown = ", ".join(f"{token} {count:,}" for token, count in list(written.items())[:3])
    more = ", …" if len(written) > 3 else ""
    total = sum(written.values())
    return f"{total:,} special tokens written in the text, taken for {taken} ({shown}{more})"


def _named(what: str, count: int, examples: tuple[str, ...]) -> list[str]:
    if not count:
        return []
    more = ", …" if count > len(examples) else ""
    return [f"  {count:,} documents {what}: {', '.join(examples)}{more}"]
