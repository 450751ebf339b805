"""The notebook from digits to a new model runs as it is, and shows what came of it."""

import json

import pytest
from launch import REPO


@pytest.mark.slow
def test_the_notebook_of_a_first_model_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(REPO / "experiments" / "first_model.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=900, resources=where)
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    text = "".join(o.get("text", "") for o in outputs)
    assert "error:" not in text.lower()
    assert " 0 failed" in text  # of the audit
    assert text.count("bits/dim, ") >= 2  # both trainings ended in a row
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert (tmp_path / "report.html").exists()


def test_the_notebook_has_its_outputs():
    """If not: .venv/bin/python scripts/notebook."""
    notebook = json.loads((REPO / "experiments" / "first_model.ipynb").read_text())
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    assert {o["output_type"] for o in outputs} == {"stream", "execute_result"}
    text = "".join(line for o in outputs for line in o.get("text", []))
    assert " 0 failed" in text
    assert "\x1b" not in text
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
