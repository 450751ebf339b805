"""The benchmark's table: what it names is there, with these arguments."""

import ast
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "benchmark"
sys.path.append(str(FOLDER))

from accelerator import CASES  # noqa: E402
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


def check(cases):
    """That contenders take the arguments that they are given."""
    files = {file: functions(file) for file in ("ours", "peers", "peers_sampling")}
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        for file, function, arguments in filter(None, (case.a, case.b)):
            names, needed = files[file][function]
            given = {*arguments, *([] if file == "ours" else ["peers"])}
            assert given <= set(names), function
            assert set(needed) <= given, function


@pytest.mark.parametrize("suite", SUITES)
def test_cases_name_contenders_with_their_arguments(suite):
    check(SUITES[suite])


def test_cases_of_an_accelerator():
    check(CASES)


def test_the_case_of_a_preset_has_its_fields():
    from experiments.presets import PRESETS

    for case in CASES:
        fields = case.a[2]["fields"]
        for name in re.findall(r"\w+/\w+", case.name):
            wanted = PRESETS[name]["flags"]["set"]
            assert fields == wanted, name
            assert case.a[2]["precision"] == "bfloat16"
