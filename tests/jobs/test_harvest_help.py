"""What `actlake harvest` answers before it imports anything heavy."""

import subprocess
import sys

from actlake.jobs import harvest as face
from actlake.jobs.harvest.replicas import phases

HEAVY = "{'torch', 'ray', 'transformers', 'wandb'} & set(sys.modules)"


def heavy_after(*words: str) -> str:
    code = (
        "import sys\n"
        "from actlake.jobs.cli import run\n"
        "try:\n"
        f"    run({list(words)!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print({HEAVY})\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_help_names_every_key_without_torch_and_ray():
    answer = heavy_after("harvest", "--help")

    for key in ("--store", "--model.name", "--corpus.source.path", "--cluster.address"):
        assert f"\n  {key} (" in answer
    assert answer.endswith("set()\n")


def test_a_wrong_key_is_refused_without_torch_and_ray():
    answer = heavy_after("harvest", "--stor", "x")

    assert answer == "set()\n"


def test_functions_are_not_hidden_by_modules_of_their_name():
    assert callable(phases)
    assert callable(face.plan)
    assert all(hasattr(face, name) for name in face.__all__)
