"""Asking a store: which rows are meant, what they say, what they are labelled with.

Asking:

    arguments        what is given, checked before anything is read
    query            one line for what is meant                          `find`
    sql              DuckDB over the tables; predicates of batches too   `SqlResult`, `rows_where`
    relations        those tables, streamed, only the columns named      `Relation`
    text_search      text and patterns in documents, as rows             `rows_of_text`
    spans            from characters to tokens                           `TokenExtents`
    ranges           many ranges as one array of numbers                 `expanded`

Answers:

    paired           aligned rows of documents, or stores, that differ   `Paired`
    rows             a set of rows that reads, shows and combines itself `Rows`
    passages         rows as text, each with what stands around it       `Passages`
    labels           tables attached beside the rows                     `Labels`
    named_dataset    the store as an xarray dataset                      `to_xarray`
    lazy_variable    one of its variables, read by row numbers

What they look things up in:

    lookup           a store's indexes, each made at first use           `Lookup`
    token_index      rows by token, runs of rows by document             `TokenIndex`
    parts            several stores asked as one                         `parts_of`
    index_file       an index as a memory-mapped file; the user's cache  `open_index`
    vocabulary       tokens by text                                      `Vocabulary`
    document_table   the documents, a batch at a time                    `document_batches`

``store.find``, ``store.paired``, ``store.sql``, ``store.attach_labels`` and ``store.to_xarray`` are
the ways in.
"""

from actlake.storage.querying.labels.alignment import Alignment
from actlake.storage.querying.labels.attachment import Labels
from actlake.storage.querying.passages import Passage, Passages
from actlake.storage.querying.rows import Rows
from actlake.storage.querying.sql import SqlResult

__all__ = ["Alignment", "Labels", "Passage", "Passages", "Rows", "SqlResult"]
