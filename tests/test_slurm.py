"""A sweep on a real Slurm of three nodes, all on this machine, that lose a node and a job.

Skips where Slurm is not installed: `apt-get install slurm-wlm munge`, as root.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from launch import REPO, launch, start

from experiments.cell import read_state

pytestmark = pytest.mark.slow

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=n[2-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{second}-{last}] CPUs=2
PartitionName=test Nodes={host},n[2-3] Default=YES MaxTime=INFINITE State=UP
"""


def wait(condition, seconds, told):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, told()
        time.sleep(0.2)
    return found


def ask(env, *command):
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.stdout.strip()


def free_ports(count):
    """The first of so many ports in a row that nothing listens to."""
    for first in range(21000, 60000, 10):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", first + i)) for i in range(count)):
                return first
    raise AssertionError("no free ports")


def starting(root, host):
    """The commands of the daemons, in order."""
    munge = ["--force", "--foreground", f"--socket={root}/munge.socket"]
    munge += [f"--{n}-file={root}/munge.{n}" for n in ("key", "log", "pid", "seed")]
    yield ["munged", *munge]
    yield ["slurmctld", "-D"]
    for node in (host, "n2", "n3"):
        yield ["slurmd", "-D", "-N", node]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """(environment, {command: process}) of a Slurm with this machine, n2 and n3 as nodes.

    The first has a name that resolves, by which processes of a job find it.
    """
    needed = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
    os.environ["PATH"] += ":/usr/sbin"
    lacking = [name for name in needed if not shutil.which(name)]
    if lacking or os.geteuid():
        why = f"{', '.join(lacking)} not installed" if lacking else "needs root"
        pytest.skip(f"{why}: apt-get install slurm-wlm munge, and run as root")
    pytest.importorskip("submitit")
    root = tmp_path_factory.mktemp("slurm")
    host, first = socket.gethostname().split(".")[0], free_ports(4)
    ports = {"port": first, "first": first + 1, "second": first + 2, "last": first + 3}
    conf = root / "slurm.conf"
    conf.write_text(CONF.format(host=host, root=root, **ports))
    (root / "state").mkdir()
    (root / "munge.key").write_bytes(os.urandom(1024))
    (root / "munge.key").chmod(0o400)
    root.chmod(0o755)
    env = os.environ | {"SLURM_CONF": str(conf)}
    daemons = {}
    try:
        for command in starting(root, host):
            log = open(root / f"{command[0]}.out", "a")
            daemons[" ".join(command[:1] + command[3:])] = subprocess.Popen(
                command, env=env, stdout=log, stderr=log
            )
            time.sleep(0.5)

        def ready():
            return ask(env, "sinfo", "-h", "-o", "%D %t") == "3 idle"

        wait(ready, 60, lambda: (root / "slurmctld.log").read_text()[-3000:])
        yield env, {node: daemons[f"slurmd {node}"] for node in (host, "n2", "n3")}
    finally:
        for process in reversed(daemons.values()):
            process.kill()
            process.wait()


def environment(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        parts = file.read().decode(errors="ignore").split("\0")
    return dict(part.split("=", 1) for part in parts if "=" in part)


def parents(pid):
    """A process of a job and all above it up to Slurm's step daemon."""
    while pid > 1:
        with open(f"/proc/{pid}/stat") as file:
            name, rest = re.fullmatch(
                r"\d+ \((.*)\) (.*)", file.read().strip()
            ).groups()
        if name.startswith(("slurmd", "pytest")):
            return
        yield pid
        pid = int(rest.split()[1])


def steps_of(job):
    """Step daemons of a job on this machine, by their command line."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline") as file:
                    line = file.read()
            except OSError:
                continue
            if line.startswith(f"slurmstepd: [{job}."):
                yield int(entry)


def owner(cell):
    return int((cell / "LOCK").read_text().split()[1])


def last_digest(cell):
    text = (cell / "log.txt").read_text()
    return re.findall(r"state sha256 (\w{64})", text)[-1]


@pytest.mark.case(18)
@pytest.mark.case(19)
def test_a_sweep_survives_a_lost_node_and_a_requeued_job(
    slurm, tmp_path, record_property
):
    env, nodes = slurm
    flags = ("--models=made", "--set=made.width=8,12,16", "--num_steps=12000",
             "--steps_per_dispatch=20", "--save_every=100", "--valid_every=6000",
             "--num_valid_examples=50", "--batch_size=16", "--log_every=1000")  # fmt: skip
    root = tmp_path / "slurm"
    given = ("--launcher=slurm", "--jobs=3", "--slurm=cpus-per-task=2")
    process = start("sweep", *flags, *given, f"--workdir={root}", env=env)
    cells = [root / f"digits_made_width={w}_s0" for w in (8, 12, 16)]

    def training():
        assert process.poll() is None, process.communicate()
        latest = [cell / "checkpoints" / "latest" for cell in cells]
        return all(p.is_dir() and any(p.glob("[0-9]*")) for p in latest)

    wait(training, 240, lambda: ask(env, "squeue"))
    status, out, _ = launch("sweep", "--status", f"--workdir={root}", env=env)
    assert status == 0
    assert out.count("running") >= 3
    jobs = {}
    for cell in cells:
        about = environment(owner(cell))
        jobs[about["SLURMD_NODENAME"]] = (cell, about["SLURM_JOB_ID"])
    assert set(jobs) == set(nodes)
    print(ask(env, "sinfo", "-N"), ask(env, "squeue"), out, sep="\n")
    # The machine n2 is lost, with all that ran on it.
    lost, job = jobs["n2"]
    nodes["n2"].kill()
    nodes["n2"].wait()
    for pid in {*parents(owner(lost)), *steps_of(job)}:
        os.kill(pid, signal.SIGKILL)
    # A job of n3 is taken away by the administrator.
    requeued, job = jobs["n3"]
    ask(env, "scontrol", "requeue", job)
    out, err = process.communicate(timeout=900)
    print(out)
    assert process.returncode == 0, out + err
    assert [read_state(cell).word for cell in cells] == ["done"] * 3
    local = tmp_path / "local"
    status, out, err = launch("sweep", *flags, f"--workdir={local}")
    assert status == 0, out + err
    for cell in cells:
        assert last_digest(cell) == last_digest(local / cell.name)
    told = f"n2 lost with {lost.name}, {requeued.name} requeued on n3"
    print(told)
    record_property("figure", f"{told}: 3 cells done, digests those of a local sweep")


def test_a_cancelled_cell_is_told_as_failed(slurm, tmp_path):
    env, _ = slurm
    flags = ("--models=made", "--set=made.width=8", "--num_steps=100000",
             "--launcher=slurm", f"--workdir={tmp_path}")  # fmt: skip
    process = start("sweep", *flags, env=env)
    cell = tmp_path / "digits_made_width=8_s0"
    wait((cell / "metrics.jsonl").exists, 240, lambda: ask(env, "squeue"))
    about = environment(owner(cell))
    ask(env, "scancel", about["SLURM_JOB_ID"])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert "left Slurm's queue unfinished" in " ".join(out.split())
    assert read_state(cell).word == "stopped"  # and saved


@pytest.mark.case(15)
def test_srun_starts_several_processes_of_one_run(slurm, tmp_path):
    env, nodes = slurm
    run = tmp_path / "run"
    host = next(iter(nodes))
    command = ["srun", "-n2", "--cpus-per-task=1", f"-w{host}", sys.executable]
    command += ["-m", "experiments.train", "--distributed", "--model=made"]
    command += ["--dataset=digits", "--num_steps=20", f"--workdir={run}"]
    env = env | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=REPO, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("state sha256") == 1
