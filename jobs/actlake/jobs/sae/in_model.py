"""Reconstructions in place of activations while the model runs: what changes, in nats a token.

    chain = chain_of_store(store, None, [site])
    contexts = contexts_of_split(store, "test", 32)
    scores = evaluate_in_model(sae, chain, contexts, [site])
    scores.ce_recovered                                   # 0.9812 ± 0.0031

Every context is run undisturbed, with the reconstruction spliced in, and ablated:

    ΔCE            CE_sae - CE_clean, nats a token
    CE recovered   (CE_zero - CE_sae) / (CE_zero - CE_clean)
    KL             KL(clean ‖ sae), nats a token

An SAE reads and replaces one site. A transcoder reads one and replaces another. A crosscoder
reads all of its sites from the undisturbed run, and each of them is replaced alone
(`evaluate_sites`). Where it replaces all of them at once, the deepest one overwrites what the
others have changed: that number, `ALL_SITES`, says next to nothing of the others. Positions that
are excluded keep what the model computes there and are not counted; see `contexts_of_split` for
which. An ablation puts zero (or the mean) at *every* position, excluded or not, as SAELens does
in `run_evals`, so that the numbers are comparable; `ablate="spliced"` leaves excluded ones alone
there too; an ablation that spares an attention sink costs less, so that the same SAE recovers less
of it: the score is the harsher one.

Intervals are 95 %, by leaving out one document at a time.

Shapes:  B contexts   L tokens   N rows that are replaced   S sites   D width   V vocabulary
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.jackknife import Interval, jackknife, jackknife_mean
from actlake.jobs.sae.errors import InvalidSAE, NotEnoughRows
from actlake.jobs.whole_contexts import WholeContext
from actlake.platform.models import (
    Capture,
    Intervention,
    replace_with,
    token_cross_entropy,
    token_divergence,
)
from actlake.storage import Site

Array = np.ndarray[Any, Any]
Reconstruct = Callable[[Tensor], Tensor]
"""(N, D) to (N, D), or (N, S, D) to (N, S, D); a `TrainedSAE` is one."""
Ablate = Literal["all", "spliced"]

_TOKENS_AT_ONCE = 512
ALL_SITES = "all_sites_at_once"
"""In place of a site's name: all sites of a crosscoder replaced in one run."""


class RunsToLogits(Protocol):
    """A model that can be changed on the way; `platform.models.ModelChain` is one."""

    def logits(
        self,
        ids_BL: Tensor,
        interventions: Sequence[Intervention] = (),
        *,
        capture: Capture | None = None,
    ) -> Tensor:
        """(B, L, V)."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What a reconstruction does to the predictions; nats a token."""

    ce_clean: Interval
    ce_sae: Interval
    ce_zero: Interval
    ce_mean: Interval | None
    """With the mean of the rows in place of them; None where no mean was given."""
    delta_ce: Interval
    ce_recovered: Interval
    kl: Interval
    kl_zero: Interval
    kl_recovered: Interval
    """(KL_zero - KL_sae) / KL_zero, which SAELens calls ``kl_div_score``."""
    num_contexts: int
    num_documents: int
    num_spliced: int
    """Positions that were replaced and counted."""
    num_left: int
    """Positions that were excluded."""

    def as_metrics(self) -> dict[str, float]:
        """All numbers, by name; intervals as their value."""
        found: dict[str, float] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None:
                found[one.name] = float(value.value if isinstance(value, Interval) else value)
        return found


def evaluate_in_model(
    sae: Reconstruct,
    chain: RunsToLogits,
    contexts: Sequence[WholeContext],
    reads: Sequence[Site],
    writes: Sequence[Site] | None = None,
    *,
    replaces: Sequence[Site] | None = None,
    means: Mapping[Site, Tensor] | None = None,
    ablate: Ablate = "all",
    device: torch.device | str | None = None,
    tokens_at_once: int = _TOKENS_AT_ONCE,
    on_contexts: Callable[[int], None] = lambda contexts: None,
) -> ModelScores:
    """Run the model clean, with the reconstruction, and ablated, and compare.

    Parameters
    ----------
    sae
        Takes and gives float32 rows as they are stored: nothing is scaled here.
    chain
        The model; it hands out all of `reads`.
    contexts
        From `contexts_of_split`.
    reads, writes
        The sites that are read and reconstructed; the same where `writes` is left out.
    replaces
        Which of `writes` are replaced; all of them if left out.
    means
        Of each site that is replaced the mean row, to ablate with beside zero.
    ablate
        Whether ablations reach excluded positions too.
    device
        Where `sae` computes; where the model's activations are if left out.
    tokens_at_once
        Tokens of equally long contexts that are run together; three times as many rows of
        logits are in memory.
    on_contexts
        Told how many contexts have been run since it was told last.

    Raises
    ------
    NotEnoughRows
        There are no contexts, or all of their positions are excluded.
    InvalidSAE
        The model does not hand out a site, or the reconstruction has another shape.
    """
    writes = list(reads if writes is None else writes)
    replaced = tuple(writes if replaces is None else replaces)
    run = _Run(sae, chain, tuple(reads), tuple(writes), replaced, means, ablate, device)
    for batch in _batches(contexts, tokens_at_once):
        run.add(batch)
        on_contexts(len(batch))
    if not run.spliced:
        raise NotEnoughRows(
            f"There is no position to put a reconstruction at, in {len(contexts)} contexts\n"
            "hint: name a split that holds documents, or exclude fewer positions"
        )
    return run.scores(len(contexts))


def evaluate_sites(
    sae: Reconstruct,
    chain: RunsToLogits,
    contexts: Sequence[WholeContext],
    reads: Sequence[Site],
    writes: Sequence[Site] | None = None,
    *,
    means: Mapping[Site, Tensor] | None = None,
    ablate: Ablate = "all",
    device: torch.device | str | None = None,
) -> dict[str, ModelScores]:
    """`evaluate_in_model` with each written site replaced alone, by its name.

    Of a crosscoder also with all of them replaced at once, as `ALL_SITES`.
    """
    sites = list(reads if writes is None else writes)
    runs = {str(site): [site] for site in sites}
    if len(sites) > 1:
        runs[ALL_SITES] = sites
    return {
        name: evaluate_in_model(
            sae, chain, contexts, reads, writes,
            replaces=replaced, means=means, ablate=ablate, device=device,
        )
        for name, replaced in runs.items()
    }  # fmt: skip


def _batches(
    contexts: Sequence[WholeContext], tokens_at_once: int
) -> Iterator[Sequence[WholeContext]]:
    """Contexts of one length, together; in the order of their length, then as given."""
    ordered = sorted(contexts, key=lambda context: len(context.ids))
    start = 0
    while start < len(ordered):
        length = len(ordered[start].ids)
        stop = start + 1
        most = start + max(1, tokens_at_once // max(1, length))
        while stop < min(most, len(ordered)) and len(ordered[stop].ids) == length:
            stop += 1
        yield ordered[start:stop]
        start = stop


@dataclass
class _Run:
    sae: Reconstruct
    chain: RunsToLogits
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    replaces: tuple[Site, ...]
    means: Mapping[Site, Tensor] | None
    ablate: Ablate
    device: torch.device | str | None
    sums: dict[int, Array] = field(default_factory=dict)
    """Of each document, the sums of `_NAMES`."""
    spliced: int = 0
    left: int = 0

    def add(self, contexts: Sequence[WholeContext]) -> None:
        ids_BL = torch.stack([context.ids for context in contexts])
        allowed_BL = torch.stack([context.allowed for context in contexts])
        seen: dict[Site, Tensor] = {}
        wanted = {site.stored for site in self.reads}

        def keep(site: Site, acts_BLD: Tensor) -> None:
            if site in wanted:
                seen[site] = acts_BLD.clone()

        clean_BLV = self.chain.logits(ids_BL, capture=keep)
        ce_clean = token_cross_entropy(clean_BLV, ids_BL)
        measured = {"ce_clean": ce_clean}
        for name, interventions in self._conditions(seen, allowed_BL).items():
            logits_BLV = self.chain.logits(ids_BL, interventions)
            measured[f"ce_{name}"] = token_cross_entropy(logits_BLV, ids_BL)
            measured[f"kl_{name}"] = token_divergence(clean_BLV, logits_BLV)
            del logits_BLV
        self._note(measured, allowed_BL, torch.stack([one.documents for one in contexts]))

    def _conditions(
        self, seen: Mapping[Site, Tensor], allowed_BL: Tensor
    ) -> dict[str, list[Intervention]]:
        spliced = self._reconstructed(seen, allowed_BL)
        where = None if self.ablate == "all" else allowed_BL
        found = {
            "sae": [
                replace_with(site, acts_BLD, allowed_BL)
                for site, acts_BLD in zip(self.writes, spliced, strict=True)
                if site in self.replaces
            ],
            "zero": [_constant(site, torch.zeros(()), where) for site in self.replaces],
        }
        if self.means is not None:
            found["mean"] = [_constant(site, self.means[site], where) for site in self.replaces]
        return found

    def _reconstructed(self, seen: Mapping[Site, Tensor], allowed_BL: Tensor) -> list[Tensor]:
        """For each of `writes`, (B, L, D): the reconstruction where allowed, else 0."""
        missing = [site for site in self.reads if site.stored not in seen]
        if missing:
            raise InvalidSAE(
                f"The model hands out no {', '.join(map(str, missing))}, which the SAE reads\n"
                "hint: name them when the model is loaded (load_chain)"
            )
        where_BL = allowed_BL.to(seen[self.reads[0].stored].device)
        rows = [seen[site.stored][where_BL].float() for site in self.reads]
        x = rows[0] if len(rows) == 1 else torch.stack(rows, dim=1)
        with torch.inference_mode():
            y = self.sae(x if self.device is None else x.to(self.device)).to(x.device)
        parts = [y] if len(self.writes) == 1 else list(y.unbind(1))
        if len(parts) != len(self.writes) or parts[0].ndim != 2 or len(parts[0]) != len(x):
            raise InvalidSAE(
                f"The SAE turned rows of shape {tuple(x.shape)} into {tuple(y.shape)}, to replace "
                f"{', '.join(map(str, self.writes))}\nhint: give a site for each that it writes"
            )
        filled = []
        for part in parts:
            acts_BLD = part.new_zeros((*where_BL.shape, part.shape[-1]))
            acts_BLD[where_BL] = part
            filled.append(acts_BLD)
        self.spliced += int(where_BL.sum())
        self.left += int((~where_BL).sum())
        return filled

    def _note(
        self, measured: Mapping[str, Tensor], allowed_BL: Tensor, documents_BL: Tensor
    ) -> None:
        counted = allowed_BL.numpy()
        documents, place = np.unique(documents_BL.numpy(), return_inverse=True)
        place = place.reshape(counted.shape)
        sums = np.zeros((len(documents), len(_NAMES)))
        for column, name in enumerate(_NAMES):
            if name not in measured and name not in ("n_ce", "n_kl"):
                continue
            # The last token of a context predicts nothing that is known.
            known = counted[:, :-1] if "ce" in name else counted
            at = place[:, : known.shape[1]][known]
            values = measured[name].double().cpu().numpy()[known] if name in measured else 1.0
            np.add.at(sums[:, column], at, values)
        for document, row in zip(documents.tolist(), sums, strict=True):
            self.sums[document] = self.sums.get(document, 0.0) + row

    def scores(self, num_contexts: int) -> ModelScores:
        table = np.stack([row for _, row in sorted(self.sums.items())])
        table = table[(table[:, _NAMES.index("n_kl")] > 0)]
        part = dict(zip(_NAMES, table.T, strict=True))

        def mean(name: str) -> Interval:
            return jackknife_mean(part[name], part["n_ce" if name.startswith("ce") else "n_kl"])

        def ratio(above: Array, below: Array) -> Interval:
            with np.errstate(divide="ignore", invalid="ignore"):
                left_out = (above.sum() - above) / (below.sum() - below)
                return jackknife(float(above.sum() / below.sum()), left_out.tolist())

        return ModelScores(
            ce_clean=mean("ce_clean"),
            ce_sae=mean("ce_sae"),
            ce_zero=mean("ce_zero"),
            ce_mean=None if self.means is None else mean("ce_mean"),
            delta_ce=jackknife_mean(part["ce_sae"] - part["ce_clean"], part["n_ce"]),
            ce_recovered=ratio(
                part["ce_zero"] - part["ce_sae"], part["ce_zero"] - part["ce_clean"]
            ),
            kl=mean("kl_sae"),
            kl_zero=mean("kl_zero"),
            kl_recovered=ratio(part["kl_zero"] - part["kl_sae"], part["kl_zero"]),
            num_contexts=num_contexts,
            num_documents=len(table),
            num_spliced=self.spliced,
            num_left=self.left,
        )


_NAMES = (
    "ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean", "n_ce", "n_kl",
)  # fmt: skip


def _constant(site: Site, row_D: Tensor, where_BL: Tensor | None) -> Intervention:
    def change(own_BLD: Tensor) -> Tensor:
        given_BLD = row_D.to(own_BLD.device, own_BLD.dtype).expand_as(own_BLD)
        if where_BL is None:
            return given_BLD
        return torch.where(where_BL.to(own_BLD.device).unsqueeze(-1), given_BLD, own_BLD)

    return Intervention(site, change)
