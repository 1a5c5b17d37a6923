"""Which latents are active: the k largest of each row, or the k·B largest of a batch.

Pre-activations are computed some rows at a time, into one buffer, and chosen from while they lie
in the cache: a (4,096, 9,216) matrix is never written out. Choosing is exact, without sorting:

* *of a row*: the latents are put into groups; the k-th largest of the groups' maxima is a lower
  bound of the k-th largest latent, because k groups hold a latent that reaches it. Few more
  than k latents reach it, and the k largest are among them.
* *of a batch*: a lower bound is guessed from some of the rows. Of the latents above it, the
  K-th largest is found digit by digit of its bits, from histograms that all workers add up, so
  that every worker finds the same number. If the guess was too high, it is done again from 0.

Shapes:  B rows   R rows at once   D width   F latents   N chosen pairs
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actlake.jobs.sae.communicator import Communicator
from actlake.jobs.sae.sparse import Chosen

_CACHE_BYTES = 8 << 20
"""Of pre-activations computed at once on a CPU; half of what the last-level cache may give us."""
_DEVICE_BYTES = 1 << 30
_LEAST_ROWS = 256
"""Computed at once where rows are long: with fewer, most time goes into reading the encoder."""
_SAMPLE_ROWS = 64
_DIGIT_BITS = 16


@dataclass(frozen=True, eq=False)
class Encoder:
    """What turns rows into pre-activations, and what scales them to be compared."""

    weight: Tensor
    """(D, F) W_enc."""
    bias: Tensor
    """(F,) b_enc."""
    scales: Tensor | None
    """(F,) norms of the decoder's rows, by which pre-activations are multiplied to be compared."""

    @property
    def num_latents(self) -> int:
        """F."""
        return self.weight.shape[1]

    def parts(self, centred: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Pre-activations some rows at a time: the first row's number and (R, F).

        On a CPU all parts are the same memory: use one before asking for the next.
        """
        bytes_of_row = self.num_latents * centred.element_size()
        memory = _CACHE_BYTES if centred.device.type == "cpu" else _DEVICE_BYTES
        at_once = max(1, min(len(centred), max(memory // bytes_of_row, _LEAST_ROWS)))
        mixed = torch.is_autocast_enabled(centred.device.type)
        out = None if mixed else centred.new_empty(at_once, self.num_latents)
        for start in range(0, max(1, len(centred)), at_once):  # of no rows, one empty part
            rows = centred[start : start + at_once]
            if out is None:  # out= takes no part in autocast
                yield start, torch.addmm(self.bias, rows, self.weight).to(centred.dtype)
            else:
                yield start, torch.addmm(self.bias, rows, self.weight, out=out[: len(rows)])

    def scaled(self, before: Tensor, out: Tensor | None = None) -> Tensor:
        """(R, F) what is compared; into `out` where it is given."""
        return before if self.scales is None else torch.mul(before, self.scales, out=out)


@dataclass(eq=False)
class Kept:
    """(B, M) pre-activations of some latents, copied while they are computed."""

    latents: Tensor
    """(M,) int64."""
    before: Tensor

    @classmethod
    def of(cls, latents: Tensor, centred: Tensor) -> "Kept":
        """Room for them."""
        return cls(latents, centred.new_empty(len(centred), len(latents)))

    def keep(self, start: int, before: Tensor) -> None:
        """Copy them from a part."""
        if len(self.latents):
            self.before[start : start + len(before)] = before[:, self.latents]


def choose_by_row(
    encoder: Encoder, centred: Tensor, k: int, *, kept: Kept, by_magnitude: bool = False
) -> Chosen:
    """The k latents of each row whose scaled pre-activation (or its magnitude) is largest."""
    latents, values = [], []
    work: Tensor | None = None
    for start, before in encoder.parts(centred):
        kept.keep(start, before)
        if work is None or len(work) != len(before):
            work = torch.empty_like(before)
        scaled = encoder.scaled(before, out=work)
        indices = largest_of_rows(scaled.abs() if by_magnitude else scaled, k)
        latents.append(indices.flatten())
        values.append(before.gather(1, indices).flatten())
    rows = torch.arange(len(centred), device=centred.device).repeat_interleave(k)
    return Chosen(rows, torch.cat(latents), torch.cat(values), len(centred), encoder.num_latents)


def largest_of_rows(values: Tensor, k: int) -> Tensor:
    """(R, k) the places of the k largest of each row, in any order, of (R, F)."""
    num_rows, width = values.shape
    num_groups = 4 * k
    if values.device.type != "cpu" or width < 4 * num_groups or num_rows == 0:
        return torch.topk(values, k, dim=1, sorted=False).indices
    grouped = width - width % num_groups
    maxima = torch.unflatten(values[:, :grouped], 1, (-1, num_groups)).amax(1)
    bound = torch.topk(maxima, k, dim=1, sorted=False).values.amin(1, keepdim=True)
    rows, places = torch.where(values >= bound)
    counts = torch.bincount(rows, minlength=num_rows)
    fewest, most = torch.aminmax(counts)
    if fewest < k or most > num_groups:  # numbers that are none; many that are equal
        return torch.topk(values, k, dim=1, sorted=False).indices
    starts = counts.cumsum(0) - counts
    padded = values.new_full((num_rows, int(most)), -torch.inf)
    padded[rows, torch.arange(len(rows), device=rows.device) - starts[rows]] = values[rows, places]
    inside = torch.topk(padded, k, dim=1, sorted=False).indices
    return places[starts[:, None] + inside]


def choose_by_batch(
    encoder: Encoder, centred: Tensor, k: float, *, kept: Kept, comm: Communicator
) -> Chosen:
    """The latents of the ``int(k * rows)`` largest scaled pre-activations above 0, of all workers.

    Each worker gets the pairs of its own rows. Of equal numbers, those of earlier workers, rows
    and latents come first.
    """
    num_rows = int(comm.sum(torch.tensor(len(centred), device=centred.device)))
    wanted = int(k * num_rows)
    bound = _guess(encoder, centred, k, comm)
    found = _above(encoder, centred, bound, kept)
    if bound > 0 and int(comm.sum(torch.tensor(len(found.scaled), device=centred.device))) < wanted:
        found = _above(encoder, centred, 0.0, kept)
    mine = keep_largest(found.scaled, wanted, comm)
    return Chosen(
        found.rows[mine],
        found.latents[mine],
        found.before[mine],
        len(centred),
        encoder.num_latents,
    )


@dataclass(frozen=True, eq=False)
class _Above:
    rows: Tensor
    latents: Tensor
    before: Tensor
    scaled: Tensor


def _above(encoder: Encoder, centred: Tensor, bound: float, kept: Kept) -> _Above:
    parts = []
    work: Tensor | None = None
    for start, before in encoder.parts(centred):
        kept.keep(start, before)
        if work is None or len(work) != len(before):
            work = torch.empty_like(before)
        scaled = encoder.scaled(before, out=work)
        # Not "scaled > bound": what is no number is chosen, and seen in the loss.
        rows, latents = torch.where((scaled <= bound).logical_not_())
        parts.append((rows + start, latents, before[rows, latents], scaled[rows, latents]))
    return _Above(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _guess(encoder: Encoder, centred: Tensor, k: float, comm: Communicator) -> float:
    """A bound that a little more than k latents a row exceed, judged by some rows of each."""
    sample = centred[:: max(1, len(centred) // _SAMPLE_ROWS)]
    parts = [encoder.scaled(before).clamp(min=0).flatten() for _, before in encoder.parts(sample)]
    values = torch.cat([part.clone() for part in parts])
    wanted = min(len(values), int(1.3 * k * len(sample)) + 8)
    bound = torch.topk(values, wanted, sorted=False).values.min()
    return float(comm.all_gather(bound).min())


def keep_largest(values: Tensor, wanted: int, comm: Communicator) -> Tensor:
    """(M,) the places, ascending, of those of `values` (≥ 0) among the largest of all workers."""
    total = int(comm.sum(torch.tensor(len(values), device=values.device)))
    if total <= wanted:
        return torch.arange(len(values), device=values.device)
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64).long()
    smallest, above = _bits_of_largest(bits, wanted, 8 * values.element_size(), comm)
    equal = bits == smallest
    counts = comm.all_gather(equal.sum())
    room = wanted - above - int(counts[: comm.rank].sum())
    equal &= equal.cumsum(0) <= room
    return torch.where((bits > smallest) | equal)[0]


def _bits_of_largest(
    bits: Tensor, wanted: int, num_bits: int, comm: Communicator
) -> tuple[int, int]:
    """The bits of the `wanted`-th largest number, and how many are larger.

    Bits of floats that are not negative have the order of the floats. (Not-a-number comes out
    largest.)
    """
    prefix, above, candidates = 0, 0, bits
    for shift in range(num_bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        digits = (candidates >> shift) & ((1 << _DIGIT_BITS) - 1)
        counts = comm.sum(torch.bincount(digits, minlength=1 << _DIGIT_BITS))
        from_top = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, wanted - above))
        digit = (1 << _DIGIT_BITS) - 1 - place
        above += int(from_top[place] - counts[digit])
        prefix = (prefix << _DIGIT_BITS) | digit
        candidates = candidates[digits == digit]
    return prefix, above
