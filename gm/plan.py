"""What a step needs on a mesh: memory, FLOPs, collectives; nothing is run.

The real step is compiled for as many (virtual) devices as the mesh has. Memory and
collectives are those of the program of the backend that compiles it: another one fuses
otherwise.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gm import sharding
from gm.collectives import Moved, count_collectives
from gm.commands import set_flags
from gm.config import RunConfig, TrainConfig
from gm.errors import InputError
from gm.flops import count_flops
from gm.model import LikelihoodModel, example
from gm.train import init_state, make_optimizer, train_steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration needs on a mesh. Bytes are those of one device."""

    config: TrainConfig
    mesh: str
    num_devices: int
    num_params: int
    params_bytes: float
    average_bytes: float  # of the averaged parameters
    optimizer_bytes: float
    argument_bytes: float  # the state and the batches of a dispatch
    peak_bytes: float
    flops: float  # of a step, over all devices
    unknown_loops: int  # counted once in `flops`
    collectives: dict[str, Moved]  # of a step

    @property
    def working_bytes(self) -> float:
        """Activations, gradients and what is gathered, at the peak."""
        return self.peak_bytes - self.argument_bytes


def _bytes_here(tree: Any) -> float:
    """Bytes of a tree of shapes with shardings that lie on one device."""

    def of(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
            return math.prod(leaf.shape) * leaf.dtype.itemsize
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(map(of, jax.tree.leaves(tree)))


def _batches(model, config, mesh):
    """Shapes of the batches of a dispatch, as they are streamed to the devices."""
    x, cond = jax.eval_shape(lambda: example(model, config.batch_size))
    x = x.update(dtype=jnp.uint8 if model.num_values <= 256 else jnp.int32)

    def of(leaf):
        shape = (config.steps_per_dispatch, *leaf.shape)
        where = sharding.rows(mesh, axis=1)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)

    return jax.tree.map(of, (x, cond))


def _as_given(data, batch):
    return batch


def _state_shapes(model, config, mesh, optimizer):
    """Shapes of the training state, with their shardings."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, config.seed))
    return sharding.abstract(mesh, shapes)


def _room(mesh):
    """Bytes of a device, as many as JAX may take; the devices of a CPU share its memory."""
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", math.inf)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total / len(mesh.local_devices)


def check_state(
    model: LikelihoodModel, config: RunConfig, mesh: jax.sharding.Mesh | None = None
) -> None:
    """InputError if the training state alone is more than a device's memory.

    XLA on a CPU would wait for the memory for ever.

    Args:
      model: what is trained.
      config: of the run; its settings are named.
      mesh: None: all devices along `data`.
    """
    mesh = mesh or sharding.make_mesh()
    optimizer = make_optimizer(config.train)
    needed = _bytes_here(_state_shapes(model, config.train, mesh, optimizer))
    room = _room(mesh)
    if needed > room:
        settings = set_flags(config.settings)
        raise InputError(
            f"{' '.join(settings) or f'--model={config.model}'}: the parameters, their "
            f"average and moments take {needed / 1e9:,.0f} GB of a device's "
            f"{room / 1e9:,.0f} GB; give smaller sizes, or more devices with --mesh=fsdp:N"
        )


def compile_steps(
    model: LikelihoodModel, config: TrainConfig, mesh: jax.sharding.Mesh
) -> tuple[Any, Any, Any]:
    """(traced, compiled, shapes of the state) of a dispatch of training steps."""
    optimizer = make_optimizer(config)
    state = _state_shapes(model, config, mesh, optimizer)
    args = (model, optimizer, config, _as_given, state, None)
    traced = train_steps.trace(*args, _batches(model, config, mesh), mesh=mesh)
    return traced, traced.lower().compile(), state


def peak_bytes(compiled: Any) -> float:
    """The most memory that a compiled program takes on a device, by XLA's account."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def make_plan(
    model: LikelihoodModel, config: TrainConfig, mesh: jax.sharding.Mesh
) -> Plan:
    """Compiles the step of a model for a mesh.

    Raises:
      InputError: a batch that the devices cannot share evenly.
    """
    sharding.check_batch_size(mesh, config.batch_size, "batch_size", config.accumulate)
    traced, compiled, state = compile_steps(model, config, mesh)
    flops, unknown = count_flops(traced.jaxpr.jaxpr)
    steps = config.steps_per_dispatch
    moved = count_collectives(compiled.as_text(), mesh.size)
    return Plan(
        config=config,
        mesh=sharding.mesh_text(mesh),
        num_devices=mesh.size,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        params_bytes=_bytes_here(state.params),
        average_bytes=_bytes_here(state.ema_params),
        optimizer_bytes=_bytes_here(state.opt_state),
        argument_bytes=compiled.memory_analysis().argument_size_in_bytes,
        peak_bytes=peak_bytes(compiled),
        flops=flops / steps,
        unknown_loops=unknown,
        collectives={kind: m.times(1 / steps) for kind, m in moved.items()},
    )


def smaller(plan: Plan) -> Iterator[tuple[str, TrainConfig, dict[str, int]]]:
    """Ways to need less memory, each further than the one before.

    Yields:
      (flags, config, mesh sizes): first the parameters are split over all devices, then
      less is kept for the backward pass, then the batch is taken in more and more parts.
    """
    config, sizes = plan.config, sharding.parse_mesh(plan.mesh)
    flags = []
    if plan.num_devices > 1 and sizes.get("fsdp") != plan.num_devices:
        sizes = {"fsdp": plan.num_devices}
        flags.append(f"--mesh=fsdp:{plan.num_devices}")
        yield " ".join(flags), config, sizes
    if not config.remat:
        config = dataclasses.replace(config, remat=True)
        flags.append("--remat")
        yield " ".join(flags), config, sizes
    parts = config.accumulate
    most = config.batch_size // plan.num_devices
    for more in range(parts + 1, most + 1):
        if most % more == 0:
            config = dataclasses.replace(config, accumulate=more)
            yield " ".join([*flags, f"--accumulate={more}"]), config, sizes


def make_fit(
    model: LikelihoodModel, plan: Plan, limit: float, tries: int = 3
) -> tuple[str, Plan] | None:
    """The first of `smaller` that was compiled and needs at most `limit` bytes.

    Only what may fit by its share of state and activations is compiled; None: nothing
    fits, or none of `tries` did.
    """
    state = plan.argument_bytes
    whole = plan.params_bytes + plan.average_bytes + plan.optimizer_bytes
    for flags, config, sizes in smaller(plan):
        split = sizes.get("fsdp", 1) / sharding.parse_mesh(plan.mesh).get("fsdp", 1)
        held = state - whole + whole / split
        # That remat halves the rest is a guess; compiling decides.
        working = plan.working_bytes * plan.config.accumulate / config.accumulate
        working *= 0.5 if config.remat and not plan.config.remat else 1.0
        if held + working > limit:
            continue
        if tries == 0:
            return None
        tries -= 1
        try:
            found = make_plan(model, config, sharding.make_mesh(sizes))
        except InputError:
            continue
        if found.peak_bytes <= limit:
            return flags, found
    return None
