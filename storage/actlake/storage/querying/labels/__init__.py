"""Label tables, attached to a store beside its rows, which stay as they are.

A label table is keyed in one of three ways:

    "document"                     a label a document, by its id
    ("document", "start", "stop")  a label a span of characters ``start <= c < stop``
    "row"                          a label a row

and holds any other columns.

    given_table   a table as it is given: a file, a data frame     `read_table`
    alignment     how its keys fit the store                       `Alignment`, `fit`
    label_file    ``labels/<name>.parquet``                        `labels_relation`
    attachment    attaching, and what is attached                  `attach_labels`, `Labels`
"""

from actlake.storage.querying.labels.alignment import Alignment
from actlake.storage.querying.labels.attachment import Key, Labels, Misaligned, attach_labels
from actlake.storage.querying.labels.given_table import read_table
from actlake.storage.querying.labels.label_file import attached_names

__all__ = [
    "Alignment",
    "Key",
    "Labels",
    "Misaligned",
    "attach_labels",
    "attached_names",
    "read_table",
]
