"""The tokenizer of a model: load it, and save its files beside a store's rows."""

import logging
from pathlib import Path
from typing import Any

from actlake.platform.models.errors import TokenizerNotSupported
from actlake.platform.models.source import ResolvedModel

logger = logging.getLogger(__name__)


def load_tokenizer(model: ResolvedModel) -> Any:
    """The model's Hugging Face tokenizer, of the fast kind.

    Only the fast kind knows where in a text each token begins, which every row records. Where
    its settings say ``add_bos_token: true`` it does so, although transformers 5 goes by the
    template of tokenizer.json alone and forgets that setting (DeepSeek-V3 has it there only).

    Raises
    ------
    TokenizerNotSupported
        The model comes without a tokenizer, or with a slow one only.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    revision = model.commit or "main"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.location, revision=revision, trust_remote_code=model.trust_remote_code
        )
        settings = get_tokenizer_config(model.location, revision=revision)
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
    if settings.get("add_bos_token") is True:
        _begin_with_bos(tokenizer)
    return tokenizer


def _begin_with_bos(tokenizer: Any) -> None:
    """Let a tokenizer that has a beginning-of-text token put it before every text."""
    from tokenizers.processors import Sequence, TemplateProcessing

    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    if bos_id is None or bos_id in tokenizer("")["input_ids"]:
        return
    template = TemplateProcessing(
        single=[f"{bos}:0", "$A:0"],
        pair=[f"{bos}:0", "$A:0", f"{bos}:1", "$B:1"],
        special_tokens=[(bos, bos_id)],
    )
    before = tokenizer.backend_tokenizer.post_processor
    # What is there stays: the byte-level one decides where tokens begin.
    tokenizer.backend_tokenizer.post_processor = (
        template if before is None else Sequence([before, template])
    )
    logger.info("The tokenizer begins texts with %s, as its add_bos_token says", bos)


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
