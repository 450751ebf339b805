"""Where arrays live: a mesh of devices with the axes `data` and `fsdp`.

A batch is split over all devices. Parameters, their average and the optimizer's moments
are whole along `data` and split along `fsdp`; each is gathered where it is used and
dropped again (Rajbhandari et al. 2020, ZeRO; Zhao et al. 2023, FSDP). No model knows of
it: XLA divides the one step.

A mesh may span processes. Each of them reads its own rows of a batch, process 0 alone
writes, and what a host decides is what process 0 decided.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gm.errors import InputError

AXES = ("data", "fsdp")
GATHERED = "gathered"  # what `gather` gave, for the policy of a jax.checkpoint
_SMALL = 1024  # entries below which an array is not worth splitting


def parse_mesh(text: str) -> dict[str, int]:
    """Reads `data:4,fsdp:2` as {axis: how many devices}, in the order of AXES.

    Raises:
      InputError: another axis, one given twice, or no count.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if (
            name not in AXES
            or name in sizes
            or not re.fullmatch(r"0*[1-9]\d{0,8}", size)
        ):
            raise InputError(
                f"--mesh={text}: give data:N, fsdp:M or both, such as data:4,fsdp:2 "
                "(fsdp also splits the parameters)"
            )
        sizes[name] = int(size)
    return {name: sizes[name] for name in AXES if name in sizes}


def make_mesh(sizes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh of the given sizes; None: of all devices along the axis `data`.

    Raises:
      InputError: more devices than there are, or, of several processes, not all.
    """
    sizes = sizes or {"data": jax.device_count()}
    devices, wanted = jax.devices(), math.prod(sizes.values())
    alone = jax.process_count() == 1
    if wanted > len(devices) or not (alone or wanted == len(devices)):
        told = ",".join(f"{name}:{size}" for name, size in sizes.items())
        here = f"{len(devices)} device{'s' if len(devices) > 1 else ''}"
        hint = "" if alone else f" in {jax.process_count()} processes, all of them"
        if devices[0].platform == "cpu":
            flag = f"--xla_force_host_platform_device_count={wanted}"
            hint += f", or set XLA_FLAGS={flag} before the command"
        raise InputError(
            f"--mesh={told}: {wanted} devices, there are {here}; give sizes whose "
            f"product is {len(devices)}{hint}"
        )
    # Auto, not the default Explicit: linen's convolutions do not carry shardings.
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices[:wanted],
    )


def mesh_text(mesh: Mesh) -> str:
    """`data:4,fsdp:2`, as --mesh has it."""
    return ",".join(f"{name}:{size}" for name, size in mesh.shape.items())


def check_batch_size(mesh: Mesh, batch_size: int, flag: str, parts: int = 1) -> None:
    """InputError if a batch, or each of its parts, cannot be split evenly."""
    if batch_size % (mesh.size * parts):
        of = f" times --accumulate={parts}" if parts > 1 else ""
        raise InputError(
            f"--{flag}={batch_size}: give a multiple of the {mesh.size} devices{of}"
        )


# Layouts.


def whole(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split over all devices along one axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def layout(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a training state, or of shapes of one.

    Along `fsdp` the largest axis that divides is split; small arrays are whole.
    """
    parts = mesh.shape.get("fsdp", 1)

    def of(leaf):
        able = [n for n in leaf.shape if n % parts == 0]
        if parts == 1 or math.prod(leaf.shape) < _SMALL or not able:
            return whole(mesh)
        axis = leaf.shape.index(max(able))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(of, tree)


def _put(leaf, sharding):
    """device_put of what every process holds whole, without comparing them."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf  # lies there already
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(_put(data, sharding))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda i: leaf[i])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts every leaf whole on every device."""
    return jax.tree.map(lambda leaf: _put(leaf, whole(mesh)), tree)


def place(mesh: Mesh, tree: Any) -> Any:
    """Puts a state, or parameters, where `layout` says."""
    return jax.tree.map(_put, tree, layout(mesh, tree))


def abstract(mesh: Mesh, shapes: Any) -> Any:
    """Shapes with the shardings of `layout`, to compile for."""

    def of(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, shapes, layout(mesh, shapes))


def initialize(mesh: Mesh, init: Callable[[], Any]) -> Any:
    """What `init` returns, made where `layout` says: no device ever holds all of it."""
    # Jitted: eager initialisation dispatches every operation by itself.
    if mesh.size == 1:
        return replicate(mesh, jax.jit(init)())
    return jax.jit(init, out_shardings=layout(mesh, jax.eval_shape(init)))()


def split(mesh: Mesh, tree: Any, axis: int = 0) -> Any:
    """Splits every leaf, which each process holds whole, along an axis."""
    return jax.tree.map(lambda leaf: _put(leaf, rows(mesh, axis)), tree)


def own_rows(
    mesh: Mesh, size: int, devices: Sequence[jax.Device] | None = None
) -> np.ndarray:
    """Which of the `size` rows of a batch lie on some devices, ascending.

    Args:
      mesh: that the batch is split over.
      size: of the batch.
      devices: None: those of this process.
    """
    places = rows(mesh).devices_indices_map((size,))
    wanted = mesh.local_devices if devices is None else devices
    parts = [np.arange(size)[places[device]] for device in wanted]
    return np.unique(np.concatenate(parts))


def assemble(mesh: Mesh, tree: Any, size: int, axis: int = 0) -> Any:
    """A batch of `size` rows from the rows of `own_rows` in each process."""
    sharding = rows(mesh, axis)

    def of(leaf):
        shape = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return (
        split(mesh, tree, axis) if jax.process_count() == 1 else jax.tree.map(of, tree)
    )


# Within a jitted function; without a mesh of several devices they do nothing.


def _constrain(mesh, tree, shardings):
    if mesh is None or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(mesh))


def gather(mesh: Mesh | None, tree: Any) -> Any:
    """Every leaf whole on every device, under the name GATHERED."""
    if mesh is None or mesh.size == 1:
        return tree
    return checkpoint_name(_constrain(mesh, tree, whole), GATHERED)


def scatter(mesh: Mesh | None, tree: Any) -> Any:
    """Every leaf as `layout` says."""
    return _constrain(mesh, tree, lambda mesh: layout(mesh, tree))


def by_rows(mesh: Mesh | None, tree: Any, axis: int = 0) -> Any:
    """Every leaf split over all devices along an axis."""
    return _constrain(mesh, tree, lambda mesh: rows(mesh, axis))


# Several processes.


def is_primary() -> bool:
    """Whether this is process 0, which alone writes and speaks."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Every leaf in this process's memory; all processes call it together."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def of(leaf):
        there = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        if not (there or leaf.is_fully_replicated):
            leaf = jax.jit(lambda a: a, out_shardings=whole(leaf.sharding.mesh))(leaf)
        return leaf

    # One leaf at a time, since a device has no room for all of them whole.
    return jax.tree.map(lambda leaf: jax.device_get(of(leaf)), tree)


def agree(value: Any) -> Any:
    """Process 0's number, in every process."""
    if jax.process_count() == 1:
        return value
    array = np.atleast_1d(np.asarray(value))
    # As bytes: JAX would round a float64.
    told = multihost_utils.broadcast_one_to_all(array.view(np.uint8))
    return np.asarray(told).view(array.dtype)[0].item()


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
