"""Several devices do what one does: virtual ones, in a process of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import REPO, SMALL, launch, one_error, train

from gm import sharding
from gm.errors import InputError
from gm.model import model_names

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def on_meshes(names, steps):
    """{model: {mesh: what tests/sharded.py found}}."""
    command = [sys.executable, "tests/sharded.py", str(steps), *names]
    env = os.environ | EIGHT | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    assert set(found) == set(names)
    return found


def worst_difference(found):
    """The largest relative difference of bits/dim from those of one device."""
    worst = 0.0
    for mesh, told in found.items():
        one = found["data:1" + mesh.removeprefix(mesh.split()[0])]  # of the same noise
        ratio = np.asarray(told["bpd"]) / np.asarray(one["bpd"])
        worst = max(worst, np.abs(ratio - 1).max())
    return worst


@pytest.mark.case(14)
@pytest.mark.case(16)
@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("made",), 4),
        *(pytest.param((n,), 20, marks=pytest.mark.slow) for n in model_names()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_meshes_train_as_one_device_does(names, steps, record_property):
    worst = {}
    for name, found in on_meshes(names, steps).items():
        worst[name] = worst_difference(found)
        assert worst[name] < 1e-5, name
        one, several = found["data:1"], found["data:4,fsdp:2"]
        np.testing.assert_allclose(one["nats"], several["nats"], rtol=1e-5)
        assert one.get("x") == several.get("x")
        assert one["share"] == 1.0
        assert 0.5 <= several["share"] < 0.9  # not all axes divide by 2
        if "fsdp:8" in found:
            assert found["fsdp:8"]["share"] < several["share"]
            assert found["data:8"]["share"] == 1.0
    told = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    record_property("figure", f"{steps} steps, relative difference at most {told}")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data:4,fsdp:2", {"data": 4, "fsdp": 2}),
        ("fsdp:2,data:4", {"data": 4, "fsdp": 2}),
        ("fsdp:8", {"fsdp": 8}),
    ],
)
def test_mesh_is_read(text, sizes):
    assert list(sharding.parse_mesh(text).items()) == list(sizes.items())


@given(st.text(alphabet="datfsp:,0123456789-. ", max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_mesh_is_read_or_refused(text):
    try:
        sizes = sharding.parse_mesh(text)
    except InputError:
        return
    assert set(sizes) <= set(sharding.AXES)
    assert all(size > 0 for size in sizes.values())


def test_a_mesh_that_cannot_be(tmp_path):
    with pytest.raises(
        InputError, match="--mesh=fsdp:8: 8 devices, there are 1 device"
    ):
        sharding.make_mesh({"fsdp": 8})
    with pytest.raises(InputError, match="--mesh=data:9999"):
        sharding.parse_mesh(f"data:{'9' * 5000}")  # more digits than int() reads
    run = tmp_path / "run"
    outcome = train(run, "--mesh=data:8", "--batch_size=12", env=EIGHT)
    one_error(outcome, "--batch_size=12", "multiple of the 8 devices")
    assert not run.exists()


@pytest.mark.slow
def test_flags_of_meshes_and_processes_that_cannot_be(tmp_path):
    run = tmp_path / "run"
    one_error(train(run, "--mesh=data:8"), "--mesh=data:8: 8 devices", "XLA_FLAGS")
    one_error(train(run, "--mesh=model:2"), "--mesh=model:2", "data:N")
    outcome = train(run, "--coordinator=here", "--process_id=0")
    one_error(outcome, "--coordinator=here", "HOST:PORT")
    outcome = train(run, "--coordinator=here:1", "--process_id=2", "--num_processes=2")
    one_error(outcome, "--process_id=2", "from 0 to N-1")
    one_error(train(run, "--distributed"), "--distributed", "--coordinator")
    outcome = train(run, "--process_id=1")
    one_error(outcome, "--process_id=1", "--coordinator=HOST:PORT too")
    assert not run.exists()


MESH = "--mesh=data:4,fsdp:2"
SETTINGS = ("--set=width=32", "--num_steps=10", *SMALL[1:])


@pytest.fixture(scope="module")
def trained_on_a_mesh(tmp_path_factory):
    """(run, the line with the digest of its state)."""
    run = tmp_path_factory.mktemp("mesh") / "run"
    status, _, err = train(run, *SETTINGS, MESH, env=EIGHT)
    assert status == 0, err
    return run, err.splitlines()[-1]


@pytest.mark.case(15)
def test_a_run_of_eight_devices_goes_on_with_one(trained_on_a_mesh):
    run, told = trained_on_a_mesh
    status, _, err = train(run, *SETTINGS)
    assert status == 0, err
    assert err.splitlines()[-1] == told
    assert told.startswith("step 10, state sha256")


@pytest.mark.slow
@pytest.mark.case(16)
def test_launchers_share_a_mesh(trained_on_a_mesh, tmp_path):
    """A run is evaluated, sampled and compressed on a mesh as on one device."""
    run, nats, files = trained_on_a_mesh[0], {}, {}
    for name, flags, env in (("one", (), {}), ("mesh", (MESH,), EIGHT)):
        status, out, err = launch("evaluate", f"--workdir={run}", *flags, env=env)
        assert status == 0, err
        row = json.loads((run / "results" / "test.json").read_text())
        nats[name] = row["nats"]
        output = tmp_path / f"{name}.png"
        flags = (f"--workdir={run}", f"--output={output}", *flags)
        status, out, err = launch("sample", *flags, "--num_samples=12", env=env)
        assert status == 0, err
        files[name] = output.read_bytes()
    assert nats["one"] == pytest.approx(nats["mesh"], rel=1e-5)
    assert files["one"] == files["mesh"]
    packed = tmp_path / "a.gm"
    flags = (f"--workdir={run}", f"--archive={packed}", "--nobaselines")
    status, out, err = launch("compress", *flags, MESH, env=EIGHT)
    assert status == 0, err
    flags = (*flags, "--decompress", f"--output={tmp_path / 'x.npy'}")
    one_error(launch("compress", *flags), f"made on {MESH[7:]}", f"give {MESH}")
    status, out, err = launch("compress", *flags, MESH, env=EIGHT)
    assert status == 0, err
    assert "397 examples, sha256" in out
