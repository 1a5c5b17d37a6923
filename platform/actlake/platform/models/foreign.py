"""What other libraries raise while they load a model, in our words.

transformers, the packages that it loads with and the code of a model raise anything: ImportError,
ValueError, KeyError, bare exceptions. Each is a refusal with a hint that fits, except where the
machine is at fault: a full memory or a failed device says nothing about the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from actlake.platform.models.errors import ModelError, ModelNotSupported

# What other libraries raise about the machine and not about the model.
OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error tells of the machine: its memory is full, or a device failed."""
    # torch's words for a full host are those of a plain RuntimeError.
    return isinstance(error, OF_THE_MACHINE) or "allocate memory" in str(error)


@contextmanager
def foreign_errors(deed: str, *, hint: str | None = None) -> Iterator[None]:
    """Raise what another library raises as a refusal that says what it was doing.

    Parameters
    ----------
    deed
        What it cannot do if it fails, such as ``load the head of pythia-70m``.
    hint
        What helps, where that is known better than from the kind of the error.

    Raises
    ------
    ModelNotSupported
        Instead of any error that is neither ours nor the machine's.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ModelError) or is_of_the_machine(error):
            raise
        raise ModelNotSupported(
            f"transformers cannot {deed}: {type(error).__name__}: {_words(error)}\n"
            f"hint: {hint or _hint(error)}"
        ) from error


def _words(error: Exception) -> str:
    return str(error).strip() or "it says no more"


def _hint(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install the package that it names, on every node"
    if isinstance(error, OSError):
        return "copy or download the model again"
    return (
        "load the model with transformers alone, to see whether this version can; a newer one may"
    )
