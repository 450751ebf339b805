"""What `plan` foretells, against hand counts, known programs and measured memory."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from launch import REPO, launch, one_error

import gm
from experiments.models import described
from gm import sharding
from gm.collectives import Moved, count_collectives
from gm.config import TrainConfig
from gm.errors import InputError
from gm.flops import count_flops
from gm.model import load_model
from gm.plan import make_plan, smaller


def flops(function, *args):
    return count_flops(jax.make_jaxpr(function)(*args).jaxpr)


def test_products_are_counted_by_hand():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    once = 2 * 3 * 5 * 7
    assert flops(jnp.dot, a, b) == (once, 0)
    assert flops(jax.jit(lambda a, b: a @ b + 1), a, b) == (once, 0)
    # Backward, two products more; with a checkpoint, the first once again.
    loss = lambda a, b: jnp.sin(a @ b).sum()  # noqa: E731
    assert flops(jax.grad(loss, (0, 1)), a, b) == (3 * once, 0)
    anew = jax.checkpoint(loss, policy=lambda *_, **__: False)
    assert flops(jax.grad(anew, (0, 1)), a, b) == (4 * once, 0)
    batched = jax.vmap(jnp.dot, (0, None))
    assert flops(batched, jnp.ones((4, 3, 5)), b) == (4 * once, 0)


def test_loops_count_as_often_as_they_run():
    a = jnp.ones((5, 5))
    once = 2 * 5**3

    def scanned(a):
        return jax.lax.scan(lambda c, _: (c @ a, None), a, length=11)[0]

    assert flops(scanned, a) == (11 * once, 0)
    assert flops(lambda a: jax.lax.fori_loop(0, 6, lambda i, c: c @ a, a), a)[0] in (
        6 * once,  # a scan, or a loop of unknown length
        once,
    )
    endless = lambda a: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ a, a)  # noqa: E731
    assert flops(endless, a) == (once, 1)
    either = lambda a: jax.lax.cond(a.sum() > 0, lambda a: a @ a @ a, lambda a: a, a)  # noqa: E731
    assert flops(either, a) == (2 * once, 0)


def test_attention_of_a_fused_kernel(monkeypatch):
    """Half of the scores where it is causal; twice as much for the backward pass."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(
        fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000
    )
    q = jnp.ones((2, 64, 4, 32), jnp.bfloat16)
    whole = 4 * 2 * 4 * 64 * 64 * 32

    def attend(q, causal):
        out = jax.nn.dot_product_attention(
            q, q, q, is_causal=causal, implementation="cudnn"
        )
        return out.astype(jnp.float32).sum()

    assert flops(lambda q: attend(q, False), q) == (whole, 0)
    assert flops(lambda q: attend(q, True), q) == (whole / 2, 0)
    assert flops(jax.grad(lambda q: attend(q, True)), q) == (3 * whole / 2, 0)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_convolutions_and_their_gradients(stride, groups):
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 12))

    def conv(x, w):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=names,
            feature_group_count=groups,
        )  # fmt: skip

    forward = 2 * 2 * (8 // stride) ** 2 * 12 * 9 * 4 // groups
    assert flops(conv, x, w) == (forward, 0)
    both = flops(jax.grad(lambda x, w: conv(x, w).sum(), (0, 1)), x, w)[0]
    # The gradients are as dear; at the borders a tap or so more or less.
    assert both == pytest.approx(3 * forward, rel=0.35)


HLO = """
HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ar = f32[8,4]{1,0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  %ag = bf16[16]{0} all-gather(%y), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %both = (f32[2]{0}, s32[3]{0}) all-reduce(%a, %b), replica_groups={}, to_apply=%add
  %none = f32[9]{0} all-reduce(%c), replica_groups={{0},{1}}, to_apply=%add
  %loop = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


@pytest.mark.parametrize(
    ("line", "kind", "payload"),
    [
        ("f32[8]{0} all-reduce-start(%a)", "all-reduce", 32),
        ("(f32[8]{0}, f32[2]{0}) all-reduce-start(%a, %b)", "all-reduce", 40),
        ("(f32[2]{0}, f32[8,2]{1,0}) all-gather-start(%a)", "all-gather", 64),
        (
            "((f32[2], f32[3]), (f32[4], f32[6])) all-gather-start(%a, %b)",
            "all-gather",
            40,
        ),
        (
            "(f32[4], f32[4], u32[], u32[]) collective-permute-start(%a)",
            "collective-permute",
            16,
        ),
    ],
)
def test_collectives_that_are_started_move_their_results(line, kind, payload):
    text = f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  %x = {line}, replica_groups={{}}\n"
    assert count_collectives(text, 4)[kind].payload == payload


def test_collectives_in_loops_are_multiplied():
    found = count_collectives(HLO.replace("\\\n", ""), 8)
    ring = 2 * 7 / 8
    assert found["all-reduce"] == Moved(6, 5 * 128 + 20, ring * (5 * 128 + 20))
    assert found["all-gather"] == Moved(5, 5 * 32, 5 * 16)
    assert set(found) == {"all-reduce", "all-gather"}


def test_plan_of_one_device():
    model = load_model("made").Model(shape=(8, 8, 1), num_values=17, width=32)
    plan = make_plan(model, TrainConfig(batch_size=8), sharding.make_mesh({"data": 1}))
    assert plan.params_bytes == 4 * plan.num_params == plan.average_bytes
    # Two moments and their counts.
    assert 0 <= plan.optimizer_bytes - 8 * plan.num_params < 64
    assert plan.peak_bytes > plan.argument_bytes > 16 * plan.num_params
    assert not plan.collectives
    assert not plan.unknown_loops
    # 2 FLOPs for each weight and example, three times, but for the masked products.
    assert plan.flops == pytest.approx(6 * 8 * plan.num_params, rel=0.2)
    texts = [flags for flags, _, _ in smaller(plan)]
    assert texts[0] == "--remat"
    assert texts[-1] == "--remat --accumulate=8"


@pytest.mark.parametrize(
    ("name", "resolution", "parts"),
    [
        ("digits", -3, "--resolution=-3: give a whole number of pixels from 1"),
        ("solids", 0, "--resolution=0: give a whole number of pixels from 1"),
        ("digits", 12, "--resolution=12: the images have a side of 8 pixels"),
        ("celeb_a", 200, "--resolution=200: the images have a side of 178 pixels"),
        ("pocket_cube", 12, "--resolution=12: pocket_cube has no resolution"),
    ],
)
def test_no_plan_of_a_resolution_that_training_refuses(name, resolution, parts):
    with pytest.raises(InputError, match=parts):
        described(name, resolution)


@pytest.mark.parametrize("name", ["digits", "solids", "pocket_cube"])
def test_a_plan_is_of_the_data_that_training_loads(name):
    loaded, told = gm.load_data(name), described(name)
    assert (told.shape, told.num_values) == (loaded.shape, loaded.num_values)
    kinds = [d.cond and (d.cond.kind, d.cond.size) for d in (told, loaded)]
    assert kinds[0] == kinds[1]


def amounts(out):
    """{line's first words: its first number with a unit} of what `plan` printed."""
    found = re.findall(r"^ *(.+?) {2,} *([\d.]+) (GB|MB|kB|B)\b", out, re.M)
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
    return {name: float(value) * units[unit] for name, value, unit in found}


PLAN = ("--model=made", "--dataset=cifar10", "--set=width=64", "--batch_size=64",
        "--num_steps=3600", "--accelerators=h100,v5e")  # fmt: skip


def plan(mesh):
    status, out, err = launch("plan", *PLAN, f"--mesh={mesh}")
    assert status == 0, err
    assert "NVIDIA H100" in out
    assert "3,600 steps take" in out
    assert "fits (" in out
    return amounts(out)


def test_launcher_plans_for_devices_that_are_not_there():
    found = plan("data:4,fsdp:2")
    assert found["optimizer state"] == pytest.approx(2 * found["parameters"], rel=0.01)
    # Each device gets all that is split from the others, and sends what it has summed.
    assert found["all-gather"] > 1.5 * found["parameters"]
    assert "all-reduce" in found or "reduce-scatter" in found


@pytest.mark.slow
def test_launcher_plans_for_many_devices():
    data, split, many = map(plan, ("data:8", "data:4,fsdp:2", "data:8,fsdp:8"))
    assert split["optimizer state"] == pytest.approx(data["optimizer state"] / 2, 0.01)
    assert many["optimizer state"] == pytest.approx(data["optimizer state"] / 8, 0.02)
    # The gradient of every parameter is summed over the devices, once a step.
    assert data["all-reduce"] == pytest.approx(data["parameters"], rel=0.05)
    one_error(launch("plan", *PLAN, "--mesh=data:512"), "--mesh=data:512", "256")
    one_error(launch("plan", *PLAN, "--accelerators=h10"), "did you mean h100?")
    one_error(launch("plan", "--model=made", "--mfu=nan"), "--mfu=nan")
    outcome = launch("plan", *PLAN, "--mesh=data:7")
    one_error(outcome, "--batch_size=64", "multiple of the 7 devices")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "batch_size", "fields", "tolerance"),
    [
        ("transformer", 16, 8, {"width": 256, "depth": 4, "num_heads": 4}, 0.15),
        ("made", 32, 128, {"width": 2048, "num_mixtures": 10}, 0.15),
        ("tarflow", 32, 64, {"width": 256, "num_blocks": 4, "depth": 2}, 0.15),
        # Convolutions on a CPU take memory that XLA does not account for.
        ("glow", 32, 128, {"width": 128, "depth": 4, "num_scales": 3}, 0.25),
    ],
)
def test_planned_memory_is_what_linux_measures(
    name, side, batch_size, fields, tolerance, record_property
):
    command = [sys.executable, "tests/memory.py", name, str(side), str(batch_size)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)}
    command.append(json.dumps(fields))
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    planned, measured = found["planned"], found["measured"]
    told = f"planned {planned / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"
    record_property("figure", f"{told}: {planned / measured - 1:+.1%}")
    assert planned == pytest.approx(measured, rel=tolerance)
