"""Self-attention and transformer blocks, for whole sequences and with a cache."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.errors import InputError
from gm.nn.resolutions import SCANNED

SPAN = 256  # queries that see the keys together, where cuDNN does not do it
MAX_SPANS = 8  # each is compiled by itself: longer sequences have longer spans


def check_heads(
    width: int,
    num_heads: int,
    *,
    rotary: bool = False,
    names: tuple[str, str] = ("width", "num_heads"),
) -> None:
    """InputError if the heads of an attention do not share its width.

    Args:
      width: of the attention.
      num_heads: that share it evenly.
      rotary: whether positions rotate pairs of a head's entries.
      names: that the two have as fields of the model.
    """
    of, by = names
    for name, value in ((by, num_heads), (of, width)):
        if value < 1:
            raise InputError(f"--set={name}={value}: give 1 or more")
    multiple = (2 if rotary else 1) * num_heads
    if width % multiple:
        raise InputError(
            f"--set={of}={width} --set={by}={num_heads}: give a {of} that is a multiple "
            f"of {'2 ' * rotary}{by}, {multiple}"
        )


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """Coordinates [D, A] of the symbols of an example in raster order."""
    return np.indices(shape).reshape(len(shape), -1).T


def rotary_table(positions: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, head_dim/2] (Su et al. 2021), axes sharing the pairs.

    Args:
      positions: [T, A]; an axis along which all positions are equal gets no pairs.
      head_dim: even.
    """
    axes = [a for a in range(positions.shape[1]) if np.ptp(positions[:, a])] or [0]
    pairs = head_dim // 2
    counts = [pairs // len(axes) + (i < pairs % len(axes)) for i in range(len(axes))]
    angles = []
    for axis, count in zip(axes, counts, strict=True):
        frequency = 10000.0 ** (-np.arange(count) / max(count, 1))
        angles.append(positions[:, axis, None] * frequency)
    table = np.concatenate(angles, axis=1).astype(np.float32)
    return np.cos(table), np.sin(table)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (x_i, x_{i + head_dim/2}): x [..., T, head_dim], tables [T, ...]."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | np.ndarray
) -> jax.Array:
    """Softmax attention, heads first: q [B, H, T, d], k and v [B, H, S, d].

    `allowed` (bool, broadcast to [T, S]) says which keys a query may see. The softmax
    is in float32. Weights are normalised after they met the values, [T, d] instead of
    [T, S], which halves the time of a step on a CPU.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", q / math.sqrt(q.shape[-1]), k)
    scores = jnp.where(allowed, scores.astype(jnp.float32), -1e30)
    # The result does not depend on the maximum, so neither does its gradient.
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)
    return (mixed / weights.sum(-1, keepdims=True)).astype(v.dtype)


def _has_kernel(q):
    """Whether cuDNN has a fused kernel for queries [B, H, T, d] of this kind."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    head_dim = q.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and half
        and head_dim % 8 == 0
        and head_dim <= 128
    )


def attend_to_all(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """T positions to one another, or to those before: [B, H, T, d] each.

    On a GPU in half precision by cuDNN's kernel, which holds no [T, T] scores. Else, if
    causal, up to MAX_SPANS spans of queries see the keys up to their own end alone: about
    half of the scores are computed, and those of a span fit a core's cache.
    """
    if _has_kernel(q):
        heads_last = (t.swapaxes(1, 2) for t in (q, k, v))
        out = jax.nn.dot_product_attention(
            *heads_last, is_causal=causal, implementation="cudnn"
        )
        return out.swapaxes(1, 2)
    if not causal:
        return attend(q, k, v, np.ones((1, 1), bool))
    length = q.shape[2]
    count = min(-(-length // SPAN), MAX_SPANS)
    ends = [length * (i + 1) // count for i in range(count)]
    spans = [
        attend(
            q[:, :, start:end],
            k[:, :, :end],
            v[:, :, :end],
            np.tri(end - start, end, start, dtype=bool),
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return jnp.concatenate(spans, axis=2)


class SelfAttention(nn.Module):
    """Multi-head attention; if causal, position t sees positions <= t.

    With a shape, queries and keys are rotated by the coordinates of their symbols.
    """

    num_heads: int
    shape: tuple[int, ...] | None  # of an example: its symbols in raster order
    causal: bool = True
    qk_norm: bool = True  # RMS-normalise queries and keys (Dehghani et al. 2023)
    use_bias: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """H [B, T, width] -> [B, T, width], and the cache.

        Without a cache the T positions see one another; with one, T = 1 and the cache
        holds keys and values [B, heads, T_max, head_dim] of the positions before `index`.
        """
        batch, length, width = h.shape
        head_dim = width // self.num_heads
        dense: dict[str, Any] = dict(use_bias=self.use_bias, dtype=self.dtype)
        qkv = nn.Dense(3 * width, name="qkv", **dense)(h)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, head_dim)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [B, heads, T, head_dim]
        if self.qk_norm:
            q = nn.RMSNorm(dtype=self.dtype, name="norm_q")(q)
            k = nn.RMSNorm(dtype=self.dtype, name="norm_k")(k)
        where: Any = slice(length) if index is None else index[None]
        if self.shape is not None:
            table = rotary_table(coordinates(self.shape), head_dim)
            cos, sin = (jnp.asarray(t)[where] for t in table)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None and index is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, index, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, index, axis=2)
            cache = (k, v)
            out = attend(q, k, v, jnp.arange(k.shape[2]) <= index)
        else:
            out = attend_to_all(q, k, v, self.causal)
        out = out.transpose(0, 2, 1, 3).reshape(batch, length, width)
        return nn.Dense(width, name="out", **dense)(out), cache


class Block(nn.Module):
    """Attention and MLP, each on a residual branch after a normalisation.

    By default RMSNorm (Zhang & Sennrich 2019), QK-norm and SwiGLU (Shazeer 2020). A plain
    block is that of Radford et al. (2019): LayerNorm, no QK-norm, a GELU MLP of 4 width.
    """

    num_heads: int
    shape: tuple[int, ...] | None  # for rotary positions; None: none
    causal: bool = True
    plain: bool = False
    use_bias: bool = False
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Any]:
        """H [B, T, width] -> the same; the cache is None or that of the attention."""
        width = h.shape[-1]
        dense: dict[str, Any] = dict(use_bias=self.use_bias, dtype=self.dtype)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        attention = SelfAttention(
            self.num_heads,
            self.shape,
            self.causal,
            not self.plain,
            self.use_bias,
            self.dtype,
            name="attention",
        )
        branch, cache = attention(self._norm()(h), cache, index)
        h = h + dropout(branch)
        branch = self._norm()(h)
        if self.plain:
            branch = nn.Dense(4 * width, name="up", **dense)(branch)
            branch = nn.gelu(branch, approximate=False)
        else:
            hidden = 8 * width // 3  # as many parameters as a GELU MLP of 4 width
            if width >= 256:  # in whole tiles of a GPU's matrix units
                hidden = -(-hidden // 64) * 64
            gate = nn.Dense(hidden, name="gate", **dense)(branch)
            branch = nn.silu(gate) * nn.Dense(hidden, name="up", **dense)(branch)
        return h + dropout(nn.Dense(width, name="down", **dense)(branch)), cache

    def _norm(self):
        if self.plain:
            return nn.LayerNorm(1e-5, use_bias=self.use_bias, dtype=self.dtype)
        return nn.RMSNorm(dtype=self.dtype)


def _is_kept(primitive, *args, **params):
    """Whether what a primitive gave is kept for the backward pass of `Looped`."""
    dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    kernel = primitive.name == "dot_product_attention_fwd_wrapper"
    return kernel or dense(primitive, *args, **params)


class Looped(nn.Module):
    """Equal blocks in a row, in a loop: one is compiled for all, parameters [depth, ...].

    Reverse mode keeps the outputs of their dense layers and of cuDNN's attention, and
    computes the rest again.
    """

    block: Block  # one of them
    depth: int

    def __call__(self, h: jax.Array, train: bool = False) -> jax.Array:
        """H [B, T, width] -> the same."""

        def body(block, h, _):
            return block(h, train=train)[0], None

        loop = nn.scan(
            nn.remat(body, prevent_cse=False, policy=_is_kept),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        return loop(self.block, h, None)[0]

    def each(self) -> list[Callable[..., Any]]:
        """The blocks one by one; their parameters are copied, so outside of a loop."""
        params = self.block.variables["params"]
        one = self.block.clone(parent=None)
        each = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(self.depth)]
        return [functools.partial(one.apply, {"params": p}) for p in each]


Blocks = Looped | Sequence[Block]  # in a row


def make_blocks(make: Callable[..., Block], depth: int, loop: bool | None) -> Blocks:
    """Equal blocks, in a loop (None: SCANNED or more) or one by one.

    Args:
      make: gives one; its `parent` is None for the one that is looped.
      depth: how many.
      loop: whether in a loop: the parameters have other places there.
    """
    if depth and (depth >= SCANNED if loop is None else loop):
        return Looped(make(parent=None), depth)
    return [make() for _ in range(depth)]


def run_blocks(blocks: Blocks, h: jax.Array, train: bool) -> jax.Array:
    """H [B, T, width] through blocks in a row, without a cache."""
    if isinstance(blocks, Looped):
        return blocks(h, train)
    for block in blocks:
        h, _ = block(h, train=train)
    return h


def step_blocks(
    blocks: Sequence[Callable[..., Any]],
    h: jax.Array,
    cells: Sequence[Any],
    index: jax.Array,
) -> tuple[jax.Array, list[Any]]:
    """Position `index` [B, 1, width] through blocks in a row, and their caches."""
    grown = []
    for block, cell in zip(blocks, cells, strict=True):
        h, cell = block(h, cell, index)
        grown.append(cell)
    return h, grown
