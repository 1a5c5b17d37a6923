"""What docs/own-activations.md says of stores of one's own is what happens."""

import re
from pathlib import Path

from actlake.storage import verify

GUIDE = Path(__file__).parent.parent / "docs" / "own-activations.md"


def test_the_guides_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {}

    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(block, "docs/own-activations.md", "exec"), names)

    assert names["store"]["resid_post.6"].shape == (names["tokens"], 16)
    assert names["found"].rows.tolist() == [1, 2]
    assert verify(names["told"]).is_whole
