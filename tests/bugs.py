"""Seeded bugs: each a few lines away from a correct model, each seen in the wild.

MODELS: name -> (class, the check that must catch it). EVALUATORS: the same for what turns
a model into a number.
"""

import math
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.autoregressive import AutoregressiveModel
from gm.bounds import logmeanexp
from gm.evaluate import evaluate
from gm.flow import FlowModel
from gm.likelihood import (
    bits,
    categorical_log_prob,
    dequantize,
    normal_kl,
    normal_log_prob,
    scale,
    sum_dims,
)
from gm.model import log_prob
from gm.models.made import MADE, MaskedDense
from gm.models.realnvp import RealNVP
from gm.models.transformer import Transformer
from gm.models.vae import VAE
from gm.spec import Estimate

MODELS = {}
EVALUATORS = {}


def caught_by(check):
    """Adds a class to MODELS."""

    def add(cls):
        MODELS[cls.__name__] = (cls, check)
        return cls

    return add


# Autoregressive models.


@caught_by("causality")
class MaskSwapped(MADE):
    """Mask B where A belongs: an output sees its own symbol."""

    def setup(self):
        super().setup()
        degrees = [self.head.in_degrees, self.head.out_degrees]
        self.leaky = MaskedDense(*degrees, strict=False)

    def conditionals(self, x, cond=None, *, train=False):
        features = self._features(x).reshape(x.shape[0], -1)
        h = self._hidden(self.layers[0](features) + self.embed(cond), 0, train)
        return self.leaky(h).reshape(*x.shape, self.num_params)


@caught_by("causality")
class Unshifted(Transformer):
    """Token d carries symbol d: the start token was forgotten."""

    def conditionals(self, x, cond=None, *, train=False):
        h = self.embed(x) + self._places() + self.condition(cond)[:, None]
        for block in self.blocks:
            h, _ = block(h, train=train)
        return self._read(h)


@caught_by("normalisation")
class OrderPerExample(MADE):
    """The better of two orders, chosen for each example after seeing it."""

    def log_prob(self, x, cond=None, *, train=False):
        there = super().log_prob(x, cond, train=train)[0]
        back = super().log_prob(x.reshape(len(x), -1)[:, ::-1], cond, train=train)[0]
        log_px = jnp.maximum(there, back)
        return log_px, {"symbols": log_px}


@caught_by("neighbours")
class BatchLeak(MADE):
    """Normalised over the batch."""

    def conditionals(self, x, cond=None, *, train=False):
        params = super().conditionals(x, cond, train=train)
        return params - params.mean(0)


@caught_by("receptive_field")
class BlindSpot(MADE):
    """Every hidden unit has the first degree: all see the first symbol alone."""

    def setup(self):
        super().setup()
        inputs, outputs = self.layers[0].in_degrees, self.head.out_degrees
        hidden = ((1,) * self.width,)
        self.blind = [
            MaskedDense(inputs, hidden),
            MaskedDense(hidden, outputs, strict=True),
        ]

    def conditionals(self, x, cond=None, *, train=False):
        h = self.blind[0](self._features(x).reshape(x.shape[0], -1)) + self.embed(cond)
        return self.blind[1](nn.silu(h)).reshape(*x.shape, self.num_params)


@caught_by("cache")
class CacheOffByOne(Transformer):
    """Sampling looks up the position of the next symbol."""

    def step(self, cache, index, previous):
        (condition, where), cells = cache
        fixed = (condition, jnp.roll(where, -1, axis=0))
        cache, params = super().step((fixed, cells), index, previous)
        return ((condition, where), cache[1]), params


@caught_by("cache")
class FirstSymbolNotIgnored(MADE):
    """At index 0 the cache takes in a symbol that does not exist."""

    def step(self, cache, index, previous):
        cache = self.add(cache, jnp.maximum(index - 1, 0), previous)
        return cache, self.read(cache, index)


@caught_by("condition")
class FirstSymbolUnconditional(MADE):
    """No unit tells the first symbol of the condition."""

    def conditionals(self, x, cond=None, *, train=False):
        params = super().conditionals(x, cond, train=train)
        return params.at[:, 0].set(self.head.bias[: self.num_params])


@caught_by("sampler")
class ConditionNotSampled(MADE):
    """The sampler draws for a condition of its own."""

    def init_cache(self, batch_size, cond=None):
        return super().init_cache(batch_size, None if cond is None else cond * 0)


@caught_by("sampler")
class SameNoise(MADE):
    """One key for all symbols, as make_rng inside a loop gives."""

    def sample(self, num_samples, cond=None, *, temperature=1.0):
        key = self.make_rng("sample")
        cache = self.init_cache(num_samples, cond)
        x, xs = jnp.zeros((num_samples,), jnp.int32), []
        for index in range(self.num_dims):
            cache, params = self.step(cache, jnp.asarray(index), x)
            x = jax.random.categorical(key, self.symbol_logits(params))
            xs.append(x.astype(jnp.int32))
        return jnp.stack(xs, 1).reshape(num_samples, *self.shape)


@caught_by("sampler")
class Sharper(Transformer):
    """A temperature of 0.97 was left in the sampler."""

    def sample(self, num_samples, cond=None, *, temperature=1.0):
        return super().sample(num_samples, cond, temperature=0.97 * temperature)


@caught_by("normalisation")
class Floor(Transformer):
    """Unlikely data are said to have 11 nats per symbol, lest a sum be infinite."""

    def log_prob(self, x, cond=None, *, train=False):
        log_px = super().log_prob(x, cond, train=train)[0]
        log_px = jnp.maximum(log_px, -11 * self.num_dims)
        return log_px, {"symbols": log_px}


class Logistics(MADE):
    """Two logistics for each symbol, whatever the number of values."""

    num_mixtures: int | None = 2

    def parts(self, params, x):
        """Mixture weights, inverse scales and standardised x: each [..., 2]."""
        logits, mean, log_scale = jnp.split(params.astype(jnp.float32), 3, axis=-1)
        v = scale(x, self.num_values)[..., None]
        inv = jnp.exp(-jnp.maximum(log_scale, -7.0))
        return jax.nn.log_softmax(logits), inv, inv * (v - mean)


@caught_by("symbols")
class Density(Logistics):
    """The density at the centre of the bin times its width, for the mass of the bin."""

    def symbol_log_prob(self, params, x):
        weights, inv, u = self.parts(params, x)
        log_density = -u - 2 * jax.nn.softplus(-u) + jnp.log(inv)
        log_width = math.log(2 / (self.num_values - 1))
        return jax.nn.logsumexp(weights + log_density, axis=-1) + log_width


@caught_by("normalisation")
class MassOutside(Logistics):
    """Edge bins as narrow as the others: mass leaks out of the alphabet."""

    def symbol_log_prob(self, params, x):
        weights, inv, u = self.parts(params, x)
        half = inv / (self.num_values - 1)
        mass = jax.nn.sigmoid(u + half) - jax.nn.sigmoid(u - half)
        log_mass = jnp.log(jnp.maximum(mass, 1e-12))
        return jax.nn.logsumexp(weights + log_mass, axis=-1)


@caught_by("normalisation")
class MeanOverSymbols(MADE):
    """Nats per symbol in place of nats per example."""

    def log_prob(self, x, cond=None, *, train=False):
        log_px = super().log_prob(x, cond, train=train)[0] / self.num_dims
        return log_px, {"symbols": log_px}


@caught_by("normalisation")
class TwoScalesLeak(MADE):
    """The sum of two symbols, then the first given it: pairs outside the alphabet too."""

    def log_prob(self, x, cond=None, *, train=False):
        x = x.reshape(len(x), -1)
        params = self.conditionals(x, cond, train=train)
        log_px = sum_dims(self.symbol_log_prob(params, x))
        # The coarse symbol has 2K - 1 values; all K fine ones count as possible.
        coarse = jnp.zeros((len(x), 2 * self.num_values - 1))
        first, second = x[:, 0], x[:, 1]
        log_px += categorical_log_prob(coarse, first + second)
        log_px -= self.symbol_log_prob(params, x)[:, 1]
        return log_px, {"symbols": log_px}


# A random part of the symbols, scaled up: unbiased for log P(x), not a weight.


@caught_by("normalisation")
class WeightOfAnElbo(MADE):
    """D log P(x_d | x_<d) for a random d, declared a weight: IWAE on an ELBO."""

    estimate = Estimate.WEIGHT

    def log_prob(self, x, cond=None, *, train=False):
        x = x.reshape(len(x), -1)
        each = self.symbol_log_prob(self.conditionals(x, cond, train=train), x)
        d = jax.random.randint(self.make_rng("sample"), (len(x), 1), 0, self.num_dims)
        log_px = self.num_dims * jnp.take_along_axis(each, d, 1)[:, 0]
        return log_px, {"symbols": log_px}


# Flows.


@caught_by("normalisation")
class VolumeForgotten(RealNVP):
    """-D log K is missing."""

    def log_prob(self, x, cond=None, *, train=False):
        log_px, terms = super().log_prob(x, cond, train=train)
        volume = terms.pop("volume")
        return log_px - volume, terms


@caught_by("log_det")
class MeanForSum(RealNVP):
    """The log-determinant is averaged over the dimensions."""

    def forward(self, y, cond=None, *, train=False):
        z, log_det = super().forward(y, cond, train=train)
        return z, log_det / self.num_dims


@caught_by("log_det")
class GainForgotten(RealNVP):
    """The learned gain, zero at the start, is missing from the log-determinant."""

    def setup(self):
        super().setup()
        self.gain = self.param("gain", nn.initializers.zeros, ())

    def forward(self, y, cond=None, *, train=False):
        z, log_det = super().forward(y, cond, train=train)
        return z * jnp.exp(self.gain), log_det

    def inverse(self, z, cond=None):
        return super().inverse(z * jnp.exp(-self.gain), cond)


@caught_by("inverse")
class ShiftNotUndone(RealNVP):
    """The inverse leaves out a learned shift, zero at the start."""

    def setup(self):
        super().setup()
        self.shift = self.param("shift", nn.initializers.zeros, ())

    def forward(self, y, cond=None, *, train=False):
        z, log_det = super().forward(y, cond, train=train)
        return z + self.shift, log_det


@caught_by("normalisation")
class NoNoise(RealNVP):
    """The density at the lower corner of the cell: integers are not dequantised."""

    estimate = Estimate.EXACT

    def log_prob(self, x, cond=None, *, train=False):
        _, log_volume = dequantize(jax.random.key(0), x, self.num_values)
        z, log_det = self.forward((x + 0.3) * 2 / self.num_values - 1, cond)
        log_px = sum_dims(normal_log_prob(z)) + log_det + log_volume
        return log_px, {"all": log_px}


@caught_by("normalisation")
class OutsideTheCube(FlowModel):
    """A normal on all reals: its mass beyond [-1, 1) belongs to no integer."""

    def setup(self):
        self.log_gain = self.param("log_gain", nn.initializers.zeros, (self.num_dims,))

    def forward(self, y, cond=None, *, train=False):
        z = y.reshape(len(y), -1) * jnp.exp(self.log_gain)
        return z, jnp.broadcast_to(self.log_gain.sum(), len(y))

    def inverse(self, z, cond=None):
        return (z * jnp.exp(-self.log_gain)).reshape(len(z), *self.shape)


# Latent-variable models.


@caught_by("normalisation")
class AnalyticKl(VAE):
    """A closed-form KL, still declared a weight."""

    def log_prob(self, x, cond=None, *, train=False):
        mean, log_std = self.infer(x, cond, train=train)
        eps = jax.random.normal(self.make_rng("sample"), mean.shape)
        z = mean + jnp.exp(log_std) * eps
        log_px_z = self.log_px_z(self.generate(z, cond, train=train), x)
        minus_kl = -sum_dims(normal_kl(mean, log_std))
        return log_px_z + minus_kl, {"reconstruction": log_px_z, "minus_kl": minus_kl}


@caught_by("bounds")
class FreeBits(AnalyticKl):
    """A bound in which the first 2 nats of KL are free."""

    estimate = Estimate.ELBO

    def log_prob(self, x, cond=None, *, train=False):
        _, terms = super().log_prob(x, cond, train=train)
        terms["minus_kl"] = jnp.minimum(terms["minus_kl"] + 2, 0)
        return sum(terms.values()), terms


@caught_by("bounds")
class HalfTheKl(VAE):
    """The KL is weighted by a half, as while its weight is annealed."""

    def log_prob(self, x, cond=None, *, train=False):
        _, terms = super().log_prob(x, cond, train=train)
        terms["minus_kl"] *= 0.5
        return sum(terms.values()), terms


@caught_by("normalisation")
class EntropyForgotten(VAE):
    """log q(z|x) without -log sigma."""

    def log_prob(self, x, cond=None, *, train=False):
        log_px, terms = super().log_prob(x, cond, train=train)
        _, log_std = self.infer(x, cond)
        terms["minus_kl"] -= sum_dims(log_std)
        return sum(terms.values()), terms


@caught_by("symbols")
class GaussianDecoder(VAE):
    """A density of grey levels in place of their probabilities."""

    def log_px_z(self, params, x):
        mean = params.reshape(len(x), -1)[:, : self.num_dims]
        mean = jnp.tanh(mean[:, :1])
        return sum_dims(
            normal_log_prob(scale(x, self.num_values).reshape(len(x), -1), mean)
        )


@caught_by("values")
class TermsDoNotAddUp(VAE):
    """A regulariser is in the terms, and not in the sum."""

    def log_prob(self, x, cond=None, *, train=False):
        log_px, terms = super().log_prob(x, cond, train=train)
        return log_px, terms | {"penalty": -jnp.ones_like(log_px)}


@caught_by("values")
class RandomOrder(MADE):
    """An order drawn anew for each call, declared exact."""

    def log_prob(self, x, cond=None, *, train=False):
        x = x.reshape(len(x), -1)
        order = jax.random.permutation(self.make_rng("sample"), self.num_dims)
        return AutoregressiveModel.log_prob(self, x[:, order], cond, train=train)


# Evaluators: called with (model, params, dataset, split, batch_size=,
# num_importance_samples=). Most are the loop below with one thing wrong.

_log_prob = jax.jit(log_prob, static_argnames="model")


def evaluator(check):
    """Adds a function to EVALUATORS."""

    def add(function):
        EVALUATORS[function.__name__] = (function, check)
        return function

    return add


def batches(model, params, dataset, split, *, batch_size, num_importance_samples):
    """Nats of each batch, as most research code computes them."""
    examples = dataset.split(split)
    keys = jax.random.split(jax.random.key(0), num_importance_samples)
    parts = []
    for start in range(0, len(examples), batch_size):
        stop = min(start + batch_size, len(examples))
        x, cond = examples.batch(np.arange(start, stop))
        draws = [_log_prob(model, params, jnp.asarray(x), cond, k)[0] for k in keys]
        parts.append(-logmeanexp(np.asarray(draws, np.float64)))
    return parts


def result(model, nats):
    mean = float(np.mean(nats))
    return {"nats": mean, "bits_per_dim": bits(mean) / model.num_dims}, nats


@evaluator("every_example_once")
def last_batch_dropped(model, *args, **options):
    parts = batches(model, *args, **options)
    full = [p for p in parts if len(p) == options["batch_size"]]
    return result(model, np.concatenate(full or parts))


@evaluator("every_example_once")
def padding_counted(model, *args, **options):
    nats = np.concatenate(batches(model, *args, **options))
    size = options["batch_size"]
    return result(model, np.resize(nats, -(-len(nats) // size) * size))


@evaluator("every_example_once")
def mean_of_batch_means(model, *args, **options):
    parts = batches(model, *args, **options)
    mean = float(np.mean([p.mean() for p in parts]))
    row, nats = result(model, np.concatenate(parts))
    return row | {"nats": mean}, nats


@evaluator("nonfinite_examples")
def nan_dropped(model, *args, **options):
    nats = np.concatenate(batches(model, *args, **options))
    return result(model, nats[np.isfinite(nats)])


@evaluator("splits")
def train_split(model, params, dataset, split, **options):
    return result(
        model, np.concatenate(batches(model, params, dataset, "train", **options))
    )


@evaluator("bits_per_dim")
def nats_called_bits(model, *args, **options):
    row, nats = evaluate(model, *args, **options)
    return row | {"bits_per_dim": row["nats"] / model.num_dims}, nats


@evaluator("elbo_refused")
def iwae_on_an_elbo(model, *args, **options):
    return result(model, np.concatenate(batches(model, *args, **options)))


@evaluator("sandwich")
def hundred_draws_for_one(*args, num_importance_samples, **options):
    k = max(num_importance_samples, 100)
    return evaluate(*args, num_importance_samples=k, **options)


@evaluator("sandwich")
def sum_of_weights(*args, num_importance_samples, **options):
    k = num_importance_samples
    row, nats = evaluate(*args, num_importance_samples=k, **options)
    return row | {"nats": row["nats"] - math.log(k)}, nats - math.log(k)


@evaluator("repeatable")
def noise_of_the_clock(*args, **options):
    return evaluate(*args, seed=time.time_ns() % 2**31, **options)
