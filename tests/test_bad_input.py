"""Bad input, as a user gives it: one clear line, a status, nothing lost."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from launch import REPO, SMALL, flip_bit, largest_file, launch, one_error, start, train
from marks import slow
from PIL import Image

from gm.errors import InputError
from gm.rundir import RunDirectory

SENTENCE = "the cat sat on a mat and looked at it\n"


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A run that has ended, with checkpoints 10, 15 and 20; do not change it."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    status, _, err = train(path, "--set=width=16", *SMALL)
    assert status == 0, err
    return path


@pytest.fixture
def ended_run(digits_run, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(digits_run, tmp_path / "run")


def contents(directory):
    """{path: bytes} of all files."""
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {p: p.read_bytes() for p in files if p.name != "LOCK"}


# Flags. Each fails before anything is compiled, and leaves no run directory.


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--model=mde", ("--model=mde", "did you mean made?", "realnvp")),
        slow("--model=no.such", ("--model=no.such", "import path")),
        ("--model=./my/own.py", ("--model=./my/own.py", "such as --model=my.own")),
        ("--dataset=digit", ("--dataset=digit", "did you mean digits?", "files:PATH")),
        ("--set=widht=3", ("--set=widht=3", "did you mean width?", "depth")),
        slow("--set=width=abc", ("--set=width=abc", "of type int", "512")),
        ("--set=width=0", ("--set=width=0", "give 1 or more")),
        slow("--set=depth=-1", ("--set=depth=-1", "give 0 or more")),
        slow("--set=dropout_rate=2", ("--set=dropout_rate=2", "below 1")),
        ("--learning_rte=3", ("learning_rte", "learning_rate")),
        slow("--learning_rate=fast", ("--learning_rate=fast", "float")),
        ("--learning_rate=nan", ("--learning_rate=nan", "finite number above 0")),
        slow("--learning_rate=1e400", ("--learning_rate=inf", "finite number above 0")),
        slow("--precision=half", ("--precision=half", "float32|bfloat16")),
        slow("--schedule=linear", ("--schedule=linear", "cosine or constant")),
        slow("--evaluate=tset", ("--evaluate=tset", "train|valid|test")),
        slow("--resolution=0", ("--resolution=0", "from 1")),
        ("--batch_size=5000", ("--batch_size=5000", "digits has only 1200")),
        ("extra", ("unexpected argument extra", "--name=value")),
    ],
)
def test_a_bad_flag(flag, parts, tmp_path):
    one_error(train(tmp_path / "run", flag, cwd=tmp_path, env=on_path()), *parts)
    assert not (tmp_path / "run").exists()


def test_two_tables_at_once():
    one_error(launch("models", "--references", "--quality"), "--references, --quality")


def test_a_model_larger_than_the_machine(tmp_path):
    outcome = train(tmp_path / "run", "--set=width=1000000000", model="nade")
    one_error(outcome, "--set=width=1000000000", "GB", "give smaller sizes")
    assert not (tmp_path / "run").exists()


def on_path():
    return {"PYTHONPATH": str(REPO)}


def test_help_does_not_import_jax():
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('jax' in sys.modules, file=sys.stderr))\n"
        "sys.argv = ['train', '--help']\n"
        "import runpy; runpy.run_module('experiments.train', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO
    )
    assert "--learning_rate" in done.stdout
    assert done.stderr.split() == ["False"]


def test_help_into_a_closed_pipe_ends_in_silence():
    command = f"{sys.executable} -m experiments.train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPO)
    assert done.stdout.startswith("Fits a model")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["run", "board", "digits"])
def test_help_of_a_script_trains_nothing(name):
    done = subprocess.run(
        [REPO / "scripts" / name, "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Trains")
    assert f"scripts/{name} [FOLDER]" in done.stdout


# Data files.


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.npz"
    outcome = train(tmp_path / "run", dataset=f"files:{path}")
    one_error(outcome, f"there is no {path}", "image", ".npy", "text file")


def test_a_truncated_array(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((50, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:-40])
    outcome = train(tmp_path / "run", dataset=f"files:{path}")
    one_error(outcome, path, "uint8 (50, 4)", "size differs")


@pytest.mark.case(20)
def test_a_corrupt_archive(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, train=np.random.default_rng(0).integers(0, 9, (99, 4)))
    flip_bit(path, 0.2)
    outcome = train(tmp_path / "run", dataset=f"files:{path}")
    one_error(outcome, path, "damaged, truncated or not an .npz file")


@pytest.mark.case(20)
def test_a_truncated_raw_archive(tmp_path):
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")
    for name in (*names, "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b\x08 cut")
    outcome = train(tmp_path / "run", f"--data_dir={tmp_path}", dataset="mnist")
    one_error(outcome, tmp_path, "idx", "7 bytes", "fetch it again")


def test_missing_raw_archives(tmp_path):
    # Nor is there a copy in the cache or where TFDS keeps its own.
    env = {"GM_CACHE_DIR": str(tmp_path / "cache"), "TFDS_DATA_DIR": str(tmp_path)}
    args = (f"--data_dir={tmp_path}", "--num_steps=1")
    outcome = train(tmp_path / "run", *args, dataset="mnist", env=env)
    one_error(
        outcome, "--dataset=mnist", "--data_dir=DIR", "train-images-idx3-ubyte.gz"
    )


def test_an_image_folder_with_a_broken_image(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        x = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(x).save(folder / f"{i:02d}.png")
    broken = folder / "07.png"
    broken.write_bytes(broken.read_bytes()[:100])
    outcome = train(tmp_path / "run", dataset=f"files:{folder}")
    one_error(outcome, broken, "damaged, truncated or not an image")


def test_a_split_smaller_than_a_batch(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 9, (50, 4), np.uint8))
    outcome = train(tmp_path / "run", dataset=f"files:{path}")
    one_error(outcome, "--batch_size=64", path, "only 40 examples")
    # The mistake can be corrected in the same run directory.
    args = ("--batch_size=8", "--set=width=8", "--num_steps=5")
    status, _, err = train(tmp_path / "run", *args, dataset=f"files:{path}")
    assert status == 0, err


def test_text_outside_the_training_alphabet(tmp_path):
    text, other, same = (tmp_path / f"{n}.txt" for n in ("text", "other", "same"))
    text.write_text(SENTENCE * 60)
    same.write_text("a cat ate the mat\n" * 60)
    lines = [SENTENCE] * 60
    lines[40] = "the cät sat on a mat and looked at it\n"
    other.write_text("".join(lines))
    run = tmp_path / "run"
    args = ("--resolution=32", "--set=width=8", *SMALL)
    status, _, err = train(run, *args, dataset=f"files:{text}")
    assert status == 0, err
    outcome = launch("evaluate", f"--workdir={run}", f"--dataset=files:{other}")
    one_error(outcome, other, "'ä' in line 41, column 6", "15 characters")
    assert not (run / "results").exists()
    # Another text of the same characters is numbered as the run numbers them.
    status, out, err = launch("evaluate", f"--workdir={run}", f"--dataset=files:{same}")
    assert status == 0, err
    assert "bits/char" in out


def test_encode_like_numbers_characters_as_the_run_does(tmp_path):
    from gm import data

    path = tmp_path / "t.txt"
    path.write_text("cab\n" * 100)
    own = data.load(f"files:{path}", resolution=8)
    symbols = "zcba\n"
    again = data.encode_like(own, symbols)
    assert (again.num_values, again.symbols) == (5, symbols)
    for part in ("train", "valid", "test"):
        a, b = (d.split(part) for d in (own, again))
        assert len(a) == len(b)
        (a, _), (b, _) = (s.batch(np.arange(2)) for s in (a, b))
        for row_a, row_b in zip(a, b, strict=True):
            assert [own.symbols[v] for v in row_a] == [symbols[v] for v in row_b]
    assert data.encode_like(own, own.symbols) is own


# Run directories.


@pytest.mark.case(12)
def test_a_run_directory_in_use(digits_run, tmp_path):
    import fcntl

    with open(digits_run / "LOCK", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = train(digits_run, "--set=width=16", *SMALL)
    one_error(outcome, f"--workdir={digits_run}", "in use by pid")


@pytest.mark.case(12)
@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"\xff\x1b[2J pid 3\n", "in use by \ufffd[2J pid 3;"),
        (b"", "by another process"),
    ],
)
def test_an_owner_is_told_as_plain_text(written, told, tmp_path):
    import fcntl

    (tmp_path / "LOCK").write_bytes(written)
    with open(tmp_path / "LOCK") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=re.escape(told)):
            RunDirectory.open_for_training(tmp_path)


@pytest.mark.case(11)
def test_a_run_of_another_configuration(digits_run):
    before = contents(digits_run)
    outcome = train(digits_run, "--set=width=32", "--seed=4", *SMALL)
    one_error(outcome, digits_run, "seed is 4, was 0", "settings.width is 32, was 16")
    outcome = train(digits_run, "--set=width=16", *SMALL, model="vae")
    one_error(outcome, "model is 'vae', was 'made'")
    assert contents(digits_run) == before


def test_no_run_there(tmp_path):
    outcome = launch("evaluate", f"--workdir={tmp_path}")
    one_error(outcome, f"--workdir={tmp_path}", "config.json is missing")
    (tmp_path / "config.json").write_text('{"model": "made", "dataset": "digits"}')
    outcome = launch("evaluate", f"--workdir={tmp_path}")
    one_error(outcome, tmp_path / "config.json", "not that of a run")


def test_a_lock_that_leads_elsewhere(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "other").write_text("keep")
    (tmp_path / "run" / "LOCK").symlink_to(tmp_path / "other")
    one_error(train(tmp_path / "run"), f"--workdir={tmp_path / 'run'}", "cannot be")
    assert (tmp_path / "other").read_text() == "keep"


def mount(path, *options):
    """Mounts a tmpfs; returns whether it could."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(path)]
    done = (
        subprocess.run(command, capture_output=True) if shutil.which("mount") else None
    )
    return done is not None and done.returncode == 0


@contextlib.contextmanager
def mounted(path, *options):
    if os.geteuid() != 0 or not mount(path, *options):
        pytest.skip("needs root, and the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.case(9)
def test_a_full_disk(tmp_path, record_property):
    with mounted(tmp_path / "disk", "size=3m") as disk:
        run = disk / "run"
        args = ("--set=width=128", *SMALL)
        parts = ("could not be written", "No space left on device", "free some space")
        error = one_error(train(run, *args), *parts, alone=False)
        assert re.search(r"steps that are safe there: 5", error)
        record_property("figure", "status 2, one line, step 5 safe")
        # Nothing is lost: with space, the same command goes on from there.
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        status, _, err = train(run, *args)
        assert status == 0, err
        assert "step 20, state sha256" in err
    with mounted(tmp_path / "small", "size=4k") as disk:
        one_error(train(disk / "run"), disk / "run", "No space left on device")


@pytest.mark.case(9)
def test_a_limit_on_the_size_of_files(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    args = ("--set=width=256", *SMALL)
    env = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    outcome = train(tmp_path / "run", *args, preexec_fn=limit, env=env)
    one_error(outcome, tmp_path / "run", "File too large", alone=False)


@pytest.mark.case(10)
def test_a_read_only_disk(digits_run, tmp_path, record_property):
    with mounted(tmp_path / "disk", "size=64m") as disk:
        run = shutil.copytree(digits_run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = contents(run)
        args = ("--set=width=16", *SMALL)
        begin = time.monotonic()
        for path in (run, disk / "new"):
            one_error(train(path, *args), f"--workdir={path}", "Read-only file system")
        seconds = (time.monotonic() - begin) / 2
        record_property("figure", f"refused after {seconds:.1f} s, nothing changed")
        outcome = launch("sweep", "--models=made", f"--workdir={disk / 'new'}")
        one_error(outcome, f"--workdir={disk / 'new'}", "Read-only file system")
        outcome = launch("evaluate", f"--workdir={run}")
        one_error(outcome, run / "results", "Read-only file system")
        outcome = launch("sample", f"--workdir={run}", "--num_samples=2")
        one_error(outcome, run / "samples", "Read-only file system")
        assert contents(run) == before


# Checkpoints.


@pytest.mark.case(7)
def test_a_checkpoint_with_a_flipped_bit(ended_run):
    latest, args = ended_run / "checkpoints" / "latest", ("--set=width=16", *SMALL)
    _, _, wanted = train(ended_run, *args)  # has ended: prints the state's digest
    flip_bit(largest_file(latest / "20"))
    status, _, err = train(ended_run, *args)
    assert status == 0, err
    assert "20: damaged" in err
    assert "trying the one before" in err
    assert err.splitlines()[-1] == wanted.splitlines()[-1]
    assert (latest / "corrupt-20").is_dir()


@pytest.mark.case(7)
def test_no_sound_checkpoint(ended_run):
    best = ended_run / "checkpoints" / "best"
    (step,) = best.glob("[0-9]*")
    flip_bit(largest_file(step))
    before = contents(ended_run)
    outcome = launch("evaluate", f"--workdir={ended_run}")
    told = "start its training command again, or give --checkpoint=latest"
    one_error(outcome, "no sound best checkpoint", told, alone=False)
    assert contents(ended_run) == before
    status, _, err = train(ended_run, "--set=width=16", *SMALL)  # as it says
    assert status == 0, err
    assert launch("evaluate", f"--workdir={ended_run}")[0] == 0


def test_evaluating_leaves_a_save_in_progress_alone(ended_run):
    half = ended_run / "checkpoints" / "best" / "30.orbax-checkpoint-tmp"
    half.mkdir()
    process = start("evaluate", f"--workdir={ended_run}")
    assert process.wait(timeout=100) == 0
    assert half.is_dir()
