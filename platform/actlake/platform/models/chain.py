"""A whole model in one process: stages one above the other, and the head.

    model = load_chain(resolve_model(config), sites)
    logits_BLV = model.logits(ids_BL)
    seen = model.capture(ids_BL)                          # {site: (B, L, D)}
    logits_BLV = model.logits(ids_BL, [Intervention(site, change)])

For a model cut over processes the same three steps stand in as many places: every stage's
`run` takes the interventions, each applies those of its own layers, and the last one gives
what leaves the last block to the head.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream   V vocabulary
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from actlake.platform.models.head import ModelHead, load_head
from actlake.platform.models.interventions import Intervention
from actlake.platform.models.loading import load_stage
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.split import check_split
from actlake.platform.models.stage import Capture, ModelStage
from actlake.storage.sites import Site


class ModelChain:
    """Stages that follow each other from layer 0 to the last, and the head above them."""

    def __init__(self, stages: Sequence[ModelStage], head: ModelHead) -> None:
        self.stages = tuple(stages)
        self.head = head
        self.model = head.model
        check_split([stage.layers for stage in stages], self.model.num_layers)
        self.last = Site(self.model.num_layers - 1)
        """The stream as it enters the head; the last stage hands it out."""
        assert self.last in self.stages[-1].sites, "the last stage gives the head its input"

    def logits(
        self,
        ids_BL: Tensor,
        interventions: Iterable[Intervention] = (),
        *,
        capture: Capture | None = None,
    ) -> Tensor:
        """Logits, (B, L, V), with some sites changed on the way.

        Parameters
        ----------
        ids_BL
            Token ids, int64.
        capture
            Called for every site the stages hand out; see `Capture`.
        """
        return self.head.logits(self.hidden(ids_BL, interventions, capture=capture))

    def hidden(
        self,
        ids_BL: Tensor,
        interventions: Iterable[Intervention] = (),
        *,
        capture: Capture | None = None,
    ) -> Tensor:
        """What enters the head, (B, L, D): the last residual before the final norm."""
        interventions = list(interventions)
        self.model.check_sites(intervention.site for intervention in interventions)
        left: list[Tensor] = []

        def keep(site: Site, acts_BLD: Tensor) -> None:
            if site == self.last:
                left.append(acts_BLD.clone())
            if capture is not None:
                capture(site, acts_BLD)

        flowing: Tensor | None = ids_BL
        for stage in self.stages:
            assert flowing is not None
            flowing = stage.run(flowing, keep, interventions)
        return left[0]

    def capture(
        self, ids_BL: Tensor, interventions: Iterable[Intervention] = ()
    ) -> dict[Site, Tensor]:
        """Copies of all sites the stages hand out, (B, L, D) each."""
        seen: dict[Site, Tensor] = {}
        self.hidden(
            ids_BL, interventions, capture=lambda site, acts: seen.update({site: acts.clone()})
        )
        return seen


def load_chain(
    model: ResolvedModel,
    sites: Iterable[Site] = (),
    *,
    splits: Sequence[range] | None = None,
    threads: int | None = None,
) -> ModelChain:
    """Load a whole model into this process.

    Parameters
    ----------
    sites
        What to hand out beside the last residual.
    splits
        Layers of the stages; by default one stage of all.
    threads
        Compute threads of the whole process from now on; as they are if left out.

    Raises
    ------
    ModelError
        See `load_stage` and `load_head`.
    """
    wanted = [*sites, Site(model.num_layers - 1)]
    splits = [range(model.num_layers)] if splits is None else splits
    stages = [load_stage(model, layers, wanted, threads=threads) for layers in splits]
    return ModelChain(stages, load_head(model))
