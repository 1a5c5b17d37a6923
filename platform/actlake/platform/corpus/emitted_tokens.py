"""Which tokens the rows of a corpus may hold; known before a text is read."""

from actlake.platform.corpus.beginning import resolve_beginning
from actlake.platform.corpus.config import CorpusConfig
from actlake.platform.corpus.special_tokens import special_tokens
from actlake.platform.corpus.tokenise import Tokenizer, separator_id


def emitted_tokens(config: CorpusConfig, tokenizer: Tokenizer) -> dict[int, str]:
    """Id and name of every token that a text may become, and of those that join texts.

    Special tokens are among them only where the corpus puts them, or where they are meant when
    they are written in the text. So a tokenizer that has some which its model lacks, as for
    padding, may still serve.

    Raises
    ------
    TokenizerUnfit
        A token that the corpus puts between texts is none of the tokenizer's.
    """
    # Made anew at each call, a tenth of a second for Gemma, which has six thousand special tokens.
    ids = tokenizer.get_vocab()
    names = {id: name for name, id in ids.items()}
    if config.special_tokens_are == "special":
        return names
    put = {*resolve_beginning(config.bos, tokenizer).ids, separator_id(config, tokenizer)}
    left_out = {ids[name] for name in special_tokens(tokenizer)}
    left_out -= {*put, tokenizer.unk_token_id}
    return {id: name for id, name in names.items() if id not in left_out}
