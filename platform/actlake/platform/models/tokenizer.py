"""The tokenizer of a model: load it, and save its files beside a store's rows."""

from pathlib import Path
from typing import Any

from actlake.platform.models.errors import TokenizerNotSupported
from actlake.platform.models.source import ResolvedModel


def load_tokenizer(model: ResolvedModel) -> Any:
    """The model's Hugging Face tokenizer, of the fast kind.

    Only the fast kind knows where in a text each token begins, which every row records.

    Raises
    ------
    TokenizerNotSupported
        The model comes without a tokenizer, or with a slow one only.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.location,
            revision=model.commit or "main",
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise TokenizerNotSupported(
            f"{model.name} comes without a tokenizer that transformers can load: {error}\n"
            f"hint: put tokenizer.json and tokenizer_config.json beside its config.json"
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerNotSupported(
            f"{model.name} has only a slow tokenizer ({type(tokenizer).__name__}), which does "
            f"not tell where in the text a token begins\n"
            f"hint: convert it to tokenizer.json with the tokenizers library"
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and what belongs to them.

    Parameters
    ----------
    tokenizer
        From `load_tokenizer`.
    folder
        Made if it is not there. ``tokenizer.json`` alone is enough for the tokenizers library.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
