"""What is killed while it writes, and what is started again."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launch import REPO, SMALL, launch, start, train

from experiments.cell import Cell, read_state
from gm.checkpoint import Checkpoints
from gm.config import RunConfig
from gm.errors import InputError
from gm.rundir import RunDirectory, read_json
from gm.writer import read_metrics

SLOW = pytest.mark.slow

# A process that forks writers: only the first has to import anything.
FORKING = """
import os, random, signal, sys, time
from pathlib import Path

root, kills = Path(sys.argv[1]), int(sys.argv[2])
{imports}
generator = random.Random(0)

def work():
    {work}

for _ in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)  # only where it failed
    os.close(write)
    for _ in range(generator.randint(5, 12)):
        os.read(read, 1)  # it has written once more
    time.sleep(generator.uniform(0, 0.005))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(read)
    {check}
"""


def killed_often(root, kills, *, imports, work, check):
    """Runs `work` and kills it, over and over; after each kill `check`s."""
    work, check = (text.strip().replace("\n", "\n    ") for text in (work, check))
    code = FORKING.format(imports=imports.strip(), work=work, check=check)
    args = [sys.executable, "-c", code, str(root), str(kills)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(args, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.case(17)
def test_killed_while_it_writes_rows_and_results(tmp_path, record_property):
    killed_often(
        tmp_path,
        50,
        imports="""
import json
from gm.rundir import write_json
from gm.writer import Metrics, read_metrics
metrics, result = root / "metrics.jsonl", root / "results" / "test.json"
""",
        work="""
last = max([0] + [row["step"] for row in read_metrics(metrics)])
last -= last % 5  # as if every fifth step had a checkpoint
opened = Metrics(metrics, last)
while True:
    last += 1
    opened.write(last, {"value": last / 7})
    write_json(result, [last] * 2000)
    os.write(write, b".")
""",
        check="""
steps = [row["step"] for row in read_metrics(metrics)]
assert steps == list(range(1, len(steps) + 1)), steps
if result.exists():
    values = json.loads(result.read_text())
    assert len(values) == 2000 and len(set(values)) == 1
""",
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["value"] for row in rows] == [(i + 1) / 7 for i in range(len(rows))]
    assert len(rows) >= 50  # each life wrote five or more and lost four at most
    record_property("figure", f"50 kills, 0 torn, {len(rows)} rows once each")


SAVER = """
import sys
import numpy as np
from gm.checkpoint import Checkpoints
store = Checkpoints(sys.argv[1])
step = max(store.steps(), default=0)
while True:
    step += 1
    store.save(step, {"x": np.full(2_000_000, step, np.float32)}, {})
    print(step, flush=True)
"""


@pytest.mark.case(3)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=SLOW)])
def test_killed_while_a_checkpoint_is_written(kills, tmp_path, record_property):
    generator, halves = random.Random(0), 0
    for number in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)],
            cwd=REPO,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        told = [int(process.stdout.readline()) for _ in range(2)]
        time.sleep(generator.uniform(0, 0.03 if number % 2 else 0.5))
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split()]
        process.wait(), process.stdout.close()
        halves += any("tmp" in p.name for p in tmp_path.iterdir())
        store = Checkpoints(tmp_path)
        step, flat, _ = store.restore()
        store.close()
        # `save` returns before the step is whole, and after the one before it is.
        assert step >= told[-1] - 1
        assert (flat["x"] == step).all()
        assert not any("corrupt" in p.name for p in tmp_path.iterdir())
        deadline = time.monotonic() + 30  # cleaned up in the background
        while any("tmp" in p.name for p in tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert halves or kills < 20  # two may both miss the moment
    record_property("figure", f"{kills} kills, {halves} half-written, 0 steps lost")


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {"width": 9} if isinstance(value, dict) else f"{value}x"


CONFIG = RunConfig("made", "digits", settings={"width": 8}).to_json()


@pytest.mark.case(11)
@pytest.mark.parametrize("field", sorted(CONFIG))
def test_only_what_changes_no_number_may_change(field, tmp_path):
    run = RunDirectory.open_for_training(tmp_path)
    run.claim(CONFIG, RunConfig.may_change)
    other = CONFIG | {field: changed(CONFIG[field])}
    if field in RunConfig.may_change:
        run.claim(other, RunConfig.may_change)
        assert run.config() == other
        return
    with pytest.raises(InputError, match=f"{field}.* is .*, was ") as error:
        run.claim(other, RunConfig.may_change)
    old, new = (c["width"] if isinstance(c := v[field], dict) else c
                for v in (CONFIG, other))  # fmt: skip
    assert f"is {new!r}, was {old!r}" in str(error.value)
    assert run.config() == CONFIG


@pytest.mark.case(7)
@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, ""])
def test_a_configuration_that_is_none_is_refused(text, tmp_path):
    run = RunDirectory.open_for_training(tmp_path)
    (tmp_path / "config.json").write_text(text)
    for use in (run.config, lambda: run.claim(CONFIG)):
        with pytest.raises(InputError, match=r"config\.json: not "):
            use()
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.case(21)
@pytest.mark.slow
def test_a_large_save_is_written_in_the_background(tmp_path, record_property):
    """The time is told, not judged: it depends on the machine."""
    store = Checkpoints(tmp_path)
    rng = np.random.default_rng(0)
    state = {"x": rng.normal(size=(200, 125_000)).astype(np.float64)}  # 200 MB
    begin = time.monotonic()
    store.save(1, state, {})
    blocked = time.monotonic() - begin
    store.wait()
    whole = time.monotonic() - begin
    assert store.restore()[0] == 1
    store.close()
    told = f"200 MB: {blocked:.2f} s blocked, {whole:.2f} s until it was whole"
    record_property("figure", told)


EVALUATE = """
import os, signal, sys
from gm import writer
from experiments import evaluate, launcher

def kill_at(self, done, text, **_):
    if done >= 200:
        os.kill(os.getpid(), signal.SIGKILL)

writer.Progress.update = kill_at
evaluate.define_flags()
launcher.run(evaluate.main)
"""


@pytest.mark.case(23)
def test_a_killed_evaluator_starts_again(tmp_path, record_property):
    from experiments.evaluate import evaluate_run

    run = tmp_path / "run"
    status, _, err = train(run, "--set=width=8", *SMALL, model="vae")
    assert status == 0, err
    code = [sys.executable, "-c", EVALUATE, f"--workdir={run}", "--batch_size=40"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run(code, cwd=REPO, env=env).returncode == -signal.SIGKILL
    assert not (run / "results").exists()
    rows = []
    for _ in range(2):
        evaluate_run(str(run), split="test", batch_size=40)
        row = json.loads((run / "results" / "test.json").read_text())
        nats = np.load(run / "results" / "test.nats.npy")
        rows.append((row["nats"], nats.tobytes()))
        assert len(nats) == row["num_examples"] == 397
    assert rows[0] == rows[1]
    record_property("figure", f"killed after 200 of 397 examples; then {row['nats']!r}")


@pytest.mark.case(18)
def test_a_killed_sweep_goes_on(tmp_path):
    flags = ("--models=made", "--set=made.width=8,12", "--jobs=2", "--num_steps=4000",
             "--steps_per_dispatch=20", "--save_every=20", "--valid_every=4000",
             "--num_valid_examples=50", "--batch_size=16",
             f"--workdir={tmp_path}")  # fmt: skip
    process = start("sweep", *flags)
    cells = [tmp_path / f"digits_made_width={w}_s0" for w in (8, 12)]
    latest = [cell / "checkpoints" / "latest" for cell in cells]
    limit = time.monotonic() + 120
    while not all(p.is_dir() and any(p.glob("[0-9]*")) for p in latest):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    owner = (cells[0] / "LOCK").read_text()
    os.kill(int(owner.split()[1]), signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    status, out, err = launch("sweep", *flags)
    assert status == 0, out + err
    assert out.count(": done (") == 2
    for cell in cells:
        assert [r["step"] for r in read_metrics(cell / "metrics.jsonl")][-1] == 4000
        assert (cell / "results" / "test.json").exists()
    states = [read_state(cell) for cell in cells]
    assert [s.word for s in states] == ["done"] * 2
    assert all("bits/dim (test)" in s.told for s in states)
    assert [Cell(c, tuple(read_json(c / "cell.json")["args"]))() for c in cells] == [
        "skipped: finished before"
    ] * 2


def test_ctrl_c_of_a_sweep_returns_when_its_cells_are_saved(tmp_path):
    flags = ("--models=made", "--set=made.width=8", "--num_steps=100000",
             "--steps_per_dispatch=20", "--save_every=20", "--valid_every=100000",
             "--num_valid_examples=50", f"--workdir={tmp_path}")  # fmt: skip
    process = start("sweep", *flags)
    cell = tmp_path / "digits_made_width=8_s0"
    latest = cell / "checkpoints" / "latest"
    limit = time.monotonic() + 120
    while not (latest.is_dir() and any(latest.glob("[0-9]*"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert read_state(cell).word == "stopped"
    assert f"{cell.name}: stopped" in out
    assert f"python -m experiments.sweep {shlex.join(flags)}" in err
