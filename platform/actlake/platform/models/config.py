"""Which model to run and how, as it is written; nothing is looked up, nor torch imported."""

from dataclasses import dataclass
from typing import Literal, get_args

from actlake.platform.models.errors import InvalidModelConfig
from actlake.storage.errors import nearest

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Attention = Literal["auto", "sdpa", "eager"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which language model to run, and how."""

    name: str
    """An id of the Hugging Face hub (``EleutherAI/pythia-70m``), a folder written by
    ``save_pretrained``, or a ``.gguf`` file. A folder of that name comes before the hub."""

    revision: str = ""
    """Branch, tag or commit on the hub; empty for the main branch. The commit it stands for
    is looked up once and recorded."""

    dtype: Dtype = "auto"
    """What the model computes in. ``auto``: float32 on CPUs, bfloat16 on GPUs that have it.
    The store's dtype is another setting."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, …, or ``auto``: CUDA where torch sees it."""

    attention: Attention = "auto"
    """How attention is computed: ``sdpa``, torch's fused way, or ``eager``, which all families
    have. ``auto``: the fused way where the family has it (Gemma 2 does not)."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do anything that you can do."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InvalidModelConfig(
                "The model's name is empty\n"
                "hint: give an id of the hub, a folder or a .gguf file as model.name"
            )
        check_dtype(self.dtype)
        check_device(self.device)
        check_attention(self.attention)


def check_dtype(written: str) -> None:
    """Refuse a dtype that is not one of `DTYPES`."""
    if written not in DTYPES:
        raise InvalidModelConfig(
            f"Cannot run a model in dtype {written!r}\n"
            f"The dtypes are {', '.join(DTYPES)}\n" + nearest(written, DTYPES)
        )


def check_device(written: str) -> None:
    """Refuse what is not written ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    kind, colon, index = written.partition(":")
    is_plain = kind in ("auto", "cpu", "cuda") and not colon
    if not (is_plain or (kind == "cuda" and index.isdecimal())):
        raise InvalidModelConfig(
            f"There is no device {written!r}\n"
            f"hint: write auto, cpu, cuda, or one card as cuda:0, cuda:1, …"
        )


def check_attention(written: str) -> None:
    """Refuse an attention that is not one of `ATTENTIONS`."""
    if written not in ATTENTIONS:
        raise InvalidModelConfig(
            f"There is no attention {written!r}\n"
            f"The ways of computing it are {', '.join(ATTENTIONS)}\n" + nearest(written, ATTENTIONS)
        )
