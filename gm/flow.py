"""What flows share: an invertible map to a base density, dequantisation, scales.

log P(x) = log E_u[p_Y(y)] + log_volume, with log p_Y(y) = log N(z; 0, I) + log|dz/dy| and
y the dequantised x. One draw of u gives the log of an unbiased estimate of P(x). For u from
a learned q(u|x), -log q(u|x) is added: gm/nn/dequantization.py.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logit, ndtri

from gm.errors import InputError
from gm.likelihood import (
    cell_log_volume,
    dequantize,
    normal_log_prob,
    quantize,
    sum_dims,
    within_cell,
)
from gm.model import LikelihoodModel
from gm.nn.convolution import depth_to_space, space_to_depth
from gm.nn.dequantization import VariationalDequantizer
from gm.spec import Estimate


class FlowModel(LikelihoodModel):
    """Base of models with `forward(y) -> (z, log_det)` and `inverse(z) -> y`."""

    dequantizer: str = "uniform"  # or "variational": noise from a learned q(u|x)

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

    def log_base(self, z: jax.Array) -> jax.Array:
        """Log density of the base at z [B, D], [B]: of a standard normal."""
        return sum_dims(normal_log_prob(z))

    def sample_base(self, key: jax.Array, num_samples: int) -> jax.Array:
        """Draws z [num_samples, D] from the base, whose mean is 0."""
        return jax.random.normal(key, (num_samples, self.num_dims))

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
        log_pz = self.log_base(z)
        log_volume = cell_log_volume(y, self.num_values)
        terms = {"base": log_pz, "log_det": log_det, "volume": log_volume}
        return log_pz + log_det + log_volume, terms

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log of an unbiased estimate of P(x), [B]."""
        key = self.make_rng("sample")
        if self.dequantizer == "uniform":
            y, _ = dequantize(key, x, self.num_values)
            return self.log_weight(x, y, cond, train=train)
        u, log_qu_x = self._learned_noise(key, x, cond, train)
        y = within_cell(x, u, self.num_values)
        log_px, terms = self.log_weight(x, y, cond, train=train)
        return log_px - log_qu_x, terms | {"dequantizer": -log_qu_x}

    @nn.nowrap
    def make_dequantizer(self) -> nn.Module:
        """The module of q(u|x): (key, x, cond, train) -> (u, log q(u|x) [B])."""
        return VariationalDequantizer(self.cond, self.num_values, dtype=self.dtype)

    @nn.compact  # so that a model's own `setup` need not know of it
    def _learned_noise(self, key, x, cond, train):
        if self.dequantizer != "variational":
            raise InputError(
                f"--set=dequantizer={self.dequantizer}: unknown (uniform or variational)"
            )
        return self.make_dequantizer()(key, x, cond, train)

    def sample_joint(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (x, y): y from the flow, x its integer cell."""
        key = self.make_rng("sample")
        z = temperature * self.sample_base(key, num_samples)
        y = self.inverse(z, cond)
        return quantize(y, self.num_values).astype(jnp.int32), y

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws z, times the temperature, inverts, and takes the integer cell."""
        return self.sample_joint(num_samples, cond, temperature=temperature)[0]


_MARGIN = 1e-6  # of the quantiles, at either end: beyond it h would be infinite
_LOG_SLOPE = math.log((1 - 2 * _MARGIN) / 2)


def _inside(p):
    """Quantiles p in [0, 1] of the data's range, squeezed off both ends."""
    return _MARGIN + (1 - 2 * _MARGIN) * p


def _place(centred):
    """2 p - 1 -> y in [-1, 1]: at an end where a sample lies beyond the data's range."""
    return jnp.clip(centred / (1 - 2 * _MARGIN), -1, 1)


def to_normal(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The normal quantile of y in [-1, 1), and its log-slope, elementwise.

    It maps the cube onto [-4.75, 4.75]^D, beyond which a standard normal has 2e-6 of its
    mass in each direction: that is lost. (Clipping y instead would give the ends of the
    range a density that the map there does not have, and so invent mass.)
    """
    h = jax.scipy.special.ndtri(_inside((y + 1) / 2))
    return h, -normal_log_prob(h) + _LOG_SLOPE


def from_normal(h: jax.Array) -> jax.Array:
    """The inverse of `to_normal`."""
    return _place(2 * jax.scipy.special.ndtr(h) - 1)


def to_logistic(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logistic quantile of y in [-1, 1), and its log-slope, elementwise."""
    p = _inside((y + 1) / 2)
    log_p, log_q = jnp.log(p), jnp.log1p(-p)
    return log_p - log_q, -log_p - log_q + _LOG_SLOPE


def from_logistic(h: jax.Array) -> jax.Array:
    """The inverse of `to_logistic`: 2 sigmoid(h) - 1, the margin apart."""
    return _place(jnp.tanh(h / 2))


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The first map of a flow: y in [-1, 1) -> (h, log-slope), elementwise.

    Onto (nearly) all reals, the model is a distribution on the data's range alone. With
    "identity" and a base that reaches beyond the range, mass there belongs to no integer:
    the probabilities sum to less than one, so that a model looks worse than it is, never
    better.
    """

    forward: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    inverse: Callable[[jax.Array], jax.Array]
    quantile: Callable[[np.ndarray], np.ndarray]
    """h at the quantiles p in [0, 1] of the data's range, float64, for a codec."""


PREPROCESSING = {
    "normal": Preprocessing(to_normal, from_normal, lambda p: ndtri(_inside(p))),
    "logistic": Preprocessing(to_logistic, from_logistic, lambda p: logit(_inside(p))),
    "identity": Preprocessing(
        lambda y: (y, jnp.zeros_like(y)), lambda h: h, lambda p: 2 * p - 1
    ),
}


class MultiScaleFlow(FlowModel):
    """Invertible layers in a row, with changes of scale between them.

    A model's `setup` makes `embed`, a CondEmbedding, and its layers; `steps` puts these in
    order. A layer is a module: (h, cond, inverse=False, train=False) -> (h, log_det [B]),
    where cond is embedded and log_det is of the direction that was asked for.
    """

    preprocessing: str = "normal"  # a key of PREPROCESSING

    def steps(self) -> Sequence[Any]:
        """Layers, and changes of scale: "squeeze" and "split".

        "squeeze": 2 x 2 pixels become channels. "split": the second half of the channels
        is factored out, as a part of z (Dinh et al. 2017, section 3.6).
        """
        raise TypeError(f"{type(self).__name__} defines no steps")

    @property
    def layout(self) -> tuple[int, ...]:
        """The shape in which the first layer gets an example: of its D entries."""
        return self.shape

    def _preprocessing(self):
        if self.preprocessing not in PREPROCESSING:
            raise InputError(
                f"--set=preprocessing={self.preprocessing}: unknown (one of "
                f"{', '.join(PREPROCESSING)})"
            )
        return PREPROCESSING[self.preprocessing]

    def forward(
        self, y: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Y [B, *shape] in [-1, 1) -> (z [B, D], log_det [B])."""
        batch = y.shape[0]
        embedded = self.embed(cond)
        h, log_slope = self._preprocessing().forward(y)
        h, log_det, parts = h.reshape(batch, *self.layout), sum_dims(log_slope), []
        for step in self.steps():
            if step == "squeeze":
                h = space_to_depth(h)
            elif step == "split":
                h, out = jnp.split(h, 2, axis=-1)
                parts.append(out.reshape(batch, -1))
            else:
                h, change = step(h, embedded, train=train)
                log_det += change
        return jnp.concatenate([*parts, h.reshape(batch, -1)], axis=1), log_det

    def inverse(self, z: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Z [B, D] -> y [B, *shape]."""
        embedded = self.embed(cond)
        steps, shape, parts = self.steps(), self.layout, []
        for step in steps:  # shapes on the way down, to cut z into its parts
            if step == "squeeze":
                shape = (shape[0] // 2, shape[1] // 2, 4 * shape[2])
            elif step == "split":
                shape = (*shape[:2], shape[2] // 2)
                parts.append(shape)
        h = z[:, -math.prod(shape) :].reshape(-1, *shape)
        end = z.shape[1] - math.prod(shape)
        for step in steps[::-1]:
            if step == "squeeze":
                h = depth_to_space(h)
            elif step == "split":
                size = math.prod(parts[-1])
                out = z[:, end - size : end].reshape(-1, *parts.pop())
                h, end = jnp.concatenate([h, out], axis=-1), end - size
            else:
                h, _ = step(h, embedded, inverse=True)
        return self._preprocessing().inverse(h).reshape(-1, *self.shape)

    def coding_map(self, p: np.ndarray) -> np.ndarray:
        """Where the first map takes the quantiles p in [0, 1] of the data's range."""
        return self._preprocessing().quantile(p)


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
