"""A family whose blocks do more than map the stream to the next is refused, weights unread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actlake.platform.models import ModelConfig, resolve_model, try_stage
from actlake.platform.models.anatomy import dissect, model_class
from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.flow import check_flow
from actlake.platform.models.stand_ins import Absent
from actlake.storage.sites import Site

WIDTH = 8


class Shape:
    model_type = "own"
    hidden_size = WIDTH


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, **more: Any) -> Tensor:
        return hidden_states + self.linear(hidden_states)


class Decoder(nn.Module):
    """Three blocks, and a loop over them that each test chooses."""

    def __init__(self, loop: Callable[["Decoder", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.loop = loop

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, *, use_cache: bool) -> Tensor:
        return self.loop(self, input_ids, self.embedding(input_ids))


def plain(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1], device=ids.device)
    for block in decoder.blocks:
        hidden = block(hidden, positions=positions, mask=torch.ones_like(hidden))
    return hidden


def scaled_between(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    for block in decoder.blocks:
        hidden = block(hidden) / 2
    return hidden


def with_the_embedding(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    embedded = hidden
    for block in decoder.blocks:
        hidden = block(hidden, more={"first": [embedded * 2]})
    return hidden


def with_what_is_below(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    below: list[Tensor] = []
    for block in decoder.blocks:
        below.append(block(hidden, below=tuple(below)))
        hidden = below[-1]
    return hidden


def with_the_ids(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    for block in decoder.blocks:
        hidden = block(hidden, ids=ids)
    return hidden


def twice(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    for block in [*decoder.blocks, *decoder.blocks]:
        hidden = block(hidden)
    return hidden


def two_streams(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    hidden = torch.stack([hidden, hidden])
    for block in decoder.blocks:
        hidden = block(hidden)
    return hidden


def fails_after_two_streams(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    two_streams(decoder, ids, hidden)
    raise RuntimeError("for a reason of its own")


def again_from_elsewhere(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    for _ in range(2):
        hidden = hidden / 2
        for block in decoder.blocks:
            hidden = block(hidden)
    return hidden


def written_into(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    return plain(decoder, ids, hidden.mul_(2))


def fails(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    raise RuntimeError("for a reason of its own")


def looks_at_values(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    return plain(decoder, ids, hidden) if hidden.sum() > 0 else hidden


def checked(loop: Callable[[Decoder, Tensor, Tensor], Tensor]) -> int | None:
    with torch.device("meta"):
        decoder = Decoder(loop)
    return check_flow(decoder, decoder.blocks, Shape)


def test_a_plain_stream_is_accepted_whatever_else_the_blocks_are_told() -> None:
    assert checked(plain) == 0


def test_an_embedding_that_is_written_into_is_a_plain_stream() -> None:
    """As CTRL does, which scales it in place."""
    assert checked(written_into) == 0


def test_a_loop_that_asks_for_values_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "actlake"):
        assert checked(looks_at_values) is None

    (said,) = [record for record in caplog.records if record.name.startswith("actlake.")]
    assert said.levelname == "WARNING"
    assert "family own get more than the stream could not be tried" in said.getMessage()


def test_a_loop_that_fails_for_a_reason_of_its_own_is_not_taken_for_one_without_values() -> None:
    with pytest.raises(RuntimeError, match="for a reason of its own"):
        checked(fails)


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (scaled_between, "block 1 is not given what block 0 returned"),
        (with_the_embedding, r"block 0 is given a tensor of shape \(2, 8, 8\) that depends on the"),
        (with_what_is_below, r"block 2 is given a tensor .* depends on the text, beside the str"),
        (with_the_ids, "block 0 is given the token ids"),
        (twice, "its 3 blocks do not run once each, in order, but 6 times"),
        (
            two_streams,
            r"block 0 is given \(2, 2, 8, 8\) where the stream .* is \(2, 8, 8\)",
        ),
        (fails_after_two_streams, r"block 0 is given \(2, 2, 8, 8\) where"),
        (again_from_elsewhere, "its 3 blocks do not run once each, in order, but 6 times"),
    ],
)
def test_blocks_that_do_more_than_hand_on_the_stream_are_refused_with_what_they_do(
    loop: Callable[[Decoder, Tensor, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(ModelNotSupported, match=f"family 'own' cannot be harvested: {reason}"):
        checked(loop)


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_hidden_layers": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        (
            "zamba2",
            SMALL
            | {
                "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "n_mamba_heads": 8,
                "mamba_d_state": 8, "mamba_headdim": 8, "num_mem_blocks": 1,
                "attention_head_dim": 16, "attention_hidden_size": 64, "num_key_value_heads": 4,
            },
            "depends on the text, beside the stream",
        ),
        ("hrm_text", SMALL, "no list of its .* blocks, each of which runs once"),
    ],
)  # fmt: skip
def test_real_families_are_refused_with_the_true_reason(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.for_model(family, **settings)

    with pytest.raises(ModelNotSupported, match=reason):
        dissect(config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mixtral", "falcon", "opt"])
def test_every_stage_of_a_plain_family_runs_without_memory(
    tiny_folder: Callable[..., Path], family: str
) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder(family)), device="cpu"))

    for layers in (range(1), range(1, 3), range(3, 4)):
        try_stage(model, layers, [Site(0, "resid_pre"), Site(3)])


@pytest.mark.parametrize("kind", [KeyError, RuntimeError])
def test_a_loop_that_cannot_do_without_a_block_is_said_before_weights_are_read(
    kind: type[Exception], tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaModel

    model = resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))
    forward = LlamaModel.forward

    def asks(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(block, Absent) for block in self.layers):
            raise kind("a block is not of the kind that was counted on")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", asks)

    try_stage(model, range(4), [Site(3)])
    with pytest.raises(ModelNotSupported, match=rf"run layers \[0, 2\) of .* {kind.__name__}"):
        try_stage(model, range(2), [Site(1)])


def test_whatever_has_an_encoder_is_refused_by_its_configuration_alone() -> None:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    both = [cls for cls in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
            if cls in MODEL_FOR_CAUSAL_LM_MAPPING and cls().is_encoder_decoder]  # fmt: skip

    names = {cls.model_type for cls in both}
    assert {"bart", "bigbird_pegasus", "marian", "pegasus"} <= names
    for cls in both:
        with pytest.raises(ModelNotSupported, match=f"'{cls.model_type}' is not a decoder-only"):
            model_class(cls(), location="", commit=None, trust_remote_code=False)
