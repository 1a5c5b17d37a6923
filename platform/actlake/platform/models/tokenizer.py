"""The tokenizer of a model: loaded, known by what it does, and kept beside a store's rows."""

import hashlib
import json
import logging
from typing import Any

from actlake.platform.models.errors import TokenizerNotSupported
from actlake.platform.models.foreign import is_of_the_machine
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
    except Exception as error:  # the tokenizers library raises bare ones
        if is_of_the_machine(error):
            raise
        hint = (
            "install the package that it names"
            if isinstance(error, ImportError)
            else "put tokenizer.json and tokenizer_config.json beside its config.json"
        )
        raise TokenizerNotSupported(
            f"{model.name} comes without a tokenizer that transformers can load: "
            f"{type(error).__name__}: {error}\nhint: {hint}"
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


def tokenizer_file(tokenizer: Any) -> bytes:
    """The ``tokenizer.json`` of a tokenizer: enough for the tokenizers library, and all of it.

    What cuts and pads is left out, which whoever tokenises says each time. transformers' own
    files beside it are not kept: they tell of the machine, such as whether it was offline.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["truncation"] = settings["padding"] = None
    return json.dumps(settings, ensure_ascii=False, indent=1).encode()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256, in hex, of what a tokenizer makes of a text.

    Of tokenizer.json the parts that text goes through, in a form of our own: how a release of
    the library writes a setting that is off, or a merge, does not enter.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {part: settings.get(part) for part in _TOKENISING}
    merges = (parts["model"] or {}).get("merges")
    if merges:
        parts["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in merges]
    canonical = json.dumps(_without_unset(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


_TOKENISING = ("added_tokens", "normalizer", "pre_tokenizer", "model")


def _without_unset(value: Any) -> Any:
    """Plain JSON without the settings that are null, false or empty."""
    if isinstance(value, list):
        return [_without_unset(item) for item in value]
    if isinstance(value, dict):
        kept = {key: _without_unset(item) for key, item in value.items()}
        return {
            key: item for key, item in kept.items() if item or (item == 0 and item is not False)
        }
    return value
