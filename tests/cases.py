"""The cases that a run must survive; `pytest --cases` prints which test shows each.

A test is marked `@pytest.mark.case(number)`, and says what it reached by
`record_property("figure", text)`.
"""

from collections import Counter

import pytest

CASES = {
    1: "the same seed twice, every model: the same state",
    2: "kill -9 at random rows: no row, no digest differs",
    3: "kill -9 during a save: the step before is there",
    4: "SIGTERM, also twice: saved, status 83, nothing lost",
    5: "SIGTERM to one of two processes: both save the same step",
    6: "kill -9 of one of two processes: the other ends too",
    7: "every file truncated, deleted, a bit flipped: never silently wrong",
    8: "an empty or symlinked step: skipped",
    9: "a full disk: one line, earlier steps restore",
    10: "a read-only disk: refused before compiling",
    11: "another configuration at resume: refused, both values named",
    12: "two processes in one run directory: the second is refused",
    13: "NaN: abort, skip, rollback; parameters stay finite",
    14: "the order of the data does not depend on the processes",
    15: "another mesh, another number of processes: the same arrays",
    16: "data parallel = sharded parameters = one device",
    17: "kill -9 during a write: old or new, never torn",
    18: "a killed sweep, started again: finished, nothing twice",
    19: "a lost Slurm node: its cell ends elsewhere, bit-equal",
    20: "hostile input: no code runs, nothing outside the run",
    21: "a save of 200 MB blocks the training little",
    22: "the same seed twice and a kill, on a GPU",
    23: "a killed evaluator, started again: the same bits/dim",
}


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("case"):
            item.user_properties.append(("case", mark.args[0]))


def _outcomes(reporter):
    """(outcome, report) of every test that was run or skipped."""
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in reporter.stats.get(outcome, ()):
            if report.when == "call" or outcome != "passed":
                yield outcome, report


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--cases"):
        return
    counts = {number: Counter() for number in CASES}
    figures = {number: [] for number in CASES}
    for outcome, report in _outcomes(terminalreporter):
        told = dict(report.user_properties).get("figure")
        test = report.nodeid.removeprefix("tests/").split("[")[0].replace(".py::", ": ")
        for name, number in report.user_properties:
            if name == "case":
                counts[number][f"`{test}` {outcome}"] += 1
                figures[number] += [told] if told else []
    terminalreporter.write_line("| case | must hold | tests |\n| --- | --- | --- |")
    for number, text in CASES.items():
        seen = counts[number].items()
        shown = [f"{what}{f' x{n}' if n > 1 else ''}" for what, n in seen]
        told = "; ".join([*shown, *figures[number]]) or "not run"
        terminalreporter.write_line(f"| {number} | {text} | {told} |")
