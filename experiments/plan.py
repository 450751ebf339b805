r"""What a training run needs on a mesh, before there is one: nothing is run or read.

  python -m experiments.plan --preset=cifar10/vdm --mesh=data:8
  python -m experiments.plan --model=transformer --dataset=cifar10 --mesh=data:32,fsdp:8 \
      --batch_size=256 --accelerators=h100,v5e

The real step is compiled by XLA for as many virtual CPU devices. Memory is what XLA:CPU
says of that program; an accelerator's compiler lays it out otherwise.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from absl import flags

from experiments import launcher
from gm.errors import InputError, did_you_mean

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "name of a model, or import path of your own file")
flags.DEFINE_string("dataset", None, "name of a data set")
flags.DEFINE_string("preset", None, "flags of experiments/presets, such as cifar10/vdm")
flags.DEFINE_float("mfu", 0.4, "share of the peak FLOP/s that is assumed to be reached")
flags.DEFINE_list("accelerators", [], "of experiments/accelerators.json; empty: all")
flags.DEFINE_bool(
    "fit", True, "where it does not fit, look for flags with which it does"
)
launcher.define_run_flags()
launcher.define_train_flags()
launcher.define_mesh_flags()
flags.adopt_module_key_flags(launcher)

MAX_DEVICES = 256


def accelerators() -> dict[str, dict[str, Any]]:
    """Those asked for, by name.

    Raises:
      InputError: an unknown name.
    """
    path = Path(__file__).with_name("accelerators.json")
    table = json.loads(path.read_text())["accelerators"]
    for name in FLAGS.accelerators:
        if name not in table:
            raise InputError(
                f"--accelerators={name}: unknown{did_you_mean(name, table)} "
                f"(one of {', '.join(table)})"
            )
    return {name: table[name] for name in FLAGS.accelerators or table}


def seconds_per_step(plan: Any, chip: dict[str, Any], precision: str) -> float:
    """Of computing alone, at --mfu of the peak."""
    peak = chip["flops"][precision]
    return plan.flops / plan.num_devices / (peak * FLAGS.mfu)


def sending_seconds(plan: Any, chip: dict[str, Any]) -> float:
    """Of a step's collectives, on rings at the full speed of the links."""
    return sum(moved.wire for moved in plan.collectives.values()) / chip["link"]


def _virtual_devices(text: str | None) -> dict[str, int]:
    """The sizes of the mesh; so many CPU devices there will be once JAX starts."""
    # parse_mesh imports JAX, which counts its devices only when it first needs them.
    from gm.sharding import parse_mesh

    sizes = parse_mesh(text or "data:1")
    count = math.prod(sizes.values())
    if count > MAX_DEVICES:
        raise InputError(f"--mesh={text}: {count} devices; give {MAX_DEVICES} at most")
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    return sizes


def _bytes(number: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


def _seconds(number: float) -> str:
    return f"{number:.3g} s" if number >= 1 else f"{1e3 * number:.3g} ms"


def _print_plan(plan: Any) -> None:
    """What does not depend on the accelerator."""
    config = plan.config
    print(
        f"{plan.num_params:,} parameters; mesh {plan.mesh}, batches of "
        f"{config.batch_size} ({config.batch_size // plan.num_devices} per device"
        f"{f' in {config.accumulate} parts' if config.accumulate > 1 else ''})"
    )
    lines = {
        "parameters": plan.params_bytes,
        "averaged parameters": plan.average_bytes,
        "optimizer state": plan.optimizer_bytes,
        "activations, gradients": plan.working_bytes,
        "peak": plan.peak_bytes,
    }
    print("memory per device:")
    for name, value in lines.items():
        print(f"  {name:<24}{_bytes(value):>10}")
    note = ""
    if plan.unknown_loops:
        note = f" (and {plan.unknown_loops} loops of unknown length, counted once)"
    each = plan.flops / plan.num_devices
    print(f"FLOPs per step: {plan.flops:.4g}, {each:.4g} per device{note}")
    print("collectives per step and device:" + ("" if plan.collectives else " none"))
    for kind, moved in sorted(plan.collectives.items()):
        print(
            f"  {kind:<24}{_bytes(moved.payload):>10} in {moved.operations:g} "
            f"operations, {_bytes(moved.wire)} sent on a ring"
        )


def _line(plan: Any, chip: dict[str, Any], precision: str) -> str:
    """Time and cost on one accelerator, and whether it fits."""
    computing, sending = seconds_per_step(plan, chip, precision), 0.0
    sending = sending_seconds(plan, chip)
    steps = plan.config.num_steps
    # Between what overlaps in full and what does not at all.
    low, high = max(computing, sending), computing + sending
    hours = [t * steps * plan.num_devices / 3600 for t in (low, high)]
    share = plan.peak_bytes / chip["bytes"]
    fits = f"fits ({share:.1%} of {_bytes(chip['bytes'])})"
    if share > 1:
        fits = f"DOES NOT FIT: {share:.1f} times its {_bytes(chip['bytes'])}"
    mark = "" if chip["checked"] else "?"
    return (
        f"{chip['name']}{mark}: {_seconds(computing)} computing, {_seconds(sending)} "
        f"sending; {steps:,} steps take {hours[0]:,.3g} to {hours[1]:,.3g} device-hours; "
        f"{fits}"
    )


def _print_accelerators(plan: Any, model: Any, precision: str) -> None:
    """Time per step, device-hours, and flags that make fit what does not."""
    from gm.plan import make_fit

    print(
        f"at {FLAGS.mfu:.0%} of the peak in {precision} "
        "(?: specifications not checked at their source):"
    )
    found: dict[float, Any] = {}
    for chip in accelerators().values():
        print(f"  {_line(plan, chip, precision)}", flush=True)
        size = chip["bytes"]
        if plan.peak_bytes <= size or not FLAGS.fit:
            continue
        if size not in found:
            found[size] = make_fit(model, plan, size)
        if found[size] is None:
            print(
                "    no flags found with which it fits: more devices, smaller batches"
            )
        else:
            given, fitting = found[size]
            print(f"    with {given}: {_bytes(fitting.peak_bytes)}, compiled to check")


def main(argv: list[str]) -> None:
    """Compiles, counts and prints."""
    launcher.refuse_arguments(argv)
    if not 0 < FLAGS.mfu <= 1:
        raise InputError(f"--mfu={FLAGS.mfu}: give a share above 0, 1 at most")
    accelerators()
    if FLAGS.preset:
        from experiments import presets

        launcher.apply_preset(presets.find(FLAGS.preset)["flags"])
    os.environ["JAX_PLATFORMS"] = "cpu"
    sizes = _virtual_devices(FLAGS.mesh)
    config = launcher.run_config("model", "dataset")

    from experiments.models import described
    from gm import sharding
    from gm.model import build
    from gm.plan import make_plan

    model = build(
        config.model,
        described(config.dataset, config.resolution, config.data_dir),
        config.settings,
        conditional=config.conditional,
        precision=config.precision,
    )
    plan = make_plan(model, config.train, sharding.make_mesh(sizes))
    _print_plan(plan)
    _print_accelerators(plan, model, config.precision)


if __name__ == "__main__":
    launcher.run(main)
