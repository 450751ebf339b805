"""The notebook runs as it is, shows what came of it, and its model is sound."""

import json

import pytest
from launch import REPO

from gm import audit, data
from gm.errors import InputError
from gm.model import build

PATH = REPO / "experiments" / "first_model.ipynb"


@pytest.fixture
def markov(tmp_path, monkeypatch):
    """The text of the model file that the notebook writes; files beside it are found."""
    cells = json.loads(PATH.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    [text] = [s for s in sources if s.startswith("%%writefile markov.py\n")]
    monkeypatch.syspath_prepend(tmp_path)
    return text.partition("\n")[2]


def test_the_model_of_the_notebook_is_a_probability(markov, tmp_path):
    (tmp_path / "markov.py").write_text(markov)
    verdicts = {v.check: v for v in audit.audit_model("markov", subjects=audit.QUICK)}
    assert not [str(v) for v in verdicts.values() if v.status == "fail"]
    assert verdicts["normalisation"].status == verdicts["causality"].status == "pass"


def test_a_model_that_takes_no_condition_refuses_one(markov, tmp_path):
    head = "class Markov(AutoregressiveModel):\n"
    assert head in markov
    text = markov.replace(head, f"{head}    takes_cond = False\n")
    (tmp_path / "alone.py").write_text(text)
    [verdict] = audit.audit_model("alone", checks=["condition"])
    assert (verdict.status, verdict.figure) == ("skip", "needs a cond")
    with pytest.raises(InputError, match="--conditional: Markov takes no condition"):
        build("alone", data.load("digits"), conditional=True)


@pytest.mark.slow
def test_the_notebook_of_a_first_model_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(PATH, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=900, resources=where)
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    text = "".join(o.get("text", "") for o in outputs)
    assert "error:" not in text.lower()
    assert " 0 failed" in text  # the audit
    assert text.count("bits/dim, ") >= 2  # both trainings ended in a row
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert (tmp_path / "report.html").exists()


def test_the_notebook_has_its_outputs():
    """If not: .venv/bin/python scripts/notebook."""
    notebook = json.loads(PATH.read_text())
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    assert {o["output_type"] for o in outputs} == {"stream", "execute_result"}
    text = "".join(line for o in outputs for line in o.get("text", []))
    assert " 0 failed" in text
    assert "\x1b" not in text
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
