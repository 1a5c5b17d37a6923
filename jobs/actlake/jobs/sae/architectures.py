"""The architectures, and the options that each has, with SAELens' names and defaults.

An architecture's options are the fields of its SAELens training configuration, less those that
say nothing about the dictionary itself: sizes and device (given elsewhere), dtype (parameters are
float32), normalisation (done with the store's moments), and ``use_sparse_activations`` (our
computation is always sparse where it can be). Nothing here needs torch or SAELens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actlake.jobs.sae.errors import InvalidSAE
from actlake.platform.config import ConfigError, from_dict
from actlake.storage.errors import nearest


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every architecture has."""

    apply_b_dec_to_input: bool = True
    """Subtract the decoder's bias from the inputs."""

    decoder_init_norm: float | None = 0.1
    """Norm of the decoder's rows at the beginning; null: as they are drawn."""


@dataclass(frozen=True, kw_only=True)
class StandardOptions(Options):
    """ReLU, with a penalty on the latents' norm."""

    l1_coefficient: float = 1.0
    """Weight of the penalty."""
    lp_norm: float = 1.0
    """Which norm."""
    l1_warm_up_steps: int = 0
    """Steps in which the weight rises from 0."""


@dataclass(frozen=True, kw_only=True)
class GatedOptions(Options):
    """A gate says which latents are active, a magnitude how much."""

    l1_coefficient: float = 1.0
    """Weight of the penalty on the gate."""
    l1_warm_up_steps: int = 0
    """Steps in which the weight rises from 0."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUOptions(Options):
    """A learned threshold for each latent."""

    jumprelu_init_threshold: float = 0.01
    """Threshold at the beginning."""
    jumprelu_bandwidth: float = 0.05
    """Width of the window around the threshold in which it learns."""
    jumprelu_sparsity_loss_mode: Literal["step", "tanh", "quadratic"] = "step"
    """Count active latents, a smooth form of that, or their squared distance to `target_l0`."""
    l0_coefficient: float = 1.0
    """Weight of the penalty."""
    l0_warm_up_steps: int = 0
    """Steps in which the weight rises from 0."""
    pre_act_loss_coefficient: float | None = None
    """Weight of the penalty that wakes dead latents; null: none."""
    jumprelu_tanh_scale: float = 4.0
    """For ``tanh``: how sharp it is."""
    jumprelu_ste_to_input: bool = False
    """Let the encoder, too, learn through the window."""
    target_l0: float | None = None
    """For ``quadratic``: the number of active latents."""


@dataclass(frozen=True, kw_only=True)
class TopKOptions(Options):
    """The k largest latents of each row."""

    k: int = 100
    """Active latents of each row."""
    aux_loss_coefficient: float = 1.0
    """Weight of the loss through which dead latents learn."""
    rescale_acts_by_decoder_norm: bool = True
    """Compare pre-activations times the norms of the decoder's rows."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKOptions(Options):
    """The k·B largest latents of a batch of B rows."""

    k: float = 100.0
    """Active latents a row, on average."""
    aux_loss_coefficient: float = 1.0
    """Weight of the loss through which dead latents learn."""
    rescale_acts_by_decoder_norm: bool = True
    """Compare pre-activations times the norms of the decoder's rows."""
    topk_threshold_lr: float = 0.01
    """How fast the threshold that is used after training follows the batches'."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaOptions(BatchTopKOptions):
    """Batch top-k with nested dictionaries, each of which reconstructs alone."""

    matryoshka_widths: tuple[int, ...] = ()
    """Widths of the nested dictionaries, ascending; the whole width is added where it lacks."""
    use_matryoshka_aux_loss: bool = False
    """Let dead latents learn what their own level leaves over, not what all leave."""


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitOptions(Options):
    """Latents one after the other, each the best for what is left; tied weights."""

    decoder_init_norm: float | None = 1.0
    """The decoder's rows have norm 1."""
    residual_threshold: float = 1e-2
    """Stop where less than this is left."""
    max_iterations: int | None = None
    """At most so many latents; null: as many as the rows are wide."""
    stop_on_duplicate_support: bool = True
    """Stop where a step brings no new latent."""


OPTIONS: Mapping[str, type[Options]] = {
    "standard": StandardOptions,
    "gated": GatedOptions,
    "jumprelu": JumpReLUOptions,
    "topk": TopKOptions,
    "abstopk": TopKOptions,
    "batchtopk": BatchTopKOptions,
    "matryoshka_batchtopk": MatryoshkaOptions,
    "matching_pursuit": MatchingPursuitOptions,
}
"""Architectures, and what can be said about each."""

ACROSS_SITES = ("topk", "batchtopk", "jumprelu")
"""Architectures of transcoders and crosscoders."""


def read_options(architecture: str, options: Mapping[str, object], *, d_sae: int) -> Options:
    """The options of an architecture, defaults filled in, checked.

    Raises
    ------
    InvalidSAE
        There is no such architecture or option (the nearest is named), or a value cannot be.
    """
    if architecture not in OPTIONS:
        raise InvalidSAE(
            f"There is no architecture {architecture!r}\n{nearest(architecture, OPTIONS)}"
        )
    if d_sae < 1:
        raise InvalidSAE(f"d_sae must be at least 1, and is {d_sae}\nhint: such as 16384")
    kind = OPTIONS[architecture]
    for name in options:
        if name not in kind.__dataclass_fields__:
            raise InvalidSAE(
                f"The architecture {architecture} has no option {name!r}\n"
                f"{nearest(name, kind.__dataclass_fields__)}"
            )
    try:
        read = from_dict(kind, dict(options), source=f"the options of {architecture}")
    except ConfigError as error:
        raise InvalidSAE(str(error)) from error
    if problem := _problem(read, d_sae):
        raise InvalidSAE(f"Options of {architecture}: {problem}")
    return read


def check_architecture(architecture: str, options: Mapping[str, object], *, d_sae: int) -> None:
    """Refuse what `read_options` refuses, before anything is built.

    Raises
    ------
    InvalidSAE
        There is no such architecture or option (the nearest is named), or a value cannot be.
    """
    read_options(architecture, options, d_sae=d_sae)


def check_across_sites(architecture: str, kind: str) -> None:
    """Refuse an architecture that transcoders and crosscoders do not have.

    Raises
    ------
    InvalidSAE
        It is one of them; `kind` names what was to be made.
    """
    if architecture in OPTIONS and architecture not in ACROSS_SITES:
        raise InvalidSAE(
            f"A {kind} cannot be {architecture}\nhint: it can be {', '.join(ACROSS_SITES)}"
        )


def _problem(options: Options, d_sae: int) -> str | None:
    norm = options.decoder_init_norm
    if norm is not None and norm <= 0:
        return f"decoder_init_norm must be above 0, and is {norm}\nhint: 0.1, or null"
    match options:
        case TopKOptions(k=k) | BatchTopKOptions(k=k) if not 0 < k <= d_sae:
            return (
                f"k must be above 0 and at most d_sae, and is {k:g} with d_sae {d_sae}\n"
                "hint: such as k: 32"
            )
        case MatryoshkaOptions(matryoshka_widths=widths):
            return _problem_of_widths(widths, d_sae)
        case JumpReLUOptions():
            return _problem_of_jumprelu(options, d_sae)
        case MatchingPursuitOptions(decoder_init_norm=norm) if norm != 1.0:
            return f"decoder_init_norm must be 1, and is {norm}\nhint: leave it out"
        case MatchingPursuitOptions(max_iterations=most) if most is not None and most < 1:
            return f"max_iterations must be at least 1, and is {most}\nhint: leave it out"
        case StandardOptions(lp_norm=power) if power <= 0:
            return f"lp_norm must be above 0, and is {power}\nhint: such as lp_norm: 1"
    return None


def _problem_of_widths(widths: tuple[int, ...], d_sae: int) -> str | None:
    ascending = all(a < b for a, b in zip((0, *widths), widths, strict=False))
    if not widths or not ascending or widths[-1] > d_sae:
        return (
            f"matryoshka_widths must ascend, from above 0 to at most d_sae {d_sae}, and are "
            f"{list(widths)}\nhint: such as [{max(1, d_sae // 16)}, {max(2, d_sae // 4)}, {d_sae}]"
        )
    return None


def _problem_of_jumprelu(options: JumpReLUOptions, d_sae: int) -> str | None:
    if options.jumprelu_bandwidth <= 0:
        return (
            f"jumprelu_bandwidth must be above 0, and is {options.jumprelu_bandwidth}\n"
            "hint: such as 0.05"
        )
    target = options.target_l0
    if options.jumprelu_sparsity_loss_mode == "quadratic" and (
        target is None or not 0 < target <= d_sae
    ):
        return (
            f"the sparsity loss 'quadratic' needs a target_l0 above 0 and at most d_sae {d_sae}, "
            f"not {target}\nhint: such as target_l0: 32"
        )
    return None


def training_widths(options: MatryoshkaOptions, d_sae: int) -> tuple[int, ...]:
    """The nested widths, the whole one included."""
    widths = options.matryoshka_widths
    return widths if widths[-1] == d_sae else (*widths, d_sae)


def as_saelens(options: Options, d_sae: int) -> dict[str, Any]:
    """The fields of the SAELens training configuration that these options are."""
    fields: dict[str, Any] = {
        name: getattr(options, name) for name in type(options).__dataclass_fields__
    }
    if isinstance(options, MatryoshkaOptions):
        fields["matryoshka_widths"] = list(training_widths(options, d_sae))
    return fields
