"""The launchers as a person uses them, each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("launchers")  # one sweep serves them all
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


def test_one_failing_cell_does_not_stop_the_others(sweep, tmp_path):
    flags = [f for f in sweep[1] if not f.startswith(("--workdir", "--resolutions"))]
    flags += [f"--workdir={tmp_path}", "--resolutions=8,9", "--models=made"]
    flags = [f for f in flags if f != "--set=vae.width=8"]
    done = run(*flags, "--datasets=digits", ok=False)
    assert done.returncode == 1
    assert "digits-8_made_width=8_s0: done" in done.stdout
    assert "--resolution=9" in done.stdout  # the reason, where it failed
    assert "1 of 2 cells failed" in done.stderr


def test_dry_run_prints_costs_and_runs_nothing(tmp_path):
    done = run(
        "-m",
        "experiments.sweep",
        "--models=made",
        "--set=width=8,16",
        f"--workdir={tmp_path / 'none'}",
        "--dry_run",
    )
    lines = done.stdout.splitlines()[1:]
    assert [re.search(r"([\d,]+) parameters, .* GFLOP.* MB", line) for line in lines]
    assert len(lines) == 2
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


def test_sample_writes_a_picture(sweep, tmp_path):
    path = sweep[0] / "digits-8_vae_width=8_s0"
    run("-m", "experiments.sample", f"--workdir={path}", "--num_samples=9")
    [picture] = (path / "samples").glob("*.png")
    from PIL import Image

    with Image.open(picture) as image:
        assert min(image.size) > 200


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
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests += [ROOT / "tests" / "test_models.py", "--model=my_model"]
    done = run(*tests, cwd=tmp_path)
    assert re.search(r"\d\d passed", done.stdout)


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
