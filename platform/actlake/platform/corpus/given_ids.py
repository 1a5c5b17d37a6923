"""Documents that are given as token ids, such as text that a model has written."""

from collections.abc import Sequence

import numpy as np

from actlake.platform.corpus.errors import InvalidColumn
from actlake.platform.corpus.tokenise import Int32s, Tokenizer


class GivenIds:
    """Reads token ids of a tokenizer from a column, and refuses whatever else it holds."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = np.fromiter(tokenizer.get_vocab().values(), np.int64)
        self._is_token = np.zeros(int(ids.max()) + 1, bool)
        self._is_token[ids] = True

    def read(self, value: object, place: str) -> Int32s:
        """(n,) int32; of nothing, none.

        Raises
        ------
        InvalidColumn
            It is no list, or holds something else than whole numbers (true and 3.0 are none), or
            one that is no token of the tokenizer's.
        """
        if value is None:
            return np.empty(0, np.int32)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _refused(place, f"holds {value!r:.60}, which is no list")
        for kind in {type(one) for one in value} - {int}:
            at, one = next((at, one) for at, one in enumerate(value) if type(one) is kind)
            raise _refused(place, f"holds {one!r:.60} at place {at}, which is no whole number")
        most = len(self._is_token)
        for at, one in enumerate(value):
            if not (0 <= one < most and self._is_token[one]):
                raise _refused(
                    place,
                    f"holds {one} at place {at}, which is no token: the tokenizer's are 0 to "
                    f"{most - 1:,}",
                )
        return np.array(value, np.int32)


def _refused(place: str, what: str) -> InvalidColumn:
    return InvalidColumn(
        f"{place} {what}\n"
        "hint: corpus.source.ids_column names lists of token ids, whole numbers that the model's "
        "own tokenizer has made"
    )
