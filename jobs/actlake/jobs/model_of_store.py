"""The model of a store, found again by the jobs that need it to run."""

from collections.abc import Iterable

from actlake.platform.config import from_dict
from actlake.platform.models import ModelChain, ModelHead, load_chain, load_head, resolve_model
from actlake.platform.models.config import ModelConfig
from actlake.platform.models.errors import ModelError
from actlake.platform.models.source import ResolvedModel
from actlake.storage import ActivationStore, Site
from actlake.storage.errors import ActlakeError


class NotTheModel(ActlakeError, ValueError):
    """The model of a store is not known, or another one was given."""


def model_of_store(store: ActivationStore, asked: ModelConfig | None) -> ResolvedModel:
    """The model a store was harvested with: as asked for, or as its harvest recorded.

    Raises
    ------
    NotTheModel
        Nothing was recorded, or the model is not the one that the rows are of.
    ModelError
        It cannot be found.
    """
    if asked is not None:
        return _checked(store, resolve_model(asked))
    recorded = [group.request["model"] for group in store.ledger.groups if "model" in group.request]
    if not recorded:
        raise NotTheModel(
            f"{store.url} does not say how its model was loaded\nhint: give it as model.name"
        )
    refused: list[ActlakeError] = []
    for written in reversed(recorded):  # its folder may have been renamed between two harvests
        try:
            return _checked(store, resolve_model(from_dict(ModelConfig, written)))
        except (ModelError, NotTheModel) as error:
            refused.append(error)
    raise refused[0]


def _checked(store: ActivationStore, model: ResolvedModel) -> ResolvedModel:
    check_model(store, model)
    return model


def check_model(store: ActivationStore, model: ResolvedModel) -> None:
    """Refuse a model that the rows of a store are not of.

    Raises
    ------
    NotTheModel
        Its weights are others.
    """
    revision = store.provenance.model.get("revision")
    if model.revision != revision:
        raise NotTheModel(
            f"{store.url} holds rows of revision {revision} of its model; {model.name} is "
            f"{model.revision}\nhint: give the model of the store as model.name"
        )


def chain_of_store(
    store: ActivationStore, asked: ModelConfig | None, sites: Iterable[Site]
) -> ModelChain:
    """The whole model in this process, handing out `sites`."""
    return load_chain(model_of_store(store, asked), sites)


def head_of_store(store: ActivationStore, asked: ModelConfig | None) -> ModelHead:
    """Its final norm and unembedding."""
    return load_head(model_of_store(store, asked))
