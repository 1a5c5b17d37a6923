from .attaching import Attached, attach_tables
from .cities import places
from .labelled_corpus import LabelledCorpus, LabelTable, read_corpus
from .of_tokens import token_features
from .rated_reviews import sentiment

__all__ = [
    "Attached",
    "LabelTable",
    "LabelledCorpus",
    "attach_tables",
    "places",
    "read_corpus",
    "sentiment",
    "token_features",
]
