"""Which model, at which exact revision, in which numerics: `ModelConfig` and what it resolves to.

    model = resolve_model(ModelConfig(name="EleutherAI/pythia-70m"))
    model.check_sites([Site(3, "resid_post")])
    stage = load_stage(model, range(0, 4), sites)

Resolving reads configuration and hashes, never weights, and gives plain data that can be
printed, recorded and sent to other processes.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actlake.platform.models.anatomy import (
    Anatomy,
    dissect,
    max_positions_of,
    model_class,
)
from actlake.platform.models.config import ModelConfig
from actlake.platform.models.errors import (
    ContextTooLong,
    ModelNotFound,
    SiteNotInModel,
    VocabularyTooSmall,
    WeightsMismatch,
)
from actlake.platform.models.foreign import foreign_errors
from actlake.platform.models.locate import locate, settings_digest
from actlake.platform.models.numerics import (
    Resolved,
    resolve_attention,
    resolve_device,
    resolve_dtype,
)
from actlake.platform.models.points import POINTS
from actlake.platform.models.quantization import (
    check_method,
    check_scales,
    method_of,
)
from actlake.platform.models.weights import WeightFile
from actlake.platform.models.wiring import STREAM, is_parallel
from actlake.storage.sites import Site

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was found: where, which one, how it is built and how it will run.

    Plain data: it can be pickled, and holds neither weights nor open files.
    """

    name: str
    """As it was asked for."""

    revision: str
    """The commit on the hub, or ``sha256:…`` of the configuration and the weights that are
    loaded. Equal revisions are equal models, whatever their names."""

    location: str
    """The folder, or the id of the hub, to load from. A machine's matter: not for records."""

    commit: str | None
    """The commit to load from the hub; None for a folder."""

    settings: str | None
    """SHA-256 of a folder's configuration and code, compared again as the weights are."""

    weights: tuple[WeightFile, ...]
    """The files of weights of a folder, which are compared again when they are loaded. Empty
    for the hub, where the commit says them."""

    nested: bool
    """Whether it is the decoder of a model that also reads images or sound."""

    family: str
    """What transformers calls ``model_type``, such as ``llama``."""

    num_layers: int

    dim: int
    """Width of the residual stream."""

    vocab_size: int

    max_positions: int | None
    """Longest context, in tokens; None where positions have no end."""

    dtype: Resolved[torch.dtype]
    device: Resolved[str]
    attention: Resolved[str]
    trust_remote_code: bool
    quantization: str | None
    """How its weights are quantised, such as ``fp8``; None where they are not."""
    anatomy: Anatomy

    @property
    def parallel(self) -> bool:
        """Whether blocks add attention and MLP at once, so that there is no ``resid_mid``."""
        return all(is_parallel(wiring) for wiring in self.anatomy.wirings)

    @property
    def dtype_name(self) -> str:
        """The dtype as it is written in configs and records, such as ``float32``."""
        return str(self.dtype.value).removeprefix("torch.")

    @property
    def hf_config(self) -> Any:
        """A fresh Hugging Face configuration of the decoder, with the attention set."""
        return self.whole_config.get_text_config(decoder=True)

    @property
    def whole_config(self) -> Any:
        """A fresh Hugging Face configuration of the whole model, with the decoder's attention.

        Raises
        ------
        WeightsMismatch
            The folder's is another on this machine, or its code is.
        """
        if self.commit is None:
            self._check_settings()
        whole = _read_config(self.location, self.commit, self.trust_remote_code)
        whole.get_text_config(decoder=True)._attn_implementation = self.attention.value
        return whole

    @property
    def model_class(self) -> type[Any]:
        """The class of the whole model in transformers, or in the code that comes with it."""
        return model_class(
            self.whole_config,
            location=self.location,
            commit=self.commit,
            trust_remote_code=self.trust_remote_code,
        )

    def _check_settings(self) -> None:
        try:
            found = settings_digest(Path(self.location), with_code=self.trust_remote_code)
        except OSError as error:
            raise WeightsMismatch(
                f"The configuration of {self.name} cannot be read: {error}\n"
                f"hint: every node needs the model's folder, at the same path"
            ) from error
        if found.hexdigest() != self.settings:
            raise WeightsMismatch(
                f"The config.json of {self.name}, or code beside it, is another than when the "
                f"model was found\n"
                f"hint: leave the folder alone while it is used, and give every node the same one"
            )

    def sites(self) -> list[Site]:
        """All sites that can be stored, in order; ``resid_pre.l`` stands under its stored name."""
        named = (
            Site(layer, point)
            for layer, wiring in enumerate(self.anatomy.wirings)
            for point in wiring
        )
        return sorted({site.stored for site in named})

    def check_sites(self, sites: Iterable[Site]) -> None:
        """Refuse sites the model does not have. Weights are not needed for it.

        Raises
        ------
        SiteNotInModel
            A layer is out of range, or the family's blocks have no such point.
        """
        for site in sites:
            self._check_site(site)

    def _check_site(self, site: Site) -> None:
        if site.layer >= self.num_layers:
            raise SiteNotInModel(
                f"There is no site {site}: {self.name} has {self.num_layers} layers\n"
                f"hint: layers are counted from 0, so the last is {self.num_layers - 1}"
            )
        wiring = self.anatomy.wirings[site.layer]
        if site.point in wiring:
            return
        there = ", ".join(point for point in POINTS if point in wiring)
        raise SiteNotInModel(
            f"There is no site {site} in {self.name} (family {self.family}): "
            f"{self._why_not(site)}\n"
            f"Layer {site.layer} has {there}\n"
            f"hint: choose among those"
        )

    def _why_not(self, site: Site) -> str:
        wiring = self.anatomy.wirings[site.layer]
        if is_parallel(wiring) and site.point == "resid_mid":
            return "its blocks add attention and MLP in parallel, with no stream between them"
        if wiring.keys() == STREAM.keys():
            return "actlake does not know the modules inside this family's blocks"
        return "no module of its blocks carries that tensor by itself"

    def check_tokens(self, tokens: Mapping[int, str]) -> None:
        """Refuse a tokenizer with tokens that the embedding has no row for; more rows are fine.

        Parameters
        ----------
        tokens
            Id and name of each token that a text may become.

        Raises
        ------
        VocabularyTooSmall
            The tokens are named.
        """
        rows = self.anatomy.embedding_rows
        beyond = sorted((id, name) for id, name in tokens.items() if not 0 <= id < rows)
        if beyond:
            shown = ", ".join(f"{name!r} ({id})" for id, name in beyond[:5])
            raise VocabularyTooSmall(
                f"The embedding of {self.name} has {rows:,} rows, and its tokenizer "
                f"{len(beyond):,} tokens beyond them: {shown}{', …' if len(beyond) > 5 else ''}\n"
                "hint: give the model the tokenizer that it was trained with, or save it again "
                "after resize_token_embeddings(len(tokenizer)) and training its new rows"
            )

    def check_context(self, num_tokens: int) -> None:
        """Refuse a context longer than the model's positions.

        Raises
        ------
        ContextTooLong
            The model was built for fewer tokens at once.
        """
        if self.max_positions is not None and num_tokens > self.max_positions:
            raise ContextTooLong(
                f"Contexts of {num_tokens} tokens are longer than the {self.max_positions} "
                f"positions of {self.name}\n"
                f"hint: use a context length of at most {self.max_positions}"
            )


def resolve_model(config: ModelConfig, *, here: bool = True) -> ResolvedModel:
    """Find the model and decide how it will run, without reading its weights.

    On the hub only the configuration is fetched. Files of a folder are hashed, at about
    1.8 GB/s. A GGUF file is converted, once per machine.

    Parameters
    ----------
    config
        What was asked for.
    here
        Whether it is to run on this machine; False lets a driver without a GPU resolve a
        model for actors that have one.

    Raises
    ------
    ModelNotFound
        There is no such model, or no such revision.
    HubUnreachable
        It would have to be downloaded and cannot be.
    ModelNotSupported
        It is not a decoder, its blocks need more than the hidden state, or its weights are
        quantised in a way that is not loaded here.
    InvalidModelConfig
        The device is not here, or the family does not have that attention.
    WeightsMismatch
        The folder's weights are not all there.
    """
    located = locate(config.name, config.revision, with_code=config.trust_remote_code)
    device = resolve_device(config.device, here=here)
    dtype = resolve_dtype(config.dtype, device.value)
    whole = _read_config(located.location, located.commit, config.trust_remote_code)
    decoder = whole.get_text_config(decoder=True)
    check_method(whole, of=config.name, device=device.value, here=here)
    cls = model_class(
        whole,
        location=located.location,
        commit=located.commit,
        trust_remote_code=config.trust_remote_code,
    )
    attention = resolve_attention(config.attention, decoder.model_type, cls)
    decoder._attn_implementation = attention.value
    quantization = method_of(whole)
    is_part = decoder is not whole
    anatomy = dissect(whole, cls)
    model = ResolvedModel(
        name=config.name,
        revision=located.revision,
        location=located.location,
        commit=located.commit,
        settings=located.settings,
        weights=located.weights,
        nested=is_part,
        family=decoder.model_type,
        num_layers=len(anatomy.block_params),
        dim=int(decoder.hidden_size),
        vocab_size=int(decoder.vocab_size),
        max_positions=max_positions_of(decoder),
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=config.trust_remote_code,
        quantization=quantization,
        anatomy=anatomy,
    )
    if model.commit is None:
        check_scales(
            (Path(model.location) / file.name for file in model.weights),
            model.quantization,
            of=model.name,
        )
    logger.info(
        "Model %s: %s, %d layers of width %d, revision %.19s, dtype %s, device %s, attention %s%s",
        model.name, model.family, model.num_layers, model.dim, model.revision, dtype, device,
        attention, f", weights quantised with {model.quantization}" if model.quantization else "",
    )  # fmt: skip
    return model


def _read_config(location: str, commit: str | None, trust_remote_code: bool) -> Any:
    """The configuration of the whole model; a new one each time, as loading changes it."""
    from transformers import AutoConfig

    with foreign_errors(
        f"read the configuration of {location!r}",
        hint="a newer transformers may know the family; code that comes with the model is run only "
        "with trust_remote_code: true, and needs the packages that it names",
    ):
        try:
            return AutoConfig.from_pretrained(
                location, revision=commit or "main", trust_remote_code=trust_remote_code
            )
        except OSError as error:
            raise ModelNotFound(
                f"The config.json of {location!r} cannot be read: {error}\n"
                f"hint: copy or download the model again"
            ) from error
