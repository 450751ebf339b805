"""A run that is killed and started again ends where one that was not would have."""

import json
import random
import re
import shutil
import signal
import time

import pytest
from launch import ENV, flip_bit, launch, one_error, start

ROWS = "metrics.jsonl"


def command(model, run, *settings, steps=120):
    """Arguments of `train` that save and validate often."""
    return (
        f"--model={model}",
        "--dataset=digits",
        f"--workdir={run}",
        f"--num_steps={steps}",
        "--batch_size=16",
        "--steps_per_dispatch=5",
        "--log_every=5",
        "--valid_every=20",
        "--num_valid_examples=50",
        "--save_every=5",
        *[f"--set={s}" for s in settings],
    )


def rows(run):
    """Rows of metrics.jsonl without what depends on the clock."""
    lines = (run / ROWS).read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in parsed]


def digest(err):
    """The digest of the final state."""
    return re.findall(r"^step (\d+), state sha256 (\w{64})$", err, re.M)[-1]


def finish(args):
    """Runs to the end; returns the digest."""
    status, _, err = launch("train", *args)
    assert status == 0, err
    return digest(err)


def wait_for(process, condition, seconds=120):
    """Waits until the condition holds; False if the process ended before."""
    limit = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit
        time.sleep(0.002)
    return True


def saves(run):
    """Names under latest/: steps, and N.orbax-checkpoint-tmp while one is written."""
    latest = run / "checkpoints" / "latest"
    return {p.name for p in latest.iterdir()} if latest.is_dir() else set()


def kill_at(args, run, number, generator):
    """Starts training and kills it; every other time while a checkpoint is written.

    Returns whether a half-written checkpoint was seen just before the kill.
    """
    before = {n for n in saves(run) if n.isdecimal()}
    process = start("train", *args)
    wanted = generator.randint(1, 3)  # further checkpoints first

    def in_time():
        names = saves(run)
        new = len({n for n in names if n.isdecimal()} - before)
        half = any(not n.isdecimal() for n in names)
        return new >= wanted and (half or number % 2 == 0)

    alive = wait_for(process, in_time)
    if number % 2 == 0:
        time.sleep(generator.uniform(0, 0.05))
    half = any(not n.isdecimal() for n in saves(run))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL or not alive
    process.stdout.close(), process.stderr.close()
    return half


def check_kills(tmp_path, model, *settings, kills=5, steps=120, seed=0):
    """Kills a run several times and compares it with an uninterrupted one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = finish(command(model, whole, *settings, steps=steps))
    args = command(model, killed, *settings, steps=steps)
    generator = random.Random(seed)
    half = [kill_at(args, killed, i, generator) for i in range(kills)]
    assert any(half)
    told = f"{model}: {kills} kills, {sum(half)} in a save"
    assert finish(args) == wanted
    assert rows(killed) == rows(whole)
    assert [r["step"] for r in rows(whole)] == list(range(5, steps + 1, 5))
    best = [run / "checkpoints" / "best" for run in (whole, killed)]
    assert len({tuple(p.name for p in b.iterdir()) for b in best}) == 1
    assert not any("tmp" in name for name in saves(killed))
    return f"{told}; {len(rows(whole))} rows and the digest equal"


@pytest.mark.case(2)
def test_killed_five_times(tmp_path, record_property):
    record_property("figure", check_kills(tmp_path, "made", "width=16"))


@pytest.mark.case(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("made", ("width=32", "dropout_rate=0.2")),
        ("transformer", ("width=24", "num_heads=2", "depth=1")),
        ("realnvp", ("width=8", "depth=1")),
        ("vae", ("width=8", "num_latents=4")),
    ],
)
def test_every_model_killed_five_times(model, settings, tmp_path, record_property):
    record_property("figure", check_kills(tmp_path, model, *settings, seed=1))


@pytest.mark.case(22)
@pytest.mark.parametrize(
    ("model", "settings"),
    [("transformer", ("width=24", "depth=1")), ("pixelcnnpp", ("width=8",))],
)
def test_on_a_gpu(model, settings, tmp_path, monkeypatch, record_property):
    """Deterministic kernels give the same state to the same seed, killed or not."""
    if not shutil.which("nvidia-smi"):
        pytest.skip("no GPU here: nvidia-smi was not found")
    monkeypatch.setitem(ENV, "JAX_PLATFORMS", "cuda")
    monkeypatch.setitem(ENV, "XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    monkeypatch.setitem(ENV, "XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    told = check_kills(tmp_path, model, *settings, kills=2, steps=60, seed=2)
    record_property("figure", told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(directory, digest) of an uninterrupted run; do not change it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, finish(command("made", run, "width=16"))


@pytest.mark.case(4)
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 83),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop(number, status, whole, tmp_path, record_property):
    run = tmp_path / "run"
    args = command("made", run, "width=16")
    process = start("train", *args)
    assert wait_for(process, lambda: "5" in saves(run))
    begin = time.monotonic()
    process.send_signal(number)
    process.send_signal(number)  # twice is as good as once
    _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - begin
    assert process.returncode == status, err
    assert "stopped and saved" in err
    assert "Traceback" not in err
    step = int(digest(err)[0])
    assert 5 <= step < 120
    assert str(step) in saves(run)
    assert rows(run)[-1]["step"] == step  # nothing is lost
    record_property("figure", f"status {status}, step {step} saved, {seconds:.1f} s")
    assert finish(args) == whole[1]
    assert rows(run) == rows(whole[0])


@pytest.mark.case(12)
def test_the_lock_is_freed_by_a_kill(whole, tmp_path, record_property):
    run = tmp_path / "run"
    args = command("made", run, "width=16")
    process = start("train", *args)
    assert wait_for(process, lambda: "5" in saves(run))
    process.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    begin = time.monotonic()
    second = launch("train", *args)
    seconds = time.monotonic() - begin
    process.send_signal(signal.SIGKILL)
    one_error(second, f"in use by pid {process.pid}")
    process.communicate()
    assert finish(args) == whole[1]
    record_property("figure", f"the second refused after {seconds:.1f} s")


@pytest.mark.case(8)
def test_what_lies_about_in_a_run_directory(whole, tmp_path):
    """A torn last line, an empty step, a symlinked one, a damaged one, all at once."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    latest = run / "checkpoints" / "latest"
    lines = (run / ROWS).read_text().splitlines(keepends=True)
    (run / ROWS).write_text("".join(lines) + lines[-1][:20])
    (latest / "130").mkdir()
    (latest / "140").symlink_to("/etc")
    for file in (latest / "120" / "meta").iterdir():
        flip_bit(file)
    status, _, err = launch("train", *command("made", run, "width=16"))
    assert status == 0, err
    assert digest(err) == whole[1]
    assert rows(run) == rows(whole[0])
    for step in (120, 130, 140):
        assert f"{step}: damaged" in err
        assert (latest / f"corrupt-{step}").exists()
    assert (latest / "corrupt-140").is_symlink()
