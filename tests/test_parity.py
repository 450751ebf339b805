"""scripts/parity without what it needs: one line that says how to get it."""

import os
import re
import subprocess
import sys

import pytest
from launch import REPO

SCRIPT = REPO / "scripts" / "parity"
FILES = {p.stem for p in SCRIPT.glob("*.py")} - {"__main__", "row"}


@pytest.fixture
def run(tmp_path):
    """Runs it where PyTorch is not installed."""
    absent = 'raise ModuleNotFoundError("No module named torch", name="torch")'
    (tmp_path / "torch.py").write_text(absent)
    path = os.pathsep.join([str(tmp_path), str(REPO)])

    def run(*args):
        return subprocess.run(
            [sys.executable, SCRIPT, *args],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )

    return run


def test_help_lists_every_repository_with_its_commit(run):
    told = run("--help").stdout
    page = (REPO / "gm" / "models" / "README.md").read_text()
    table = re.search(r"<!-- parity -->(.*)<!-- /parity -->", page, re.DOTALL)[1]
    rows = set(re.findall(r"^\| \w+ \| (\w[\w-]*/[\w-]+) \| (\w+) \|", table, re.M))
    assert len(rows) > 5
    for repository, commit in rows:
        assert re.search(f"{repository} .*checkout {commit}$", told, re.MULTILINE)
    assert set(re.findall(r"\w+", told)) >= FILES


@pytest.mark.parametrize(
    ("args", "checkouts", "told"),
    [
        (["glow"], [], "glow needs .*git clone .*/rosinality/glow-pytorch "),
        ([], [], "gated_pixelcnn needs .*git clone .*/pytorch-generative "),
        (["glow"], ["glow-pytorch"], "PyTorch is needed.*: pip install torch"),
        (["gow"], [], "gow: no such comparison"),
    ],
)
def test_what_is_missing_is_told_in_one_line(run, tmp_path, args, checkouts, told):
    for name in checkouts:
        (tmp_path / name).mkdir()
    done = run(f"--peers={tmp_path}", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: [^\n]*{told}[^\n]*\n", done.stderr)
