"""The benchmark: its tables name what is there; nothing unmeasured counts as reached."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "benchmark"
sys.path.append(str(FOLDER))

import accelerator  # noqa: E402
import driver  # noqa: E402
from accelerator import CASES  # noqa: E402
from once import ONCE  # noqa: E402
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


class Stub:
    """In place of a worker's process; `alive` counts those that were not ended."""

    alive, most, params = 0, 0, {}

    def __init__(self, python, entry, core):
        self.entry, self.about = entry, {}
        Stub.alive += 1
        Stub.most = max(Stub.most, Stub.alive)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        Stub.alive -= 1

    def ready(self, patience=None):
        count = Stub.params[self.entry[0]]
        if count is None:
            raise SystemExit("error: the process failed")
        notes = {"device": Stub.card, "peak memory, GB": 1}
        self.about = {"params": count, "flops": 1e15, "notes": notes}
        return self

    def turn(self):
        return [1.0, 1.0 if self.entry[0] == "ours" else 2.0]


@pytest.fixture
def stub(monkeypatch):
    Stub.alive = Stub.most = 0
    Stub.params, Stub.card = {"ours": 1000, "peers": 1001}, "NVIDIA H200"
    monkeypatch.setattr(accelerator, "Worker", Stub)
    monkeypatch.setattr(driver, "Worker", Stub)
    return Stub


def measured(tmp_path, peers=True, cases=""):
    given = SimpleNamespace(cases=cases, peers=tmp_path if peers else None, json=None)
    given.peer_python, given.rounds, given.patience = "python", 1, 9.0
    return accelerator.measure(given)


def test_gates_on_an_accelerator_and_a_case_at_a_time(stub, tmp_path, capsys):
    rows, good = measured(tmp_path)
    assert len(rows) == len(CASES)
    assert good
    assert (stub.alive, stub.most) == (0, 2)
    told = capsys.readouterr()
    assert "ratio >= 1.3 |" in told.out
    assert "measured" not in told.out + told.err


@pytest.mark.parametrize("why", ["peers", "failed", "card"])
def test_what_was_not_measured_is_not_reached(stub, tmp_path, capsys, why):
    if why == "failed":
        stub.params["peers"] = None
    if why == "card":
        stub.card = "an unknown card"
    rows, good = measured(tmp_path, peers=why != "peers")
    told = capsys.readouterr()
    assert not good
    gate = "MFU >= 40%" if why == "card" else "ratio >= 1.3"
    assert f"{gate} not measured |" in told.out
    assert (why == "peers") == ("without --peers, 3 ratios" in told.err)
    assert not stub.alive


def test_other_numbers_of_parameters_are_refused_and_all_is_ended(
    stub, tmp_path, capsys
):
    stub.params["peers"] = 1100
    rows, good = measured(tmp_path)
    assert not good
    assert len(rows) == len(CASES) - 3
    assert capsys.readouterr().err.count("1,000 against 1,100 parameters") == 3
    sides = [("python", (file, "step", {})) for file in ("ours", "peers")]
    with pytest.raises(SystemExit, match="1,000 against 1,100 parameters"):
        driver.compare(*sides, 1, 0)
    assert not stub.alive
    stub.params["peers"] = 1001
    assert driver.compare(*sides, 1, 0)["wall_ratio"] == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--cases=zzz", "--suite=step"], "--cases=zzz: .*made 784-500"),
        (["--cases=zzz", "--suite=accelerator"], "--cases=zzz: .*cifar10/transformer"),
        (["--cases=zzz", "--suite=input"], "--cases=zzz: .*data wait, resident"),
        (["--suite=step"], "--suite=step: without --peers=DIR, none of 5"),
        (["--suite=accelerator"], "--suite=accelerator: JAX finds no GPU"),
        (["--peers=.", "--peer_python=no/python"], "--peer_python=no/python: "),
    ],
)
def test_a_mistake_is_told_in_one_line(flags, told, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run(
        [sys.executable, FOLDER, *flags], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {told}[^\n]*\n", done.stderr)


def test_a_peers_python_without_pytorch(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no packages
    python.chmod(0o755)
    done = subprocess.run(
        [sys.executable, FOLDER, f"--peers={tmp_path}", f"--peer_python={python}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch("error: --peer_python=.*: it lacks torch.*\n", done.stderr)


def test_what_is_computed_anew_is_not_counted():
    from ours import _model_flops, _Training

    counts = []
    for remat in (False, True):
        fields = dict(width=4, depth=2, num_scales=1, remat=remat)
        t = _Training("glow", (4, 4, 1), 3, fields, batch_size=2)
        counts.append(_model_flops(t))
    assert counts[0] == counts[1] > 0


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flops_of_the_other_are_not_shown_as_ours(script):
    a, b = (dict(cpu_seconds=1.0, flops=flops) for flops in (0.0, 1e9))
    row = dict(a=a, b=b, ratio=1, ratio_spread=(1, 1), wall_ratio=1, params=(1, 1))
    row |= dict(gate=None, reached=True)
    assert script._figures(row, 1e9)[-1] == ""
    assert script._figures(row | {"a": b}, 1e9)[-1] == "1.0 (100%)"


def test_cases_select_what_is_measured_once_too(script):
    given = SimpleNamespace(suite="input", cases="data wait, res")
    assert len(script._once(given)) == 1


def test_names_of_what_is_measured_once_are_its_own():
    names = [name for suite in ONCE.values() for name in suite]
    assert len(set(names)) == len(names) > 10
