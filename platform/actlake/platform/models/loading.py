"""Load a stage: only the weights of its layers, straight to the device.

The model's own class is built with stand-ins outside the layers, and transformers' own
`from_pretrained` fills it. So everything it knows of checkpoints (shards, tied weights, merged
experts, keys of older releases) holds here too, and what has a stand-in is never read.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actlake.platform.compute_threads import set_compute_threads
from actlake.platform.models.digest import file_digest
from actlake.platform.models.errors import (
    HubUnreachable,
    InvalidSplit,
    WeightsMismatch,
)
from actlake.platform.models.foreign import foreign_errors
from actlake.platform.models.locate import find_file
from actlake.platform.models.quantization import check_scales
from actlake.platform.models.quiet import no_progress_bars
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.stage import ModelStage
from actlake.platform.models.stand_ins import leave_out_of_stage, left_out
from actlake.platform.models.sums import check_sums
from actlake.platform.models.weights import WeightFile, links_to, weight_files
from actlake.storage.sites import Site

logger = logging.getLogger(__name__)


def load_stage(
    model: ResolvedModel, layers: range, sites: Iterable[Site], *, threads: int | None = None
) -> ModelStage:
    """Load the weights of some layers, straight to the model's device, and hook their sites.

    Parameters
    ----------
    model
        From `resolve_model`.
    layers
        The layers of this stage, from those of `split_layers`.
    sites
        All sites of the harvest; the stage takes those that lie in its layers and learns
        from the others whether a later stage needs the hidden state.
    threads
        Compute threads of the whole process from now on; as they are if left out.

    Raises
    ------
    SiteNotInModel
        The model does not have one of the sites; checked before weights are read.
    InvalidSplit
        The model does not have these layers, or no wanted site lies in or above them.
    WeightsMismatch
        Weights of these layers are missing, unreadable or have another shape.
    ModelNotSupported
        The family adds its sublayers to the stream in a way that `wiring` does not know.
    """
    sites = list(sites)
    model.check_sites(sites)
    _check_layers(model, layers, sites)
    if threads is not None:
        set_compute_threads(threads)
    module = _load_module(model, layers)
    stage = ModelStage(module, model, layers, sites)
    check_sums(stage)
    logger.info(
        "Loaded layers [%d, %d) of %s: %.0f MB of parameters on %s, handing out %s",
        layers.start, layers.stop, model.name, stage.param_bytes / 1e6, stage.device,
        ", ".join(map(str, stage.sites)) or "no site",
    )  # fmt: skip
    return stage


def _check_layers(model: ResolvedModel, layers: range, sites: list[Site]) -> None:
    if not (layers.step == 1 and 0 <= layers.start < layers.stop <= model.num_layers):
        raise InvalidSplit(
            f"Layers [{layers.start}, {layers.stop}) are not layers of {model.name}, which has "
            f"[0, {model.num_layers})\n"
            f"hint: let `split_layers` divide them"
        )
    if all(site.stored.layer < layers.start for site in sites):
        raise InvalidSplit(
            f"No wanted site lies in or above layers [{layers.start}, {layers.stop}): "
            f"{', '.join(map(str, sites)) or 'there are none'}\n"
            f"hint: divide only the layers up to the last site's"
        )


def _load_module(model: ResolvedModel, layers: range) -> nn.Module:
    whole = load_pretrained(
        model,
        lambda whole: leave_out_of_stage(whole, model.anatomy, layers),
        layers=layers,
        tied=False,  # there is no head
        what=f"layers [{layers.start}, {layers.stop})",
    )
    return whole.get_submodule(model.anatomy.decoder)


def check_stored_embedding(model: ResolvedModel) -> None:
    """Refuse a folder whose token embedding has another number of rows than its config.json says.

    Reads the headers of its files. Loading refuses it too, but after the text was laid out.

    Raises
    ------
    WeightsMismatch
        Both numbers are named.
    """
    from safetensors import SafetensorError, safe_open

    wanted = f"{model.anatomy.embedding}.weight"
    for file in model.weights if model.quantization is None else ():
        try:
            with safe_open(Path(model.location) / file.name, framework="np") as opened:
                stored = {
                    name: opened.get_slice(name).get_shape()[0]
                    for name in opened.keys()  # noqa: SIM118  it is no mapping
                    if f".{name}".endswith(f".{wanted}")
                }
        except (OSError, SafetensorError):  # loading tells what is wrong with it
            continue
        if stored and model.anatomy.embedding_rows not in stored.values():
            name, rows = next(iter(stored.items()))
            raise _mismatch(
                model,
                "the embedding",
                f"{name} has {rows:,} rows, and config.json says {model.anatomy.embedding_rows:,}",
            )


def load_pretrained(
    model: ResolvedModel,
    leave_out: Callable[[nn.Module], None],
    *,
    layers: range,
    tied: bool,
    what: str,
) -> nn.Module:
    """The whole model with the weights of what is left in, on its device, without gradients.

    Parameters
    ----------
    leave_out
        Puts stand-ins where nothing is to be loaded, before any weight is read.
    layers
        The blocks that are not left out; files with other blocks only are not opened.
    tied
        Whether the unembedding is the embedding.
    what
        What is being loaded, for the words of an error.

    Raises
    ------
    WeightsMismatch, HubUnreachable
        The weights do not fit, are others than when the model was resolved, or cannot be had.
    ModelNotSupported
        They are quantised in a way that is not loaded, or transformers fails on them.
    """
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    device = model.device.value
    config = model.whole_config
    config.transformers_weights = None  # the folder has them under the usual names
    for part in (config, config.get_text_config(decoder=True)):
        part.tie_word_embeddings = tied
    how = f" (quantised with {model.quantization})" if model.quantization else ""
    with (
        weights_for(model, layers) as folder,
        no_progress_bars(),
        foreign_errors(f"load {what} of {model.name}{how}"),
    ):
        check_scales(folder.glob("*.safetensors"), model.quantization, of=model.name)
        try:
            module, info = _without(model, leave_out).from_pretrained(
                folder,
                config=config,
                generation_config=GenerationConfig(),  # else it is looked for beside the weights
                dtype=model.dtype.value,
                device_map=None if device == "cpu" else {"": torch.device(device)},
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, with their names
            )
        except SafetensorError as error:
            raise _mismatch(model, what, str(error)) from error
    for kind in ("missing", "unexpected", "mismatched"):
        if keys := info[f"{kind}_keys"]:
            raise _mismatch(model, what, f"{kind}: {_some(map(_name_and_shapes, keys))}")
    assert isinstance(module, nn.Module)
    return module.requires_grad_(False)


@contextmanager
def weights_for(model: ResolvedModel, layers: range) -> Iterator[Path]:
    """A folder with links to the files of weights that hold these layers, and no others.

    Raises
    ------
    WeightsMismatch
        A file is another than when the model was resolved, or holds what the index says is in
        another.
    HubUnreachable
        It cannot be fetched.
    """
    find = partial(find_file, model.location, model.commit)
    try:
        weights = weight_files(find, of=model.name)
        names = weights.read_by(layers, blocks=model.anatomy.blocks)
        files = {name: _as_resolved(model, name, find(name)) for name in names}
    except OSError as error:
        raise _unfetched(model, error) from error
    with links_to(files, weights) as folder:
        yield folder


def _as_resolved(model: ResolvedModel, name: str, file: Path | None) -> Path:
    """The file, if it is still the one that was hashed; a commit's files never change."""
    if file is None:
        raise FileNotFoundError(f"there is no {name}")
    if model.commit is None and WeightFile(name, file_digest(file)) not in model.weights:
        raise WeightsMismatch(
            f"{name} of {model.name} is another file than when the model was found\n"
            f"hint: leave the folder alone while it is used, and give every node the same one"
        )
    return file


def _without(model: ResolvedModel, leave_out: Callable[[nn.Module], None]) -> type[Any]:
    """The model's class, with stand-ins for what `leave_out` replaces; loads nothing for those.

    Weights that are in the checkpoint and not in the model are passed over in silence only where
    they belong to what is left out, or are known to be unused.
    """
    cls = model.model_class
    beyond = _further_layers(model)

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        leave_out(self)
        prefix = f"{self.base_model_prefix}."
        unread = [*left_out(self), *beyond, *([] if model.anatomy.decoder else HEADS)]
        names = [re.escape(name.removeprefix(prefix)) for name in unread]
        elsewhere = rf"^(?:{re.escape(prefix)})?(?:{'|'.join(names)})\."
        known = self._keys_to_ignore_on_load_unexpected or ()
        self._keys_to_ignore_on_load_unexpected = {*known, elsewhere, *UNUSED}

    # Under any other module name transformers takes it for code of the user's own and does not
    # merge the experts of mixtral and qwen3_moe: they stay random, without an error.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {"__init__": __init__, **names})


def _further_layers(model: ResolvedModel) -> list[str]:
    """Names of the layers that predict further tokens, which DeepSeek counts on from the last."""
    count = getattr(model.hf_config, "num_nextn_predict_layers", None) or 0
    blocks = f"{model.anatomy.decoder}.{model.anatomy.blocks}".lstrip(".")
    return [f"{blocks}.{model.num_layers + number}" for number in range(count)]


# Of a class that comes without its head.
HEADS = ("lm_head", "embed_out")
UNUSED = (
    # Buffers that older releases saved; newer ones compute them.
    r"(?:rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_)?bias)$",
    # Heads that predict further tokens read the stream and are read by nothing.
    r"(?:^|\.)mtp\.",
)


def _mismatch(model: ResolvedModel, what: str, why: str) -> WeightsMismatch:
    return WeightsMismatch(
        f"The weights of {what} of {model.name} do not fit its "
        f"configuration ({model.family}, {model.num_layers} layers of width {model.dim})\n"
        f"{why}\n"
        f"hint: check that config.json belongs to these weights, and copy or download them again"
    )


def _unfetched(model: ResolvedModel, error: OSError) -> HubUnreachable | WeightsMismatch:
    if model.commit is None:
        return WeightsMismatch(
            f"The weights of {model.name} cannot be read: {error}\n"
            f"hint: copy the folder again, with its .safetensors files"
        )
    return HubUnreachable(
        f"The weights of {model.name} at {model.commit} cannot be fetched: {error}\n"
        f"hint: check the connection, and that the repository has .safetensors files; others "
        f"are not read"
    )


def _name_and_shapes(key: Any) -> str:
    """The name of a weight; where its shape is another than the model's, with both."""
    if isinstance(key, str):
        return key
    name, found, expected = key
    return f"{name} has shape {tuple(found)}, not {tuple(expected)}"


def _some(keys: Iterable[str], *, at_most: int = 5) -> str:
    names = sorted(keys)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
