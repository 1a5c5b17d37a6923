"""How well each latent of an SAE tells the members of a class, all latents at once. Pure.

Latents are 0 nearly everywhere, so only where they fire is looked at: a pass over what fired
gives the AUROC and F1 of every latent, in the time of one sort.

Shapes:  N examples   F latents   M times that a latent fired
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Fired:
    """The latents of some examples, where they are not 0."""

    example_M: Array
    """(M,) int64, which example."""
    latent_M: Array
    """(M,) int64, which latent; each at most once an example."""
    value_M: Array
    """(M,) its value, above 0."""
    num_examples: int
    num_latents: int


def latent_auroc(fired: Fired, positive_N: Array) -> Array:
    """(F,) area under the ROC curve of each latent's value.

    The probability that a member of the class has a higher value than another example, ties
    counted half (Hanley and McNeil 1982). NaN where all examples are members, or none. A latent
    that never fires has 0.5.
    """
    member_M = positive_N[fired.example_M]
    members, others = int(positive_N.sum()), int((~positive_N).sum())
    if members == 0 or others == 0:
        return np.full(fired.num_latents, np.nan)
    order = np.lexsort((fired.value_M, fired.latent_M))
    latent, value, member = fired.latent_M[order], fired.value_M[order], member_M[order]
    other_fired = _per_latent(fired, ~member_M)
    silent_members = members - _per_latent(fired, member_M)
    silent_others = others - other_fired
    # Others below each one that fired: the silent ones, and those before it among its latent's.
    begins_tie = np.ones(len(latent), bool)
    begins_tie[1:] = (np.diff(latent) != 0) | (np.diff(value) != 0)
    tie = np.cumsum(begins_tie) - 1
    others_in_tie = np.bincount(tie, weights=~member) if len(tie) else np.zeros(0)
    others_before_tie = np.cumsum(others_in_tie) - others_in_tie
    before_latent = np.cumsum(other_fired) - other_fired
    below = others_before_tie[tie] - before_latent[latent] + others_in_tie[tie] / 2
    wins = np.bincount(
        latent[member],
        weights=below[member] + silent_others[latent[member]],
        minlength=fired.num_latents,
    )
    area: Array = (wins + silent_members * silent_others / 2) / (members * others)
    return area


def auroc(scores_N: Array, positive_N: Array) -> float:
    """The same area of any scores, one an example; NaN where one side is empty."""
    ranks = np.unique(scores_N, return_inverse=True)[1] + 1
    examples = np.arange(len(scores_N))
    one_latent = Fired(examples, np.zeros_like(examples), ranks, len(examples), 1)
    return float(latent_auroc(one_latent, positive_N)[0])


def latent_f1(fired: Fired, positive_N: Array) -> Array:
    """(F,) F1 of "the latent fires" as the prediction of the class; 0 where it never does."""
    right = _per_latent(fired, positive_N[fired.example_M])
    said = _per_latent(fired, np.ones(len(fired.example_M), bool))
    both = said + int(positive_N.sum())
    score: Array = np.divide(2 * right, both, out=np.zeros(fired.num_latents), where=both > 0)
    return score


def _per_latent(fired: Fired, which_M: Array) -> Array:
    counts: Array = np.bincount(fired.latent_M[which_M], minlength=fired.num_latents)
    return counts


def random_cosines(
    decoder_FD: Array, rows_ND: Array, *, draws: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Cosines with decoder rows of directions that mean nothing: the control of a probe's.

    A direction is the difference of the means of two halves of the rows, drawn at random, as a
    probe of shuffled labels finds it: drawn from N(0, Σ) of the rows. Activations vary along few
    directions, and decoders are along these, so an isotropic direction would be far too easy to
    beat.

    Returns
    -------
    (draws,) the absolute cosine with one latent, drawn at random, and (draws,) the largest absolute
    cosine with any latent.
    """
    unit_FD = unit_rows(decoder_FD)
    centred_ND = rows_ND - rows_ND.mean(axis=0)
    sign_RN = rng.permuted(
        np.tile(np.where(np.arange(len(rows_ND)) % 2, 1, -1), (draws, 1)), axis=1
    ).astype(np.float32)
    random_RD = unit_rows(sign_RN @ centred_ND)
    cosine_RF = np.abs(random_RD @ unit_FD.T)
    one = cosine_RF[np.arange(draws), rng.integers(len(unit_FD), size=draws)]
    return one, cosine_RF.max(axis=1)


def unit_rows(rows: Array) -> Array:
    """Rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Array = rows / np.where(norms > 0, norms, 1)
    return scaled
