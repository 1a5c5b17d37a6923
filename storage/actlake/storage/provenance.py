"""Where the rows come from, and the fingerprint that names them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

JSON = Any

_SHOWN = {"model": ("name", "family"), "tokenizer": ("class",), "corpus": ("source",)}
"""Fields that tell people where something came from; another name is no other thing."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the rows of a store come from: three JSON objects, each written by its owner.

    Some of it is only to be shown: the names of model and family, the tokenizer's class, the
    corpus' source. Nothing of the machine belongs here: not the path, not the number of workers,
    not the time.
    """

    model: Mapping[str, JSON] = field(default_factory=dict)
    """Name, exact revision, compute dtype."""
    tokenizer: Mapping[str, JSON] = field(default_factory=dict)
    """Class, and the hash of what it does."""
    corpus: Mapping[str, JSON] = field(default_factory=dict)
    """Source, layout, context length, splits: the corpus config as given."""

    def as_json(self) -> dict[str, JSON]:
        """Plain JSON; `from_json` reads it back."""
        return {
            "model": dict(self.model),
            "tokenizer": dict(self.tokenizer),
            "corpus": dict(self.corpus),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Self:
        """Read what `as_json` wrote."""
        return cls(**{name: dict(data[name]) for name in ("model", "tokenizer", "corpus")})

    def decisive(self) -> dict[str, JSON]:
        """What is compared: all but what is only shown.

        A model without a revision is known by nothing but its name, which then counts.
        """
        kept = {
            part: {name: value for name, value in values.items() if name not in _SHOWN[part]}
            for part, values in self.as_json().items()
        }
        return kept if "revision" in self.model else kept | {"model": dict(self.model)}

    def shown(self) -> dict[str, JSON]:
        """The rest, which is told where something else differs."""
        compared = self.decisive()
        return {
            part: {name: value for name, value in values.items() if name not in compared[part]}
            for part, values in self.as_json().items()
        }

    def model_identity(self) -> dict[str, JSON]:
        """What decides a row beside its context: the model and the meaning of token ids."""
        decisive = self.decisive()
        return {part: decisive[part] for part in ("model", "tokenizer")}


def fingerprint(provenance: Provenance, *, contents: Mapping[str, str]) -> str:
    """Hash of everything that changes the rows, and of nothing else: 64 hex digits.

    Two stores with one fingerprint hold the same tokens in the same order, seen by the same
    model. Names, the words that the text was asked for with, sites, element type, chunk sizes,
    workers and the URL are left out on purpose.

    Parameters
    ----------
    contents
        SHA-256 of the tokens, contexts and documents.
    """
    payload = json.dumps([provenance.model_identity(), contents], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()


def appended_fingerprint(before: str, *, contents: Mapping[str, str]) -> str:
    """Of a store that was appended to: of the one before, and of what came after it.

    `contents` as for `fingerprint`. A store of both corpora in one has another.
    """
    payload = json.dumps([before, contents], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()


def shortened(fingerprint: str) -> str:
    """The beginning of a fingerprint, or of each of several joined by ``+``, for people."""
    return "+".join(part[:12] for part in fingerprint.split("+"))


def differences(stored: JSON, asked: JSON, *, path: str = "") -> list[str]:
    """Each place where two JSON values differ, a line each: ``path: stored, asked``."""
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        return [
            line
            for key in sorted({*stored, *asked})
            for line in differences(
                stored.get(key, "(nothing)"),
                asked.get(key, "(nothing)"),
                path=f"{path}.{key}" if path else str(key),
            )
        ]
    if _plain(stored) == _plain(asked):
        return []
    return [f"  {path}: stored {json.dumps(stored)}, asked {json.dumps(asked)}"]


def _plain(value: JSON) -> JSON:
    return json.loads(json.dumps(value))
