"""Where arrays live: parameters replicated, batches split over the devices."""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gm.errors import InputError


def make_mesh() -> jax.sharding.Mesh:
    """A mesh of all devices along the axis `data`."""
    # Auto, not the default Explicit: linen's convolutions do not carry shardings.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicate(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Puts every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(mesh: jax.sharding.Mesh, tree: Any, axis: int = 0) -> Any:
    """Splits every leaf over the devices along an axis."""
    spec = PartitionSpec(*[None] * axis, "data")
    return jax.device_put(tree, NamedSharding(mesh, spec))


def check_batch_size(mesh: jax.sharding.Mesh, batch_size: int, flag: str) -> None:
    """InputError if the batch cannot be split evenly over the devices."""
    if batch_size % mesh.size:
        raise InputError(
            f"--{flag}={batch_size}: give a multiple of the {mesh.size} devices"
        )
