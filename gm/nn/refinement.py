"""From an image to the level above it: distributions of the three phases that it lacks.

A network for each phase sees a window of all pixels that are known by then and gives the
distributions of the phase's pixels, which are independent given those. Phases are as in
gm/nn/pyramid.py, and windows come with their border of what lies around: the convolutions
have no padding, so that a pixel's distribution does not depend on the window it is in.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.likelihood import scale
from gm.nn import pyramid
from gm.nn.convolution import Conv
from gm.nn.symbols import symbol_features

# Of each phase the nearest known pixels: phase, rows down and columns right in its grid.
_NEAR = {
    1: ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)),
    2: ((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, -1, 0)),
    3: ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, -1)),
}


class Context(nn.Module):
    """What is known around each pixel of a phase -> parameters of its symbols.

    Residual blocks of a convolution and a 1 x 1 convolution, without padding.
    """

    width: int
    depth: int
    kernel_size: tuple[int, int]
    channels: int
    num_outputs: int
    dropout_rate: float
    dtype: jnp.dtype

    def setup(self) -> None:
        """The layers, and a head for each channel."""
        conv = functools.partial(
            Conv, self.width, self.kernel_size, self.dtype, padded=False
        )
        dense = functools.partial(nn.Dense, self.width, dtype=self.dtype)
        self.enter = conv()
        self.convs = [conv() for _ in range(self.depth)]
        self.mixes = [dense() for _ in range(self.depth)]
        self.hidden = [dense() for _ in range(self.channels)]
        self.heads = [nn.Dense(self.num_outputs) for _ in range(self.channels)]
        self.dropout = nn.Dropout(self.dropout_rate)

    def _inner(self, h):
        """What a convolution leaves of the rows and columns."""
        (height, width), (a, b) = h.shape[1:3], (k // 2 for k in self.kernel_size)
        return h[:, a : height - a, b : width - b]

    def around(self, known: jax.Array, told: jax.Array, train: bool) -> jax.Array:
        """Known [B, S, S, F], told [B or 1, 1 or S, 1 or S, width] -> [B, h, w, width]."""
        h = self.enter(known)
        h = h + (told if told.shape[1:3] == (1, 1) else self._inner(told))
        for conv, mix in zip(self.convs, self.mixes, strict=True):
            branch = nn.silu(conv(nn.silu(h)))
            branch = self.dropout(branch, deterministic=not train)
            h = self._inner(h) + mix(branch)
        return nn.silu(h)

    def read(self, h: jax.Array, seen: jax.Array, channel: int) -> jax.Array:
        """Parameters [B, h, w, O] of a channel; of `seen` [B, h, w, C, F] those before."""
        before = seen[..., :channel, :].reshape(*h.shape[:3], -1).astype(h.dtype)
        g = nn.silu(self.hidden[channel](jnp.concatenate([h, before], axis=-1)))
        return self.heads[channel](g.astype(jnp.float32))


class Refinement(nn.Module):
    """P(other phases | first phase) of a level.

    A symbol is a mixture of what `symbols` has (logistics around the mean of the nearest
    known pixels, or a table) and, with `copies`, of those pixels' own values: point masses,
    which make flat areas nearly free. All of them are in the alphabet.

    Arguments of a window: phases int32 [B, S, S, 4, C], with the border; inside, bool
    [B or 1, S, S, 4], which of them are pixels; told, of the condition: [B or 1, 1, 1,
    width] or, of every pixel, [B, S, S, width].
    """

    symbols: Any  # an unbound SymbolModel
    channels: int
    phases: tuple[int, ...]  # that follow the first: of a single row not those below it
    width: int
    depth: int
    copies: bool
    one_hot: bool
    dropout_rate: float
    dtype: jnp.dtype

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Of the convolutions: 1 along a side of one pixel."""
        rows, columns = zip(*(pyramid.PHASES[p] for p in self.phases), strict=True)
        return 2 * max(rows) + 1, 2 * max(columns) + 1

    @property
    def border(self) -> tuple[int, int]:
        """Rows above and below a window, and columns beside it, that matter for it."""
        rows, columns = ((1 + self.depth) * (size // 2) for size in self.kernel_size)
        return rows, columns

    @nn.nowrap
    def near(self, phase: int) -> list[tuple[int, int, int]]:
        """Where the nearest pixels known before a phase lie, as in _NEAR."""
        return [at for at in _NEAR[phase] if at[0] in (0, *self.phases)]

    def setup(self) -> None:
        """A context for each phase."""
        num_copies = 1 + len(self.near(self.phases[0])) if self.copies else 0
        self.contexts = {
            str(p): Context(
                self.width,
                self.depth,
                self.kernel_size,
                self.channels,
                self.symbols.num_params + num_copies,
                self.dropout_rate,
                self.dtype,
            )
            for p in self.phases
        }

    def _features(self, x):
        return symbol_features(x, self.symbols.num_values, self.one_hot)

    def _around(self, phase, phases, inside, told, train):
        """Features [B, h, w, width] from the phases before, and where these are."""
        before = jnp.broadcast_to(inside[..., :phase], (*phases.shape[:3], phase))
        seen = self._features(phases[:, :, :, :phase])  # [B, S, S, p, C, F]
        seen = jnp.where(before[..., None, None], seen, 0)
        seen = seen.reshape(*phases.shape[:3], -1)
        known = jnp.concatenate([seen, before.astype(seen.dtype)], axis=-1)
        return self.contexts[str(phase)].around(known, told, train)

    def _window(self, x, down=0, right=0):
        """Without the border, the pixels that lie so far away."""
        (a, b), (height, width) = self.border, x.shape[1:3]
        return x[:, a + down : height - a + down, b + right : width - b + right]

    def _nearest(self, phase, phases, inside):
        """The nearest known pixels int32 [B, h, w, C, J], and which exist [.., 1, J]."""
        places = self.near(phase)
        found = [self._window(phases, *at)[:, :, :, p] for p, *at in places]
        exist = [self._window(inside, *at)[:, :, :, p] for p, *at in places]
        return jnp.stack(found, axis=-1), jnp.stack(exist, axis=-1)[:, :, :, None]

    def _centred(self, params, near, exist):
        """Parameters for `symbols`: the means of logistics are counted from those near."""
        params = params[..., : self.symbols.num_params]
        if not self.symbols.mixtures:
            return params
        total = jnp.where(exist, scale(near, self.symbols.num_values), 0).sum(-1)
        centre = total / jnp.maximum(exist.sum(-1), 1)
        moved = params.reshape(*params.shape[:-1], -1, 3)  # logit, mean, log_scale
        return moved.at[..., 1].add(centre[..., None]).reshape(params.shape)

    def _log_p(self, params, near, exist, x):
        """Log P of each symbol x [...]: params [..., O], near [..., J]."""
        log_p = self.symbols.symbol_log_prob(self._centred(params, near, exist), x)
        if not self.copies:
            return log_p
        share = jax.nn.log_softmax(params[..., self.symbols.num_params :])
        same = jnp.where(near == x[..., None], share[..., 1:], -jnp.inf)
        parts = jnp.concatenate([(share[..., 0] + log_p)[..., None], same], axis=-1)
        return jax.nn.logsumexp(parts, axis=-1)

    def log_probs(
        self, phases: jax.Array, inside: jax.Array, told: jax.Array, train: bool
    ) -> jax.Array:
        """Log P of each symbol of a window: float32 [B, h, w, phases, C], 0 if no pixel."""
        found = []
        own, there = self._window(phases), self._window(inside)
        for p in self.phases:
            h = self._around(p, phases, inside, told, train)
            x = own[:, :, :, p]
            read, seen = self.contexts[str(p)].read, self._features(x)
            params = [read(h, seen, c) for c in range(self.channels)]
            near = self._nearest(p, phases, inside)
            log_p = self._log_p(jnp.stack(params, axis=-2), *near, x)
            found.append(jnp.where(there[..., p, None], log_p, 0))
        return jnp.stack(found, axis=3)

    def draw(
        self,
        key: jax.Array,
        x: jax.Array,
        size: pyramid.Size,
        told: jax.Array,
        temperature: float,
    ) -> jax.Array:
        """The level of that size above an image: [B, h, w, C] -> int32 [B, *size, C]."""
        pads = [(0, 0), *((side, side) for side in self.border)]
        there = jnp.asarray(pyramid.inside(size))[None]
        inside = jnp.pad(there, [*pads, (0, 0)])
        phases = jnp.zeros((*x.shape[:3], 4, self.channels), jnp.int32)
        phases = phases.at[:, :, :, 0].set(x)
        for p in self.phases:
            padded = jnp.pad(phases, [*pads, (0, 0), (0, 0)])
            h = self._around(p, padded, inside, told, False)
            near, exist = self._nearest(p, padded, inside)
            for c in range(self.channels):
                noise = jax.random.fold_in(jax.random.fold_in(key, p), c)
                seen = self._features(phases[:, :, :, p])
                params = self.contexts[str(p)].read(h, seen, c)
                around = near[..., c, :], exist[..., 0, :]
                drawn = self._draw(noise, params, *around, temperature)
                drawn = jnp.where(there[..., p], drawn, 0)
                phases = phases.at[:, :, :, p, c].set(drawn)
        return pyramid.join(phases, size)

    def _draw(self, key, params, near, exist, temperature):
        """Symbols int32 [...] from parameters [..., O], near [..., J]."""
        key_x, key_copy = jax.random.split(key)
        own = self._centred(params, near, exist)
        if self.symbols.mixtures:
            logit, mean, log_scale = jnp.moveaxis(
                own.reshape(*own.shape[:-1], -1, 3), -1, 0
            )
            wider = (logit / temperature, mean, log_scale + jnp.log(temperature))
            own = jnp.stack(wider, axis=-1).reshape(own.shape)
            x = self.symbols.symbol_sample(key_x, own)
        else:
            logits = self.symbols.symbol_logits(own)
            x = jax.random.categorical(key_x, logits / temperature)
        if self.copies:
            share = params[..., self.symbols.num_params :] / temperature
            which = jax.random.categorical(key_copy, share)[..., None]
            copied = jnp.take_along_axis(near, jnp.maximum(which - 1, 0), axis=-1)
            x = jnp.where(which == 0, x[..., None], copied)[..., 0]
        return x.astype(jnp.int32)
