"""Predict the next token from a lower layer: mapped to the last layer, then norm and unembedding.

``p_N`` is what the model predicts from the last residual, ``p̂`` what the head makes of the
mapped state ("Jump to Conclusions: Short-Cutting Transformers With Linear Transformations"):

    precision@k   how often the top token of p̂ is among the k most probable of p_N
    surprisal     -log p_N(top token of p̂), nats
    KL(p_N ‖ p̂)   nats

The same of the state itself is the logit lens. Early exit: at the first layer whose p̂ is sure
enough the model stops; what is saved and what is kept are counted for several thresholds. To
look is not free: each layer that is asked costs an unembedding, which with a large vocabulary is
worth several layers, so work that is saved is told beside layers that are saved.

Shapes:  N rows   D width   V vocabulary
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.jackknife import Interval, jackknife_mean
from actlake.jobs.transport.operators import AffineMap
from actlake.jobs.transport.pairs import depth
from actlake.platform.models import ModelHead
from actlake.storage import ActivationStore, Site

Array = np.ndarray[Any, Any]
TOP = (1, 5, 10)
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class ShortcutScore:
    """How well a layer predicts what the model predicts."""

    source: Site
    lens: str
    """``mapped``, or ``logit lens`` for the state itself."""
    precision: dict[int, Interval]
    surprisal: Interval
    divergence: Interval
    rows: int


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """Stopping at the first layer that is sure enough."""

    threshold: float
    kept: float
    """Share of tokens whose top token is the full model's."""
    layers_saved: float
    """Share of all layers that were not run, on average."""
    work_saved: float
    """Share of the full run's multiplications that were not made, on average, each look at a
    layer's prediction included; below 0 where looking costs more than stopping saves."""


@dataclass
class _Layer:
    """Numbers of every row, for one source and lens."""

    agree: list[Array]
    surprisal: list[Array]
    divergence: list[Array]
    top: list[Array]
    sure: list[Array]


def score_shortcuts(
    head: ModelHead,
    store: ActivationStore,
    rows: Array,
    groups: Array,
    last: Site,
    maps: Mapping[Site, AffineMap],
    *,
    thresholds: Sequence[float] = (),
    on_rows: Callable[[int], None] = lambda rows: None,
) -> tuple[list[ShortcutScore], list[EarlyExit]]:
    """Predict from every source of `maps` and compare with the last layer.

    Parameters
    ----------
    rows
        (N,) rows to predict, all of the test split.
    groups
        (N,) the jackknife group of each.
    last
        The last residual, which is stored; the head makes p_N of it.
    maps
        Of each source the map to `last`.
    """
    layers = {
        (source, lens): _Layer([], [], [], [], [])
        for source in maps
        for lens in ("mapped", "logit lens")
    }
    finals: list[Array] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        chunk = rows[start : start + _ROWS_AT_ONCE]
        final_NV = _log_probabilities(head, store[last].take(chunk))
        finals.append(final_NV.argmax(-1).numpy())
        rank_of = final_NV.topk(max(TOP), dim=-1).indices
        for source, fitted in maps.items():
            state = store[source].take(chunk).astype(np.float32)
            for lens, states in (("mapped", fitted(state)), ("logit lens", state)):
                predicted_NV = _log_probabilities(head, states)
                _note(layers[source, lens], predicted_NV, final_NV, rank_of)
        on_rows(len(chunk))
    scores = [_score(source, lens, layer, groups) for (source, lens), layer in layers.items()]
    mapped = {source: layers[source, "mapped"] for source in maps}
    exits = early_exits(
        {source: np.concatenate(layer.top) for source, layer in mapped.items()},
        {source: np.concatenate(layer.sure) for source, layer in mapped.items()},
        np.concatenate(finals),
        thresholds,
        num_layers=head.model.num_layers,
        look=unembedding_in_layers(head.model.dim, head.model.vocab_size),
    )
    return scores, exits


def _log_probabilities(head: ModelHead, states: Array) -> Tensor:
    hidden_BLD = torch.from_numpy(np.asarray(states, np.float32)).unsqueeze(0)
    return head.logits(hidden_BLD)[0].float().log_softmax(-1).cpu()


def _note(layer: _Layer, predicted_NV: Tensor, final_NV: Tensor, rank_of: Tensor) -> None:
    sure, top = predicted_NV.max(-1)
    layer.agree.append((rank_of == top.unsqueeze(-1)).numpy())
    layer.surprisal.append(-final_NV.gather(-1, top.unsqueeze(-1))[:, 0].numpy())
    layer.divergence.append((final_NV.exp() * (final_NV - predicted_NV)).sum(-1).numpy())
    layer.top.append(top.numpy())
    layer.sure.append(sure.exp().numpy())


def _score(source: Site, lens: str, layer: _Layer, groups: Array) -> ShortcutScore:
    agree = np.concatenate(layer.agree)
    return ShortcutScore(
        source,
        lens,
        {k: _mean(np.asarray(agree[:, :k].any(axis=1)), groups) for k in TOP},
        _mean(np.concatenate(layer.surprisal), groups),
        _mean(np.concatenate(layer.divergence), groups),
        len(agree),
    )


def _mean(values: Array, groups: Array) -> Interval:
    number = int(groups.max()) + 1
    sums = np.bincount(groups, values.astype(np.float64), minlength=number)
    return jackknife_mean(sums, np.bincount(groups, minlength=number).astype(np.float64))


def unembedding_in_layers(dim: int, vocab_size: int) -> float:
    """What an unembedding costs, in layers: V·D multiplications to a layer's usual 12·D²."""
    return vocab_size / (12 * dim)


def early_exits(
    top: Mapping[Site, Array],
    sure: Mapping[Site, Array],
    final: Array,
    thresholds: Iterable[float],
    *,
    num_layers: int,
    look: float,
) -> list[EarlyExit]:
    """What is kept and saved when each token stops at the first layer that is sure enough.

    Parameters
    ----------
    top, sure
        Of each source, its top token and that token's probability, (N,) each.
    final
        (N,) the full model's top token.
    look
        What it costs to predict from a layer, in layers.
    """
    exits = []
    for threshold in thresholds:
        answer, layers_run = final.copy(), np.full(len(final), num_layers)
        looks = np.zeros(len(final))
        open_ = np.ones(len(final), bool)
        for source in sorted(top, key=depth):
            looks += open_
            stops = open_ & (sure[source] >= threshold)
            answer[stops] = top[source][stops]
            layers_run[stops] = depth(source)[0] + 1
            open_ &= ~stops
        work = layers_run + look * (looks + open_)  # who never stops is unembedded at the end
        exits.append(
            EarlyExit(
                threshold,
                float((answer == final).mean()),
                float(1 - layers_run.mean() / num_layers),
                float(1 - work.mean() / (num_layers + look)),
            )
        )
    return exits
