"""What flows share: an invertible map to a standard normal, and dequantisation.

log P(x) = log E_u[p_Y(y)] + log_volume, with log p_Y(y) = log N(z; 0, I) + log|dz/dy| and
y the dequantised x. One draw of u gives the log of an unbiased estimate of P(x).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gm.likelihood import (
    cell_log_volume,
    dequantize,
    normal_log_prob,
    quantize,
    sum_dims,
)
from gm.model import LikelihoodModel
from gm.spec import Estimate


class FlowModel(LikelihoodModel):
    """Base of models with `forward(y) -> (z, log_det)` and `inverse(z) -> y`."""

    estimate: ClassVar[Estimate] = Estimate.WEIGHT
    family: ClassVar[str] = "flow"

    def forward(
        self, y: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Y [B, *shape] in [-1, 1) -> (z [B, D], log_det [B] of dz/dy), float32."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def inverse(self, z: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Z [B, D] -> y [B, *shape]."""
        raise TypeError(f"{type(self).__name__} defines no inverse")

    def log_weight(
        self,
        x: jax.Array,
        y: jax.Array,
        cond: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log p_Y(y) + log volume [B], for y in the cell of x, and its terms."""
        del x  # y says which cell
        z, log_det = self.forward(y, cond, train=train)
        log_pz = sum_dims(normal_log_prob(z))
        log_volume = cell_log_volume(y, self.num_values)
        terms = {"base": log_pz, "log_det": log_det, "volume": log_volume}
        return log_pz + log_det + log_volume, terms

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log of an unbiased estimate of P(x), [B]."""
        y, _ = dequantize(self.make_rng("sample"), x, self.num_values)
        return self.log_weight(x, y, cond, train=train)

    def sample_joint(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (x, y): y from the flow, x its integer cell."""
        key = self.make_rng("sample")
        z = temperature * jax.random.normal(key, (num_samples, self.num_dims))
        y = self.inverse(z, cond)
        return quantize(y, self.num_values).astype(jnp.int32), y

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws z ~ N(0, temperature^2 I), inverts, and takes the integer cell."""
        return self.sample_joint(num_samples, cond, temperature=temperature)[0]


def affine(y: np.ndarray, log_scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Y -> z = y exp(log_scale) + shift, elementwise."""
    return y * np.exp(log_scale) + shift


def affine_inverse(
    z: np.ndarray, log_scale: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """The inverse of `affine`."""
    return (z - shift) * np.exp(-log_scale)


def affine_slope(y: np.ndarray, log_scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """dz/dy of `affine`."""
    return np.exp(log_scale)


@dataclasses.dataclass(frozen=True)
class CodingLayer:
    """A layer as the codec takes it: elementwise on some entries, given the others.

    A flow that can be a codec has `coding_layers()`, these in the order of `forward`, on
    points [B, D] whose entries keep their places, and `coding_map(p)`: where the first
    map of all takes the quantiles p in [0, 1] of the data's range [-1, 1), in numpy.
    """

    active: np.ndarray  # bool [D]: the entries that change
    context: Callable[..., Any]
    """(bound module, h [B, D], cond) -> the layer's parameters, float32 [B, D] each. Of
    h it sees only entries that are not active; the others are 0."""
    forward: Callable[..., np.ndarray] = affine
    """(y, *parameters) -> z, float64, elementwise, as are the following."""
    inverse: Callable[..., np.ndarray] = affine_inverse
    slope: Callable[..., np.ndarray] = affine_slope  # dz/dy > 0, of y

    @property
    def is_affine(self) -> bool:
        """Whether z = y exp(log_scale) + shift, the parameters being these two."""
        return self.forward is affine
