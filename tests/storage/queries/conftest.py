"""A small store of real text: a tokenizer trained in the test, its offsets kept as the oracle."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from actlake.storage import (
    ActivationStore,
    Context,
    Document,
    Geometry,
    Lease,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    add_sites,
    open_store,
    write_unit,
)
from actlake.storage.location import LocalFolder

SITE = Site(2)
END = "<end>"
TEXTS = {
    "paris": "Paris is in France. New York is not. I saw Paris in Paris.",
    "york": "New  York\nis a city;  New York is new. york, yorks, New Yorkers!",
    "snow": "Snow 🙂🙂 in naïve Zürich – 雪が降る。 Paris 🙂",
    "code": "class A:\n    def f(self):\n        return new_york  # Paris class\n",
    "short": "is",
    "again": "Paris is in France, and New York is new. " * 3,
}
SPLITS = ("train", "test", "train", "train", "test", "train")


@dataclass
class Told:
    """What the store holds, token by token."""

    folder: Path
    ids: np.ndarray
    documents: np.ndarray
    spans: list[tuple[int, int]]
    """Character span of each row's token; (-1, -1) of a separator."""
    positions: np.ndarray
    splits: list[str]
    acts: np.ndarray
    tokenizer: Any
    all_texts: dict[str, str]

    @property
    def names(self) -> list[str]:
        return [list(self.all_texts)[d] for d in self.documents]

    @property
    def texts(self) -> list[str]:
        return [self.all_texts[name] for name in self.names]

    def overlapping(self, document: str, begin: int, end: int) -> list[int]:
        return [
            row
            for row, (name, (start, stop)) in enumerate(zip(self.names, self.spans, strict=True))
            if name == document and begin < stop and start < end and start >= 0
        ]

    def store(self) -> ActivationStore:
        return open_store(self.folder)


def train_tokenizer() -> Any:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=[END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS.values()] * 3, trainer)
    return tokenizer


def tell(
    folder: Path,
    tokenizer: Any,
    *,
    keep_text: bool = True,
    cut: int | None = None,
    length: int = 16,
    dtype: str = "float32",
    keep_tokenizer: bool = True,
    skip: tuple[int, ...] = (),
    text: str | None = None,
) -> Told:
    """Build and fill a store of `TEXTS`, packed, the last document cut after `cut` tokens.

    Units to `skip` are not committed; `text` stands in the place of the first.
    """
    texts = TEXTS if text is None else TEXTS | {"paris": text}
    end = tokenizer.token_to_id(END)
    rows: list[tuple[int, int, int, int, str]] = []  # id, document, start, stop, split
    open_contexts: dict[str, list[tuple[int, int, int, int, str]]] = {}
    contexts: list[list[tuple[int, int, int, int, str]]] = []
    for document, (text, split) in enumerate(zip(texts.values(), SPLITS, strict=True)):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        tokens = [
            (token, document, start, stop, split)
            for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True)
        ]
        if cut is not None and document == len(texts) - 1:
            tokens = tokens[:cut]
        else:
            tokens.append((end, document, len(text), len(text), split))
        for token in tokens:
            window = open_contexts.setdefault(split, [])
            window.append(token)
            if len(window) == length:
                contexts.append(open_contexts.pop(split))
    contexts += [open_contexts[split] for split in sorted(open_contexts)]
    rows = [token for context in contexts for token in context]
    request = StoreRequest(
        layout="packed",
        context_length=length,
        splits=("train", "test"),
        special_ids=(end,),
    )
    acts = np.random.default_rng(0).normal(size=(len(rows), 5)).astype(dtype)
    files = {"tokenizer.json": tokenizer.to_str().encode()} if keep_tokenizer else {}
    with Lease.acquire(LocalFolder(folder)) as lease:
        with StoreBuilder(
            lease,
            request,
            Provenance(model={"name": "none"}),
            tokenizer_files=files,
            token_chunk_rows=16,
            token_shard_rows=32,
        ) as builder:
            for (name, text), split in zip(texts.items(), SPLITS, strict=True):
                kept = text if keep_text else None
                own = {"words": len(text.split()), "my col": len(text)}
                builder.add_document(Document(name, "made", split, kept, own))
            for context in contexts:
                ids, documents, starts, _, splits = zip(*context, strict=True)
                builder.add_context(
                    Context(
                        np.array(ids, np.int32),
                        np.array(documents, np.int64),
                        np.array(starts, np.int32),
                        splits[0],
                    )
                )
            builder.finish(lambda rows: Geometry(unit_rows=16, chunk_bytes=8 * 5 * 4))
        store = open_store(folder)
        add_sites(lease, store, {SITE: SiteSchema(dim=5, dtype=dtype)}, {})
        store.refresh()
        for unit in set(range(store.schema.num_units)) - set(skip):
            part = acts[store.schema.unit_extent(unit).slice()]
            lease.ledger.commit(write_unit(store, unit, {SITE: part}, token=lease.token))
    return Told(
        folder,
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        [(row[2], row[3]) if row[2] < row[3] else (-1, -1) for row in rows],
        np.concatenate([np.arange(len(context)) for context in contexts]),
        [row[4] for row in rows],
        acts,
        tokenizer,
        texts,
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[..., Told]:
    """Stores that tests only read, each made once."""
    made: dict[tuple[Any, ...], Told] = {}

    def take(**how: Any) -> Told:
        key = tuple(sorted(how.items()))
        if key not in made:
            made[key] = tell(tmp_path_factory.mktemp("shelf") / "store", tokenizer, **how)
        return made[key]

    return take


@pytest.fixture
def make_told(tmp_path: Path, shelf: Callable[..., Told]) -> Callable[..., Told]:
    """Stores of the test's own."""

    def make(**how: Any) -> Told:
        original = shelf(**how)
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(original.folder, folder)
        return replace(original, folder=folder)

    return make


@pytest.fixture
def told(make_told: Callable[..., Told]) -> Told:
    return make_told()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ACTLAKE_CACHE", str(folder))
    return folder
