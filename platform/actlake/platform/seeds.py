r"""Named random generators from one number.

A config holds one integer; every use of randomness has a purpose, written as text, and gets
a generator of its own: adding a use changes none of the others, and two purposes are as
independent as two seeds.

The derivation is fixed for good, so that a run can be repeated in years:

    digest  = SHA-256 of the UTF-8 text  ``actlake seed 1\n<root>\n<purpose>``
    numpy   = PCG64 seeded with the whole digest, read as one big-endian integer
    torch   = ``manual_seed`` with the first 8 bytes, big-endian, without the top bit
    integer = the same first 8 bytes, big-endian, their top `bits` bits below the top one

What a generator makes of its seed is NumPy's and torch's own: the raw bits of PCG64 are
stable for good, methods such as ``normal`` are by their policy stable within a release, and
torch promises no more than the same version and device.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Seeds:
    """Independent generators by name: ``Seeds(0).numpy("order of epoch 3")``.

    Asking twice for one purpose gives two generators in the same state, not one shared one.
    """

    root: int = 0
    """The number from which all randomness of a run follows."""

    def numpy(self, purpose: str) -> np.random.Generator:
        """A NumPy generator (PCG64) for `purpose`."""
        seed = int.from_bytes(self._digest(purpose), "big")
        return np.random.Generator(np.random.PCG64(seed))

    def torch(self, purpose: str, device: "torch.device | str" = "cpu") -> "torch.Generator":
        """A torch generator for `purpose`, which lives on `device`."""
        import torch

        return torch.Generator(device).manual_seed(self.integer(purpose))

    def integer(self, purpose: str, *, bits: int = 63) -> int:
        """A number in [0, 2**bits) for libraries that take a seed; `bits` from 1 to 63."""
        if not 1 <= bits <= 63:
            raise ValueError(f"A seed has 1 to 63 bits, not {bits}")
        first = int.from_bytes(self._digest(purpose)[:8], "big") & (2**63 - 1)
        return first >> (63 - bits)

    def _digest(self, purpose: str) -> bytes:
        return hashlib.sha256(f"actlake seed 1\n{self.root}\n{purpose}".encode()).digest()
