"""Several processes that share a run, as several machines do; gloo is their network."""

import json
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from launch import launch, start
from test_resume import command, digest, finish, rows, saves, wait_for

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def group(launcher, args, processes, devices):
    """Starts processes with so many virtual devices each."""
    flags = (f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}")
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    if processes == 1:
        return [start(launcher, *args, env=env)]
    return [
        start(launcher, *args, *flags, f"--process_id={number}", env=env)
        for number in range(processes)
    ]


def outcome(processes, timeout=300):
    """(exit statuses, stderr of each)."""
    try:
        errors = [p.communicate(timeout=timeout)[1] for p in processes]
    finally:
        for process in processes:
            process.kill()  # where they take too long; else they have ended
    return [p.returncode for p in processes], errors


def train_on(args, processes, devices):
    """Trains to the end; returns the digest that process 0 tells, which alone speaks."""
    statuses, errors = outcome(group("train", args, processes, devices))
    assert statuses == [0] * processes, errors
    assert not any("state sha256" in err for err in errors[1:])
    return digest(errors[0])


MADE = ("width=32",)


def elastic(run, steps):
    return (
        *command("made", run, *MADE, steps=steps),
        "--schedule=constant",
        "--warmup_steps=5",  # of all lengths: of 100 there would be as many as steps
        "--mesh=data:4,fsdp:2",
    )


def other_mesh(args, devices):
    mesh = f"--mesh=data:{devices // 2},fsdp:2" if devices > 1 else "--mesh=data:1"
    return (*args[:-1], mesh)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(rows, digest) of 20 steps on 2 processes with 4 devices each."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    told = train_on(elastic(run, 20), 2, 4)
    return rows(run), told


@pytest.mark.case(15)
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (1, 1), (4, 1), (2, 4)])
def test_another_mesh_goes_on(processes, devices, unbroken, tmp_path, record_property):
    """2x4, then another, then 2x4 again."""
    run = tmp_path / "run"
    begun = train_on(elastic(run, 10), 2, 4)
    count = processes * devices
    args = other_mesh(elastic(run, 10), count)
    assert train_on(args, processes, devices) == begun  # the same arrays there
    told = train_on(other_mesh(elastic(run, 20), count), processes, devices)
    back = train_on(elastic(run, 20), 2, 4)
    assert back == told  # and the same arrays back
    wanted, found = unbroken[0], rows(run)
    assert [r["step"] for r in found] == [r["step"] for r in wanted]
    worst = max(
        abs(a[name] / b[name] - 1)
        for a, b in zip(found, wanted, strict=True)
        for name in ("train/bpd", "valid/bpd")
        if name in b
    )
    assert worst < 1e-5
    if (processes, devices) == (2, 4):
        assert told == unbroken[1]
    figure = (
        f"2x4 -> {processes}x{devices} -> 2x4: arrays equal, loss within {worst:.1e}"
    )
    record_property("figure", figure)


@pytest.mark.case(5)
def test_all_stop_where_one_is_asked_to(tmp_path, record_property):
    run = tmp_path / "run"
    args = command("made", run, *MADE, steps=4000)
    processes = group("train", args, 2, 1)
    assert wait_for(processes[0], lambda: "5" in saves(run))
    begin = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    statuses, errors = outcome(processes)
    seconds = time.monotonic() - begin
    assert statuses == [83, 83], errors
    step = int(digest(errors[0])[0])
    assert str(step) in saves(run)
    assert rows(run)[-1]["step"] == step
    record_property("figure", f"both ended with 83, step {step}, {seconds:.1f} s")


@pytest.mark.case(6)
@pytest.mark.parametrize("killed", [0, 1])
def test_none_hangs_where_one_is_lost(killed, tmp_path, record_property):
    run = tmp_path / "run"
    args = command("made", run, *MADE, steps=40000)
    processes = group("train", args, 2, 1)
    assert wait_for(processes[0], lambda: "5" in saves(run))
    begin = time.monotonic()
    processes[killed].send_signal(signal.SIGKILL)
    other = processes[1 - killed]
    try:
        other.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        other.kill()
        raise
    finally:
        processes[killed].communicate()
    seconds = time.monotonic() - begin
    assert other.returncode != 0
    told = f"the other ended with {other.returncode} after {seconds:.1f} s"
    record_property("figure", told)


@pytest.mark.case(2)
def test_killed_together_and_started_again(tmp_path):
    """Two processes, both killed: the run ends as the unbroken one of two does."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = train_on(command("made", whole, *MADE, steps=60), 2, 2)
    args = command("made", killed, *MADE, steps=60)
    processes = group("train", args, 2, 2)
    assert wait_for(processes[0], lambda: "10" in saves(killed))
    for process in processes:
        process.send_signal(signal.SIGKILL)
    outcome(processes)
    assert train_on(args, 2, 2) == wanted
    assert rows(killed) == rows(whole)


@pytest.mark.case(14)
def test_processes_read_their_rows_alone(tmp_path):
    """One process of 8 devices, two of 4: the same numbers up to rounding."""
    found = {}
    for processes in (1, 2):
        run = tmp_path / str(processes)
        train_on(command("made", run, *MADE, steps=20), processes, 8 // processes)
        found[processes] = [r["train/bpd"] for r in rows(run)]
    np.testing.assert_allclose(found[1], found[2], rtol=1e-5)


@pytest.mark.case(23)
def test_evaluation_is_shared(tmp_path):
    run = tmp_path / "run"
    finish(command("vae", run, "width=8", "num_latents=4", steps=20))
    nats = []
    for processes in (1, 2):
        statuses, errors = outcome(
            group("evaluate", (f"--workdir={run}",), processes, 2)
        )
        assert statuses == [0] * processes, errors
        nats.append(json.loads((run / "results" / "test.json").read_text())["nats"])
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)
    status, _, err = launch("evaluate", f"--workdir={run}")
    assert status == 0, err
    assert re.search(r"\d", err) is None  # process 0 left nothing half-written
