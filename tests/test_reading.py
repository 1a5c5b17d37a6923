"""What docs/reading.md says of batches, several stores and export is what happens."""

import re
from pathlib import Path

from actlake.jobs.cli import run
from actlake.storage import open_store, verify
from actlake.storage.provenance import shortened

GUIDE = Path(__file__).parent.parent / "docs" / "reading.md"


def test_the_guides_python_runs(tmp_path, monkeypatch, smollm2_store):
    (tmp_path / "actlake-demo").mkdir()
    (tmp_path / "actlake-demo" / "store").symlink_to(smollm2_store)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, object] = {}

    for block in blocks:
        exec(compile(block, "docs/reading.md", "exec"), names)

    assert names["batch"].acts.shape == (4096, 576)
    assert names["acts"].shape == (4096, 576)
    assert names["state"]["step"] == 0  # 4,096 of these few rows are a whole epoch
    assert names["state"]["epoch"] == 1


def test_export_on_the_command_line_makes_a_store_and_says_when_it_is_there(
    tmp_path, smollm2_store, capsys
):
    arguments = ["export", str(smollm2_store), str(tmp_path / "copy")]
    arguments += ["--sites", "resid_post.9", "--splits", "train"]

    first = run(arguments), capsys.readouterr().out
    again = run(arguments), capsys.readouterr().out

    copy, parent = open_store(tmp_path / "copy"), open_store(smollm2_store)
    assert first[0] == again[0] == 0
    assert shortened(copy.fingerprint) in first[1]
    assert "complete already" in again[1]
    assert verify(copy).is_whole
    counts = [s.moments("resid_post.9", split="train").count for s in (copy, parent)]
    assert counts[0] == counts[1]
    assert copy.text(0, 20) in parent.text(0, parent.schema.rows)


def test_an_export_that_cannot_be_says_so_on_one_line(tmp_path, smollm2_store, capsys):
    status = run(["export", str(smollm2_store), str(tmp_path / "copy"), "--splits", "tran"])

    assert status == 1
    assert "did you mean 'train'" in capsys.readouterr().err
