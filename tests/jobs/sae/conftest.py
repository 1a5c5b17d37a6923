"""A tiny transformer that has read some text, and the store of what it computed."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.platform.models import load_chain, resolve_model
from actlake.platform.models.chain import ModelChain
from actlake.platform.models.config import ModelConfig
from actlake.storage import (
    ActivationStore,
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    open_store,
    write_store,
)

END = "<end>"
DIM, LENGTH = 16, 24
SITES = (
    Site(0), Site(1), Site(2), Site(1, "mlp_in"), Site(1, "mlp_out"),
)  # fmt: skip
TEXT = (
    "Paris is in France . <script>alert(1)</script> & snow 🙂 in naïve Zürich , New York is "
    "a city ; class A : return new york 雪 falls on it again and again"
)


@dataclass(frozen=True)
class Spoken:
    """A store of a tiny model's activations, and what they were made of."""

    folder: Path
    model_folder: Path
    chain: ModelChain
    ids: np.ndarray
    """(contexts, LENGTH)."""
    documents: np.ndarray
    """(contexts, LENGTH), two documents in each context."""
    end: int
    acts: dict[Site, np.ndarray]
    """(rows, DIM) each."""

    def store(self) -> ActivationStore:
        return open_store(self.folder)

    @property
    def allowed(self) -> np.ndarray:
        """(contexts, LENGTH): neither position 0 nor special."""
        allowed = self.ids != self.end
        allowed[:, 0] = False
        return allowed

    def contexts(self, split: str) -> np.ndarray:
        """Numbers of the contexts of a split."""
        return np.flatnonzero((np.arange(len(self.ids)) % 3 == 0) == (split == "test"))


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=330, special_tokens=[END], initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _save_model(folder: Path, vocabulary: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=DIM, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        vocab_size=vocabulary, max_position_embeddings=64, initializer_range=0.4,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # norms of a trained model are not 1
        model.model.norm.weight.uniform_(0.5, 2.0)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    """60 contexts of two documents each, every third of them test."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("spoken")
    texts = [" ".join(rng.choice(TEXT.split(), 40)) for _ in range(120)]
    tokenizer = _tokenizer(texts)
    end = tokenizer.token_to_id(END)
    _save_model(root / "llama", tokenizer.get_vocab_size())
    model = resolve_model(ModelConfig(name=str(root / "llama"), device="cpu"))
    chain = load_chain(model, SITES, threads=1)
    half = LENGTH // 2
    tokens = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    ids = np.array(
        [[*tokens[2 * c][: half - 1], end, *tokens[2 * c + 1][:half]] for c in range(60)], np.int32
    )
    documents = np.repeat(np.arange(120).reshape(60, 2), half, axis=1)
    seen = chain.capture(torch.from_numpy(ids.astype(np.int64)))
    acts = {site: seen[site].reshape(-1, DIM).numpy() for site in SITES}
    spoken = Spoken(root / "store", root / "llama", chain, ids, documents, end, acts)
    _write(spoken, texts, model.revision, tokenizer)
    return spoken


def _write(spoken: Spoken, texts: list[str], revision: str, tokenizer: Any) -> None:
    splits = ["test" if c % 3 == 0 else "train" for c in range(len(spoken.ids))]
    documents = [
        Document(f"d{number:03d}", "made", splits[number // 2], text, {})
        for number, text in enumerate(texts)
    ]
    places = np.arange(LENGTH, dtype=np.int32)
    contexts = [
        Context(row, owners, places, split)
        for row, owners, split in zip(spoken.ids, spoken.documents, splits, strict=True)
    ]
    write_store(
        spoken.folder,
        [*documents, *contexts],
        spoken.acts,
        provenance=Provenance(model={"name": "tiny", "revision": revision}),
        splits=("test", "train"),
        layout="packed",
        special_ids=(spoken.end,),
        tokenizer=tokenizer.to_str(),
        geometry=Geometry(unit_rows=240, chunk_bytes=60 * 4 * DIM),
        request={"model": {"name": str(spoken.model_folder), "device": "cpu"}},
    )


class SAELens:
    """The library whose losses, weights and files ours must be; imported when first used."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # it imports what TransformerLens deprecates
            warnings.simplefilter("ignore")
            import sae_lens
            from sae_lens import registry
            from sae_lens.saes.sae import TrainStepInput

        self.package, self.registry, self.step_input = sae_lens, registry, TrainStepInput

    def config_class(self, architecture: str) -> type:
        """Its training configuration."""
        return self.registry.get_sae_training_class(architecture)[1]

    def training(
        self, architecture: str, options: Mapping[str, Any], d_in: int, d_sae: int, *, seed: int
    ) -> Any:
        """An SAE in training, drawn from a seed."""
        kind, config = self.registry.get_sae_training_class(architecture)
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
        if architecture == "matching_pursuit":
            fields.setdefault("decoder_init_norm", 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind(config(d_in=d_in, d_sae=d_sae, **fields))

    def step(self, sae: Any, x: torch.Tensor, coefficients: Mapping[str, float], dead: Any) -> Any:
        """Its training step's output."""
        return sae.training_forward_pass(
            step_input=self.step_input(
                sae_in=x,
                coefficients=dict(coefficients),
                dead_neuron_mask=dead,
                n_training_steps=0,
                is_logging_step=False,
            )
        )

    def load(self, folder: Path) -> Any:
        """An SAE from disk, in the form that is used."""
        return self.package.SAE.load_from_disk(folder)


@pytest.fixture(scope="session")
def saelens() -> SAELens:
    return SAELens()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)
