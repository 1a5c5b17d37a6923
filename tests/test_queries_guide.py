"""What docs/queries.md says of finding, SQL and labels is what happens."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

GUIDE = Path(__file__).parent.parent / "docs" / "queries.md"


def test_the_guides_python_runs(tmp_path, monkeypatch, smollm2_store):
    shutil.copytree(smollm2_store, tmp_path / "actlake-demo" / "store")
    monkeypatch.chdir(tmp_path)
    spans = {"document": ["pydoc/assert"], "start": [4], "stop": [22], "label": ["name"]}
    pq.write_table(pa.table(spans), "spans.parquet")
    names: dict[str, object] = {"frame": pd.DataFrame({"row": [3, 1], "mark": [0.5, 1.5]})}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)

    for block in blocks:
        exec(compile(block, "docs/queries.md", "exec"), names)

    assert len(names["rows"]) > 10
    assert names["labels"].values().tolist() == ["name"] * len(names["labels"])
    assert names["dataset"].sizes["dim"] == 576
