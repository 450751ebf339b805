"""The benchmark's table: what it names is there, with these arguments."""

import ast
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "benchmark"
sys.path.append(str(FOLDER))

from suites import SUITES  # noqa: E402


def functions(file):
    """Name -> (arguments, those without a default) of a file's functions, unimported."""
    found = {}
    for node in ast.parse((FOLDER / f"{file}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names = [a.arg for a in node.args.args]
            needed = names[: len(names) - len(node.args.defaults)]
            found[node.name] = names, needed
    return found


@pytest.mark.parametrize("suite", SUITES)
def test_cases_name_contenders_with_their_arguments(suite):
    files = {file: functions(file) for file in ("ours", "peers", "peers_sampling")}
    assert len({case.name for case in SUITES[suite]}) == len(SUITES[suite])
    for case in SUITES[suite]:
        for file, function, arguments in (case.a, case.b):
            names, needed = files[file][function]
            given = {*arguments, *([] if file == "ours" else ["peers"])}
            assert given <= set(names), function
            assert set(needed) <= given, function
