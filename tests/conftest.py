"""What tests of several packages share: one real model, fetched once and cached."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct; a test that needs it fails where it cannot be had."""
    from actlake.platform.models.smollm2 import smollm2_folder

    return smollm2_folder()
