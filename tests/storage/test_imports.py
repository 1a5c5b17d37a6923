"""The storage package works where nothing heavy is installed, and its face is true."""

import subprocess
import sys

import actlake.storage

WITHOUT = """
import sys
for name in ("torch", "ray", "transformers", "wandb", "sae_lens"):
    sys.modules[name] = None  # importing it fails, as where it is not installed
import numpy as np
import actlake.storage as storage
for name in storage.__all__:
    getattr(storage, name)
store = storage.open_store(sys.argv[1])
assert store["resid_post.3"][:5].shape == (5, 6)
assert storage.verify(store).is_whole
heavy = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
print(sorted(heavy & {"torch", "ray", "transformers", "wandb", "sae_lens"}))
"""


def test_a_store_is_opened_and_verified_without_torch_ray_transformers_or_wandb(full):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, full], capture_output=True, text=True, check=False
    )

    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_the_face_names_what_it_holds_once_and_nothing_else_of_ours():
    face = actlake.storage
    modules = {name for name, value in vars(face).items() if type(value).__name__ == "module"}
    public = {name for name in vars(face) if not name.startswith("_")} - modules

    assert len(face.__all__) == len(set(face.__all__))
    assert set(face.__all__) == public
