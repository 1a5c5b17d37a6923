"""Where the rows come from, and the fingerprint that names them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

JSON = Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What decides the rows of a store: three JSON objects, each written by its owner.

    Nothing of the machine belongs here: not the path, not the number of workers, not the time.
    """

    model: Mapping[str, JSON] = field(default_factory=dict)
    """Name, exact revision, compute dtype."""
    tokenizer: Mapping[str, JSON] = field(default_factory=dict)
    """Name and content hash."""
    corpus: Mapping[str, JSON] = field(default_factory=dict)
    """Sources, layout, context length, splits: the corpus config as given."""

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


def fingerprint(provenance: Provenance, *, contents: Mapping[str, str]) -> str:
    """Short hash of everything that changes the rows, and of nothing else.

    Two stores with one fingerprint hold the same tokens in the same order, seen by the same
    model. Sites, element type, chunk sizes, workers and the URL are left out on purpose.

    Parameters
    ----------
    contents
        SHA-256 of the tokens, contexts and documents, as in ``corpus.json``.
    """
    payload = json.dumps([provenance.as_json(), contents], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


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
