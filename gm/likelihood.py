"""Every nat and every bit: the only file that knows log 2 or how integers are scaled.

All functions compute in float32 whatever their inputs' dtype, because a bin of 1/255
cannot be represented in bfloat16.
"""

import math

import jax
import jax.numpy as jnp

_LOG_2PI = math.log(2 * math.pi)


def bits(nats: float) -> float:
    """Converts nats to bits."""
    return nats / math.log(2)


def bits_per_dim(nats: jax.Array, num_dims: int) -> jax.Array:
    """Converts nats per example to bits per dimension."""
    return nats / (num_dims * math.log(2))


def sum_dims(x: jax.Array) -> jax.Array:
    """Sums all but the batch dimension, in float32: [B, ...] -> [B]."""
    return jnp.sum(x.astype(jnp.float32).reshape(x.shape[0], -1), axis=1)


# Between integers and reals.


def scale(x: jax.Array, num_values: int) -> jax.Array:
    """Maps integers {0, ..., K-1} to reals in [-1, 1], as a network's input."""
    return x.astype(jnp.float32) * (2 / (num_values - 1)) - 1


def dequantize(
    key: jax.Array, x: jax.Array, num_values: int
) -> tuple[jax.Array, jax.Array]:
    """Adds uniform noise and scales to [-1, 1) (Theis et al. 2016, section 3.1).

    P(x) = integral of p_Y over the cell of x = E_u[p_Y(y)] * volume of the cell, so
    log p_Y(y) + log_volume is the log of an unbiased estimate of P(x).

    Args:
      key: PRNG key.
      x: [B, ...] integers in {0, ..., K-1}.
      num_values: K.

    Returns:
      y: [B, ...] float32 in [-1, 1).
      log_volume: float32[B], as `cell_log_volume`.
    """
    y = within_cell(x, jax.random.uniform(key, x.shape), num_values)
    return y, cell_log_volume(y, num_values)


def within_cell(x: jax.Array, u: jax.Array, num_values: int) -> jax.Array:
    """The point y in [-1, 1) of the cell of x that u in [0, 1) says, elementwise."""
    return (x.astype(jnp.float32) + u) * (2 / num_values) - 1


def cell_log_volume(y: jax.Array, num_values: int) -> jax.Array:
    """Log volume of an integer's cell in [-1, 1)^D, log (2/K)^D: y [B, ...] -> [B]."""
    return jnp.full(y.shape[:1], math.prod(y.shape[1:]) * math.log(2 / num_values))


def quantize(y: jax.Array, num_values: int) -> jax.Array:
    """The integer cell that y in [-1, 1) lies in; reals outside go to the edge cells."""
    cell = jnp.floor((y + 1) * (num_values / 2))
    return jnp.clip(cell, 0, num_values - 1).astype(jnp.int32)


# Densities and probability mass functions, elementwise unless a shape says otherwise.


def normal_log_prob(
    z: jax.Array, mean: jax.Array | float = 0.0, log_std: jax.Array | float = 0.0
) -> jax.Array:
    """Log N(z; mean, exp(log_std)^2), elementwise."""
    eps = (z - mean) * jnp.exp(-jnp.asarray(log_std))
    return -0.5 * (eps**2 + _LOG_2PI) - log_std


def logistic_log_prob(z: jax.Array) -> jax.Array:
    """Log density of the standard logistic, -z - 2 log(1 + e^-z), elementwise."""
    return -z - 2 * jax.nn.softplus(-z)


def normal_kl(mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_std)^2) || N(0, 1)), elementwise (Kingma & Welling 2014, B)."""
    return 0.5 * (mean**2 + jnp.exp(2 * log_std) - 1) - log_std


def _softplus(v: jax.Array) -> jax.Array:
    # log(1 + e^v); log1p is slow on XLA:CPU and buys nothing in absolute error here. One
    # condition for both terms: the slopes of maximum and abs at 0, where the logits of an
    # untrained network may lie, would add up to 0 instead of 1/2.
    positive = v >= 0
    return jnp.where(positive, v, 0) + jnp.log(1 + jnp.exp(jnp.where(positive, -v, v)))


def categorical_log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Log softmax(logits)[x]: logits [..., K], x [...] integers -> float32 [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, x[..., None].astype(jnp.int32), axis=-1)
    return picked[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def bernoulli_log_prob(logit: jax.Array, x: jax.Array) -> jax.Array:
    """Log P(x) for x in {0, 1} with P(1) = sigmoid(logit), elementwise."""
    logit = logit.astype(jnp.float32)
    return -_softplus(jnp.where(x > 0, -logit, logit))


def _log1mexp(width: jax.Array, log_width: jax.Array) -> jax.Array:
    """log(1 - exp(-width)) for width > 0, exact at both ends."""
    # Both branches of the `where` see clamped operands, so no NaN leaks from the dead
    # one into the gradient.
    w = jnp.minimum(width, 1.0)
    small = log_width - w / 2 + w**2 / 24 - w**4 / 2880 + w**6 / 181440
    large = jnp.log(1 - jnp.exp(-jnp.maximum(width, 0.5)))
    return jnp.where(width < 1, small, large)


def discretized_logistic_log_prob(
    mean: jax.Array, log_scale: jax.Array, x: jax.Array, num_values: int
) -> jax.Array:
    """Log of the logistic mass of the bin of x, elementwise (Salimans 2017, eq. 2).

    On v = 2x/(K-1) - 1 the bin of x is v +- 1/(K-1); the edge bins reach to infinity,
    so the K masses sum to one. With hi, lo the standardised edges and w = hi - lo:
    log[sigmoid(hi) - sigmoid(lo)] = hi - softplus(hi) - softplus(lo) + log(1 - e^-w).
    No approximation by the density, no clamp of the mass.
    """
    x = x.astype(jnp.int32)
    mean, log_scale = mean.astype(jnp.float32), log_scale.astype(jnp.float32)
    bin_width = 2 / (num_values - 1)
    inv_scale = jnp.exp(-log_scale)
    width = bin_width * inv_scale
    hi = inv_scale * (scale(x, num_values) - mean) + width / 2
    lo = hi - width
    inner = hi - _softplus(hi) - _softplus(lo)
    inner += _log1mexp(width, math.log(bin_width) - log_scale)
    upper = jnp.where(x == num_values - 1, -_softplus(lo), inner)
    return jnp.where(x == 0, hi - _softplus(hi), upper)


def mixture_channels(num_mixtures: int, channels: int) -> int:
    """Network outputs per pixel of a discretized logistic mixture."""
    return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def _split_mixture(params, channels):
    """[..., mixture_channels] -> logits [..., M], mean, log_scale, coefficients."""
    params = params.astype(jnp.float32)
    num_mixtures = params.shape[-1] // mixture_channels(1, channels)
    params = params.reshape(*params.shape[:-1], num_mixtures, -1)
    logits, rest = params[..., 0], params[..., 1:]
    mean, log_scale = rest[..., :channels], rest[..., channels : 2 * channels]
    coefficients = jnp.tanh(rest[..., 2 * channels :])
    return logits, mean, jnp.maximum(log_scale, -7.0), coefficients


def _condition_mean(mean, coefficients, v, channel):
    """Mean of a channel given the channels before it (Salimans 2017, eq. 3)."""
    start = channel * (channel - 1) // 2
    mean = mean[..., channel]
    for j in range(channel):
        mean = mean + coefficients[..., start + j] * v[..., None, j]
    return mean


def discretized_logistic_mixture_log_prob(
    params: jax.Array, x: jax.Array, num_values: int
) -> jax.Array:
    """Log P(pixel) of a mixture of products of discretized logistics (Salimans 2017).

    One mixture indicator is shared by the channels of a pixel, and a channel's mean
    depends linearly on the channels before it, so that a pixel's probabilities sum to
    one over all K^C colours.

    Args:
      params: [..., M (1 + 2C + C(C-1)/2)] network outputs.
      x: [..., C] integers.
      num_values: K.

    Returns:
      float32 [...]: log-probability of each pixel.
    """
    channels = x.shape[-1]
    logits, mean, log_scale, coefficients = _split_mixture(params, channels)
    v = scale(x, num_values)
    log_px = jax.nn.log_softmax(logits)  # [..., M]
    for c in range(channels):
        mean_c = _condition_mean(mean, coefficients, v, c)
        log_px += discretized_logistic_log_prob(
            mean_c, log_scale[..., c], x[..., None, c], num_values
        )
    return jax.nn.logsumexp(log_px, axis=-1)


def discretized_logistic_mixture_symbols(
    params: jax.Array, x: jax.Array, num_values: int
) -> jax.Array:
    """P(x_c | x_<c) of each channel of a pixel, as mixtures of one channel.

    The channels before it weigh the components, by the shared indicator m:
    P(x_c | x_<c) = sum_m P(m | x_<c) P_m(x_c | x_<c).

    Args:
      params: [..., M (1 + 2C + C(C-1)/2)] network outputs.
      x: [..., C] integers; the result for channel c does not depend on x_>=c.
      num_values: K.

    Returns:
      float32 [..., C, 3M]: the params of `discretized_logistic_mixture_log_prob` for one
      channel.
    """
    channels = x.shape[-1]
    log_weight, mean, log_scale, coefficients = _split_mixture(params, channels)
    v = scale(x, num_values)
    symbols = []
    for c in range(channels):
        mean_c, log_scale_c = (
            _condition_mean(mean, coefficients, v, c),
            log_scale[..., c],
        )
        symbols.append(jnp.stack([log_weight, mean_c, log_scale_c], axis=-1))
        log_weight += discretized_logistic_log_prob(
            mean_c, log_scale_c, x[..., None, c], num_values
        )
    found = jnp.stack(symbols, axis=-3)  # [..., C, M, 3]
    return found.reshape(*found.shape[:-2], -1)


def discretized_logistic_mixture_logits(
    params: jax.Array, x: jax.Array, channel: int, num_values: int
) -> jax.Array:
    """Log P(x_c = v | x_<c) for every value v of one channel of each pixel.

    The channels before it weigh the components: by the shared indicator m,
    P(x_c | x_<c) = sum_m P(m | x_<c) P_m(x_c | x_<c).

    Args:
      params: [..., M (1 + 2C + C(C-1)/2)] network outputs.
      x: [..., C] integers, of which the first `channel` are seen.
      channel: c.
      num_values: K.

    Returns:
      float32 [..., K].
    """
    logits, mean, log_scale, coefficients = _split_mixture(params, x.shape[-1])
    v = scale(x, num_values)
    log_weight = jax.nn.log_softmax(logits)  # [..., M]
    for c in range(channel):
        mean_c = _condition_mean(mean, coefficients, v, c)
        log_weight += discretized_logistic_log_prob(
            mean_c, log_scale[..., c], x[..., None, c], num_values
        )
    log_weight = jax.nn.log_softmax(log_weight)
    mean_c = _condition_mean(mean, coefficients, v, channel)
    log_px = discretized_logistic_log_prob(
        mean_c[..., None, :],
        log_scale[..., None, :, channel],
        jnp.arange(num_values)[:, None],
        num_values,
    )  # [..., K, M]
    return jax.nn.logsumexp(log_weight[..., None, :] + log_px, axis=-1)


def discretized_logistic_mixture_sample(
    key: jax.Array, params: jax.Array, channels: int, num_values: int
) -> jax.Array:
    """Samples pixels from the mixture: [..., outputs] -> integers [..., C]."""
    logits, mean, log_scale, coefficients = _split_mixture(params, channels)
    key_mixture, key_noise = jax.random.split(key)
    which = jax.random.categorical(key_mixture, logits)[..., None]
    noise = jax.random.logistic(key_noise, (*params.shape[:-1], channels))
    xs, v = [], jnp.zeros(noise.shape)
    for c in range(channels):
        mean_c = _condition_mean(mean, coefficients, v, c)
        mean_c = jnp.take_along_axis(mean_c, which, axis=-1)[..., 0]
        scale_c = jnp.exp(
            jnp.take_along_axis(log_scale[..., c], which, axis=-1)[..., 0]
        )
        real = mean_c + scale_c * noise[..., c]
        x_c = jnp.round((real + 1) * ((num_values - 1) / 2))
        xs.append(jnp.clip(x_c, 0, num_values - 1).astype(jnp.int32))
        v = v.at[..., c].set(scale(xs[-1], num_values))
    return jnp.stack(xs, axis=-1)
