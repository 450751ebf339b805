"""Latent-variable models by bits-back coding (Townsend et al. 2019).

Encoding pops z ~ q(z|x), pushes x ~ p(x|z) and pushes z ~ p(z): the net length is that
of one draw of the bound, -log p(x|z) - log p(z) + log q(z|x). z lies on a grid, the same
for prior and posterior, whose cell cancels.
"""

import numpy as np

from gm.codec.coders import Stack
from gm.codec.program import Program

_GRID = 2.0**12  # points per prior sd; the narrowest posterior has a sd of e^-7


class LatentCodec:
    """Bits-back with one layer of latent variables."""

    stack = True
    batch_size = 64

    def __init__(self, program: Program) -> None:
        """Compiles q(z|x), p(x|z) and the tables of its symbols."""
        self.program = program
        model, size = program.model, program.batch_size
        x, cond = program.x, program.cond
        z = np.zeros((size, model.latent_dims), np.float32)
        self._infer = program.compile(lambda m, x, c: m.infer(x, c), x, cond)
        self._generate = program.compile(lambda m, z, c: m.generate(z, c), z, cond)
        params = self._generate(z, cond)
        self._logits = [
            program.compile(lambda m, p, x, i=i: m.symbol_logits(p, x, i), params, x)
            for i in range(model.channels)
        ]

    @property
    def num_bits(self) -> int:
        """Bits that an example takes from the stack before it gives any, about."""
        return 16 * self.program.model.latent_dims

    def _posterior(self, x, cond):
        """Mean and sd of q(z|x) in grid units, float64 [n * latents] each."""
        batch = self.program.pad(x, self.program.x)
        mean, log_std = self._infer(batch, self.program.pad(cond, self.program.cond))
        mean, log_std = (
            np.asarray(a, np.float64)[: len(x)].ravel() for a in (mean, log_std)
        )
        return mean * _GRID, np.exp(log_std) * _GRID

    def _likelihood(self, z, count, cond):
        """Parameters of p(x|z) from latents in grid units."""
        z = (z.reshape(count, -1) / _GRID).astype(np.float32)
        like = np.zeros((self.program.batch_size, z.shape[1]), np.float32)
        batch = self.program.pad(z, like)
        return self._generate(batch, self.program.pad(cond, self.program.cond))

    def _table(self, params, x, channel):
        """Logits [n * pixels, K] of a channel, given the channels before it alone."""
        seen = np.zeros_like(x)
        seen[..., :channel] = x[..., :channel]
        batch = self.program.pad(
            seen.reshape(-1, *self.program.model.shape), self.program.x
        )
        logits = np.asarray(self._logits[channel](params, batch))[: len(x)]
        return logits.reshape(-1, logits.shape[-1])

    def encode(self, stack: Stack, x: np.ndarray, cond: np.ndarray | None) -> None:
        """Pushes integers [n, *shape], n <= B."""
        z = stack.pop_normal(*self._posterior(x, cond), narrow=True)
        params = self._likelihood(z, len(x), cond)
        pixels = x.reshape(len(x), -1, len(self._logits))  # [n, P, C]
        for channel in reversed(range(len(self._logits))):
            logits = self._table(params, pixels, channel)
            stack.push(pixels[..., channel].ravel(), logits)
        stack.push_normal(z, np.zeros(z.shape), np.full(z.shape, _GRID), narrow=False)

    def decode(self, stack: Stack, count: int, cond: np.ndarray | None) -> np.ndarray:
        """Pops n examples, int32 [n, *shape]."""
        model = self.program.model
        size = count * model.latent_dims
        z = stack.pop_normal(np.zeros(size), np.full(size, _GRID), narrow=False)
        params = self._likelihood(z, count, cond)
        channels = len(self._logits)
        pixels = np.zeros((count, model.num_dims // channels, channels), np.int32)
        for channel in range(channels):
            symbols = stack.pop(self._table(params, pixels, channel))
            pixels[..., channel] = symbols.reshape(count, -1)
        x = pixels.reshape(count, *model.shape)
        stack.push_normal(z, *self._posterior(x, cond), narrow=True)
        return x
