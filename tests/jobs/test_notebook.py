"""The notebook runs from top to bottom on a store of a real model, and is kept without outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOKS = sorted(Path(__file__).parents[2].glob("examples/notebooks/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert len(code) > 3
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert [cell.execution_count for cell in code] == [None] * len(code)


# pyzmq and the kernel's client close sockets and loops after the test, where pytest watches.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_query_notebook_runs_and_draws_its_picture(smollm2_store, tmp_path, monkeypatch):
    store = tmp_path / "store"
    shutil.copytree(smollm2_store, store)
    monkeypatch.chdir(tmp_path)  # the kernel's sockets are files here; no port is opened
    monkeypatch.setenv("ACTLAKE_STORE", str(store))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    [path] = [path for path in NOTEBOOKS if path.stem == "query_a_store"]
    notebook = nbformat.read(path, as_version=4)

    NotebookClient(
        notebook,
        timeout=120,
        startup_timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
        config=Config({"KernelManager": {"transport": "ipc"}}),
    ).execute()

    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    kinds = {kind for out in outputs for kind in out.get("data", {})}
    assert "image/png" in kinds
    assert "text/html" in kinds
    assert any("rows in" in out.get("data", {}).get("text/plain", "") for out in outputs)
    assert [out for out in outputs if out.output_type == "stream" and out.name == "stderr"] == []
    assert (store / "labels" / "for_senses.parquet").is_file()
