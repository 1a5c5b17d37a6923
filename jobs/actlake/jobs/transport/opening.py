"""Open what a config refers to, and refuse what cannot be before a row is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlake.jobs.begun import open_as_begun
from actlake.jobs.chosen_rows import ChosenRows, choose_rows
from actlake.jobs.model_of_store import model_of_store
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.trained import TrainedSAE, read_sae
from actlake.jobs.transport.config import TransportConfig
from actlake.jobs.transport.errors import InvalidTransport, StoresDiffer
from actlake.jobs.transport.moments_file import MomentsRequest
from actlake.jobs.transport.moments_pass import request_moments, shares_of
from actlake.jobs.transport.pairs import Pair, resolve_pairs
from actlake.jobs.transport.parts import Shares, check_same_tokens
from actlake.platform.cluster import joins_cluster, threads_here
from actlake.platform.config import to_dict
from actlake.platform.runs import RunRecord
from actlake.storage import ActivationStore


@dataclass
class Opened:
    """What a config refers to, opened and checked."""

    stores: list[ActivationStore]
    pairs: tuple[Pair, ...]
    request: MomentsRequest
    shares: Shares
    dictionary: TrainedSAE | None
    root: Path
    threads: int
    """Compute threads of each worker; those on a running cluster get theirs from `plan_workers`."""
    joins: bool
    """Whether the pass over the rows is made on a running cluster, and not in this process."""
    chosen: ChosenRows | None
    """The rows of which `RowsConfig.where` is true; None: all."""


def open_config(config: TransportConfig) -> Opened:
    """Stores, pairs, shares and SAE of a config, checked against each other.

    Raises
    ------
    ActlakeError
        Whatever `fit_transport` refuses before it reads rows.
    """
    out = Path(config.out).expanduser()
    asked = what_decides(to_dict(config))

    def is_same(record: RunRecord) -> bool:
        return what_decides(record.config) == asked

    stores = [open_as_begun(config.store, out, is_same=is_same)]
    if config.target_store is not None:
        stores.append(open_as_begun(config.target_store, out, name="target_store", is_same=is_same))
        if why := check_same_tokens(*stores):
            raise StoresDiffer(
                f"A map between models needs the same tokens in both stores: {why}\n"
                "hint: harvest the same text with the same tokenizer, layout and context length"
            )
    pairs = resolve_pairs(
        config.pairs,
        stores[0].sites,
        stores[-1].sites,
        offsets=config.offsets,
        one_store=len(stores) == 1,
    )
    _require_whole(stores, pairs)
    rows = config.rows
    chosen = choose_rows(
        stores[0],
        rows.where,
        splits={"rows.fit": rows.fit, "rows.validate": rows.validate, "rows.test": rows.test},
        excluded=rows.excluded,
    )
    request = request_moments(
        stores,
        pairs,
        fit=rows.fit,
        validate=rows.validate,
        test=rows.test,
        groups=rows.groups,
        excluded=rows.excluded,
        chosen=chosen,
        max_norm=rows.max_norm,
        precision=config.moments.precision,
    )
    dictionary = None
    if config.dictionary is not None:
        dictionary = read_sae(config.dictionary.path)
        if dictionary.is_transcoder:
            raise DictionaryMismatch(
                f"{config.dictionary.path} is a transcoder: what it reads and what it writes are "
                "two sites\nhint: give an SAE of the target site"
            )
        for pair in _pairs_into(dictionary, pairs, config):
            width = stores[-1].schema_of(pair.target).dim
            dictionary.check(pair.target, width, any_hook=config.dictionary.any_hook)
    if config.causal or config.shortcut:
        model_of_store(stores[0], config.model)
    root = Path(config.moments.folder or out.parent / "moments").expanduser()
    threads = threads_here(config.moments.threads, config.moments.workers)
    shares = shares_of(stores, request, chosen)
    joins = joins_cluster(config.cluster)
    return Opened(stores, pairs, request, shares, dictionary, root, threads, joins, chosen)


_NOT_THE_RESULT = ("out", "resources", "cluster", "tracking", "moments")


def what_decides(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that the numbers depend on."""
    decisive = {name: part for name, part in config.items() if name not in _NOT_THE_RESULT}
    return {**decisive, "precision": config["moments"]["precision"]}


def _pairs_into(
    dictionary: TrainedSAE, pairs: Sequence[Pair], config: TransportConfig
) -> Sequence[Pair]:
    """The pairs whose target the SAE reads; all of them where none is, to be refused by name."""
    assert config.dictionary is not None
    if config.dictionary.any_hook:
        return pairs
    mine = [pair for pair in pairs if dictionary.reads(pair.target)]
    return mine or pairs[:1]


def _require_whole(stores: Sequence[ActivationStore], pairs: Sequence[Pair]) -> None:
    for store, sites in (
        (stores[0], {pair.source for pair in pairs}),
        (stores[-1], {pair.target for pair in pairs}),
    ):
        for site in sites:
            coverage = store.coverage(site)
            if not coverage.is_readable:
                raise InvalidTransport(
                    f"{site} of {store.url} is not whole: {coverage}\n"
                    "hint: go on with the harvest first"
                )
