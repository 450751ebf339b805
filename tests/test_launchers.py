"""The launchers as a person uses them, each in a process of its own."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--num_steps=20", "--valid_every=20", "--batch_size=16"]


def run(*args, cwd=ROOT, ok=True):
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True
    )
    if ok:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two models on digits, and one cell that fails."""
    root = tmp_path_factory.mktemp("sweep")
    flags = [
        "-m",
        "experiments.sweep",
        "--models=made,vae",
        "--datasets=digits,solids",
        "--resolutions=8",
        "--set=made.width=8",
        "--set=vae.width=8",
        "--num_importance_samples=2",
        "--jobs=2",
        f"--workdir={root}",
        *SMALL,
    ]
    return root, flags, run(*flags)


def test_sweep_trains_evaluates_and_skips_what_is_finished(sweep):
    root, flags, done = sweep
    assert "[4/4]" in done.stdout
    cells = sorted(p.name for p in root.iterdir())
    assert cells == [
        "digits-8_made_width=8_s0",
        "digits-8_vae_width=8_s0",
        "solids-8_made_width=8_s0",
        "solids-8_vae_width=8_s0",
    ]
    row = json.loads((root / cells[1] / "results" / "test.json").read_text())
    assert row["num_importance_samples"] == 2
    assert row["num_examples"] == 397
    nats = np.load(root / cells[1] / "results" / "test.nats.npy")
    assert nats.mean() == pytest.approx(row["nats"])
    again = run(*flags)
    assert again.stdout.count("skipped: finished before") == 4


@pytest.mark.case(18)
def test_one_failing_cell_does_not_stop_the_others(sweep, tmp_path):
    flags = [f for f in sweep[1] if not f.startswith(("--workdir", "--resolutions"))]
    flags += [f"--workdir={tmp_path}", "--resolutions=8,9", "--models=made"]
    flags = [f for f in flags if f != "--set=vae.width=8"]
    done = run(*flags, "--datasets=digits", ok=False)
    assert done.returncode == 1
    assert "digits-8_made_width=8_s0: done" in done.stdout
    assert "--resolution=9" in done.stdout  # the reason, where it failed
    assert "1 of 2 cells failed" in done.stderr


def test_cells_of_one_name_are_refused(tmp_path):
    flags = ["--datasets=files:a/b,files:a_b", "--models=made", "--dry_run"]
    done = run("-m", "experiments.sweep", *flags, f"--workdir={tmp_path}", ok=False)
    assert done.returncode == 2
    assert "two cells would share the directory files_a_b_made_s0" in done.stderr


def test_a_queue_that_does_not_answer_is_no_empty_queue(tmp_path, monkeypatch):
    from experiments.slurm import _queue

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    squeue = tmp_path / "squeue"
    for body, found in {
        "echo 0; echo 2": {0, 2},
        "echo N/A": {0},
        "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1": set(),
        "echo Unable to contact slurm controller >&2; exit 1": None,
    }.items():
        squeue.write_text(f"#!/bin/sh\n{body}\n")
        squeue.chmod(0o755)
        assert _queue("7") == found


class Executor:
    """As submitit's: the jobs that are submitted have ended at once."""

    def __init__(self, **_):
        self.batch = contextlib.nullcontext

    def update_parameters(self, **_):
        pass

    def submit(self, job):
        job.cell._note(done=True)
        return SimpleNamespace(job_id="7_0")


def test_what_slurm_does_not_run_is_told_and_not_waited_for(
    tmp_path, monkeypatch, capsys
):
    from experiments import slurm
    from experiments.cell import Cell

    own, other, left = (tmp_path / name for name in ("own", "other", "left"))
    Cell(other, ("--seed=1",)).enter()  # begun with other flags
    (other / "metrics.jsonl").write_text("")
    Cell(left, ()).enter()  # of another sweep
    (tmp_path / "slurm").mkdir(mode=0o755)
    monkeypatch.setitem(
        sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor)
    )
    monkeypatch.setattr(slurm, "_queue", lambda array: set())
    looks = iter(range(20))
    monkeypatch.setattr(time, "sleep", lambda seconds: next(looks))
    cells = [Cell(own, ()), Cell(other, ("--seed=2",))]
    assert slurm.run(tmp_path, cells, 1, []) == 1
    out, err = capsys.readouterr()
    assert "1 done" in out
    assert "other: failed: " in err
    assert "holds a run of other flags: --seed=1, --seed=2" in err
    assert (tmp_path / "slurm").stat().st_mode & 0o777 == 0o700


def test_a_cell_that_another_sweep_has_finished_stays_done(tmp_path, monkeypatch):
    from experiments import cell

    class Refused:
        """The run is in use; by when that is told, it has ended."""

        def __init__(self, *_, **__):
            pass

        def wait(self):
            cell.Cell(tmp_path, ())._note(done=True)
            return 2

    monkeypatch.setattr(cell.subprocess, "Popen", Refused)
    assert cell.Cell(tmp_path, ())().startswith("failed with status 2")
    assert cell.read_state(tmp_path).word == "done"


TERMINATED = """
import os, signal, time
from pathlib import Path
from types import SimpleNamespace

from experiments import sweep

class Cell:
    path = Path("cell")

    def __call__(self, started):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        return "done"

sweep.FLAGS = SimpleNamespace(jobs=1, workdir="root")
print("unfinished:", sweep._run_all([Cell(), Cell(), Cell()]))
"""


def test_a_terminated_sweep_says_that_cells_are_left():
    done = run("-c", TERMINATED)
    assert "unfinished: 2" in done.stdout
    assert "stopped; the same command" in done.stderr
    assert "failed" not in done.stderr


@pytest.mark.parametrize("flag", ["--seeds=0,9999999999", "--mesh=data:x"])
def test_a_sweep_refuses_a_value_before_anything_runs(flag, tmp_path):
    flags = ("--models=made", f"--workdir={tmp_path / 'none'}", flag)
    done = run("-m", "experiments.sweep", *flags, ok=False)
    assert done.returncode == 2
    assert f"error: {flag.replace('0,', '')}: " in done.stderr
    assert not (tmp_path / "none").exists()


def test_dry_run_prints_costs_and_runs_nothing(tmp_path):
    done = run(
        "-m",
        "experiments.sweep",
        "--models=made",
        "--set=width=8,16",
        "--seeds=0,1",
        f"--workdir={tmp_path / 'none'}",
        "--dry_run",
    )
    lines = done.stdout.splitlines()[1:]
    found = [re.search(r"([\d,]+) parameters, .* GFLOP.* MB", line) for line in lines]
    assert len(lines) == 4
    assert len({match[1] for match in found}) == 2  # of each width, for both seeds
    assert not (tmp_path / "none").exists()


def test_compare_ranks_and_plots(sweep, tmp_path):
    root = sweep[0]
    done = run("-m", "experiments.compare", root, f"--plots={tmp_path}")
    assert "digits, test split" in done.stdout
    assert "<=" in done.stdout
    pictures = sorted(p.name for p in tmp_path.glob("*.png"))
    assert len(pictures) == 4
    assert all((tmp_path / p).read_bytes()[:4] == b"\x89PNG" for p in pictures)
    tables = json.loads(run("-m", "experiments.compare", root, "--format=json").stdout)
    assert [len(t["ranked"]) for t in tables] == [2, 2]
    text = run("experiments/compare.py", root, "--format=markdown").stdout
    assert "| made |" in text


def test_two_runs_are_compared_in_pairs_or_refused(sweep, tmp_path):
    made, vae = (sweep[0] / f"digits-8_{m}_width=8_s0" for m in ("made", "vae"))
    vae = shutil.copytree(vae, tmp_path / "vae")  # other tests read the sweep's row
    flags = ["--num_importance_samples=4", "--k_curve", "--interval"]
    done = run("-m", "experiments.evaluate", f"--workdir={vae}", *flags)
    assert re.search(r"k = +4: <= ", done.stdout)
    low, high = map(float, re.search(r"\[([\d.]+), ([\d.]+)\]", done.stdout).groups())
    row = json.loads((vae / "results" / "test.json").read_text())
    assert low < high
    assert [p["k"] for p in row["k_curve"]] == [1, 2, 4]
    done = run("-m", "experiments.compare", vae, made, f"--plots={tmp_path}")
    assert "paired over 397 examples, 1 and 1 seeds" in done.stdout
    assert len(list(tmp_path.glob("*_k_curves.png"))) == 1
    cube = sweep[0] / "solids-8_made_width=8_s0"
    done = run("-m", "experiments.compare", cube, made, ok=False)
    assert done.returncode == 2
    assert f"error: {made} cannot be compared with {cube}: split_sha256" in done.stderr
    done = run("-m", "experiments.compare", made, "--published")
    assert "no published number of this protocol" in done.stdout
    row = json.loads((cube / "results" / "test.json").read_text())
    assert row["samples"]["count"] == 1000
    assert set(row["samples"]["facts"]) == {"rendered"}


def test_a_result_below_the_entropy_is_reported_loudly(sweep, tmp_path):
    cell = sweep[0] / "solids-8_made_width=8_s0" / "results"
    (tmp_path / "results").mkdir()
    row = json.loads((cell / "test.json").read_text()) | {"nats": 8.9}
    row["standard_error_nats"] = 0.01
    (tmp_path / "results" / "test.json").write_text(json.dumps(row))
    done = run("-m", "experiments.compare", tmp_path, ok=False)
    assert done.returncode == 1
    assert "error: BUG: made" in done.stderr
    assert "0.160 bits below the entropy of solids" in done.stderr


def test_sample_writes_a_picture(sweep, tmp_path):
    path = sweep[0] / "digits-8_vae_width=8_s0"
    run("-m", "experiments.sample", f"--workdir={path}", "--num_samples=9")
    [picture] = (path / "samples").glob("*.png")
    from PIL import Image

    with Image.open(picture) as image:
        assert min(image.size) > 200


@pytest.mark.slow
def test_conditional_text_run_samples_lines(tmp_path):
    flags = ["--model=made", "--dataset=sayings", "--set=width=8", *SMALL]
    run("-m", "experiments.train", *flags, f"--workdir={tmp_path / 'a'}")
    flags = [f"--workdir={tmp_path / 'a'}", "--num_samples=3"]
    run("-m", "experiments.sample", *flags, f"--output={tmp_path / 'x.txt'}")
    assert len((tmp_path / "x.txt").read_text().splitlines()) >= 3
    flags = [
        "--model=vae",
        "--dataset=digits",
        "--set=width=8",
        *SMALL,
        "--conditional",
    ]
    run("-m", "experiments.train", *flags, f"--workdir={tmp_path / 'b'}")
    run("-m", "experiments.sample", f"--workdir={tmp_path / 'b'}", "--cond=3")


def test_a_model_outside_the_repository(tmp_path):
    """The file shown in the README trains, evaluates, compares and fulfils the contract."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "my_model.py").write_text(code)
    train = ["-m", "experiments.train", "--model=my_model", "--dataset=digits", *SMALL]
    train += ["--workdir=runs/mine", "--evaluate=test"]
    assert "bits/dim" in run(*train, cwd=tmp_path).stdout
    table = run("-m", "experiments.compare", "runs/mine", cwd=tmp_path).stdout
    assert "my_model" in table
    # `-p no:cacheprovider`: this inner session must not touch the outer one's state.
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests = [ROOT / "tests" / "test_models.py", "--model=my_model"]
    done = run(*pytest, *tests, cwd=tmp_path)
    assert re.search(r"\d\d passed", done.stdout)
    # Named in full, so that it also works where gm was installed before it had plugins.
    plugin = ["-p", "gm.pytest_plugin", "--gm-audit=my_model"]
    done = run(*pytest, *plugin, cwd=tmp_path)
    assert re.search(r"\d passed, \d skipped", done.stdout)
    assert "my_model normalisation: pass: " in done.stdout


WRONG = """
from my_right import Model, TINY
class Wrong(Model):
    def log_prob(self, x, cond=None, *, train=False):
        log_px, _ = super().log_prob(x, cond, train=train)
        return 0.9 * log_px, {"symbols": 0.9 * log_px}
Model = Wrong
"""


@pytest.mark.slow
def test_audit_fails_a_wrong_model_outside_the_repository(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "my_right.py").write_text(code)
    (tmp_path / "my_wrong.py").write_text(WRONG)
    (tmp_path / "test_other.py").write_text("def test_other(): assert False")
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gm.pytest_plugin"]
    audits = ["--gm-audit=my_right", "--gm-audit=my_wrong", "-k", "normalisation"]
    done = run(*pytest, *audits, cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout  # and test_other.py was not asked for
    assert re.search(r"81 probabilities given \d sum to \d\.\d+, off by", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
    done = run(*pytest, "--gm-audit=my_worng", cwd=tmp_path, ok=False)
    assert done.returncode == 4
    assert "--gm-audit=my_worng: no such model" in done.stderr


def test_audit_launcher(tmp_path):
    checks = "--checks=normalisation,devices"
    done = run("-m", "experiments.audit", "--model=made", checks)
    assert "2 devices against one" in done.stdout
    assert " sum to " in done.stdout
    assert done.stderr == ""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "my_right.py").write_text(code)
    (tmp_path / "my_wrong.py").write_text(WRONG)
    audit = ["-m", "experiments.audit", "--model=my_wrong", "--set=width=8"]
    done = run(*audit, checks, cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert done.stderr == "1 check failed\n"
    for flag, message in {
        "--model=mad": "did you mean made",
        "--checks=sample": "did you mean sampler",
        "--set=widht=8": "did you mean width",
    }.items():
        done = run("-m", "experiments.audit", "--model=made", flag, ok=False)
        assert done.returncode == 2
        assert re.fullmatch("error: [^\n]*" + message + "[^\n]*\n", done.stderr)


@pytest.mark.case(16)
def test_several_devices_give_the_same_bits(sweep):
    """Batches are split over the devices; bits/dim do not change."""
    path = sweep[0] / "digits-8_vae_width=8_s0"
    row = json.loads((path / "results" / "test.json").read_text())
    flags = [f"--workdir={path}", "--split=test", "--num_importance_samples=2"]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "experiments.evaluate", *flags]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    other = json.loads((path / "results" / "test.json").read_text())
    assert other["device"].startswith("4 x")
    assert other["nats"] == pytest.approx(row["nats"], rel=1e-5)
