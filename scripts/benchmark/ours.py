"""Contenders of gm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contender import LOSS_SHAPE, MIXTURES, NUM_VALUES, SEED, Contender
from jax.experimental.compilation_cache import compilation_cache

from gm import likelihood, sharding
from gm.audit import structure
from gm.audit.subject import parameters, subject
from gm.config import TrainConfig
from gm.data.dataset import ArraySplit, Dataset
from gm.data.order import batch_indices
from gm.evaluate import num_params
from gm.feed import make_feed
from gm.flops import count_flops
from gm.model import build, init_params, load_model, log_prob
from gm.train import init_state, make_optimizer, train_step, train_steps


def matmul(size: int = 1536) -> Contender:
    """The product of two matrices, for the peak of this core."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), jnp.float32)
    product = jax.jit(jnp.matmul)
    return Contender(lambda: product(a, a).block_until_ready(), flops=2.0 * size**3)


class _Training:
    """A model, random data and the state of training."""

    def __init__(
        self, model, shape, num_values, fields, batch_size, precision="float32"
    ):
        rng = np.random.default_rng(0)
        self.x = rng.integers(0, num_values, (4096, *shape), np.uint8)
        split = ArraySplit(self.x)
        self.data = Dataset("random", tuple(shape), num_values, "dim", *[split] * 3)
        self.model = build(model, self.data, fields, precision=precision)
        self.config = TrainConfig(batch_size=batch_size, num_steps=1_000_000)
        self.optimizer = make_optimizer(self.config)
        self.state = jax.jit(lambda: init_state(self.model, self.optimizer, 0))()
        self.step = 0

    def args(self, feed, length):
        """Of `train_steps`, for the next dispatch."""
        xs = feed.xs(self.step, length)
        made = (self.model, self.optimizer, self.config, feed.draw)
        return (*made, self.state, feed.data, xs)


def train(
    model: str,
    shape: Any,
    num_values: int,
    fields: Any,
    batch_size: int,
    steps: int,
    dispatches: int = 1,
) -> Contender:
    """Many steps in one dispatch, as `experiments.train` runs them."""
    t = _Training(model, shape, num_values, fields, batch_size)
    feed = make_feed(t.data, t.config, False, sharding.make_mesh())

    def turn():
        for _ in range(dispatches):
            t.state, values = train_steps(*t.args(feed, steps))
            jax.device_get(values)
            t.step += steps

    params = num_params(t.state.params)
    return Contender(turn, steps * dispatches, params, _model_flops(t))


def train_by_calls(
    model: str,
    shape: Any,
    num_values: int,
    fields: Any,
    batch_size: int,
    steps: int,
    dispatches: int = 1,
) -> Contender:
    """The usual loop: a call for each batch, fed from numpy, the loss read every time."""
    t = _Training(model, shape, num_values, fields, batch_size)
    # Closed over the model, as most do: hashing it for every call would cost more.
    closed = functools.partial(train_step, t.model, t.optimizer, t.config)
    jitted = jax.jit(closed, donate_argnums=0)

    def turn():
        for _ in range(steps * dispatches):
            index = batch_indices(0, len(t.x), batch_size, t.step)[0]
            t.state, values = jitted(t.state, (t.x[index], None))
            float(values["train/bpd"])
            t.step += 1

    return Contender(turn, steps * dispatches, num_params(t.state.params))


def _model_flops(t: _Training) -> float:
    """FLOPs of a step, as gm.flops counts them, without what is computed anew."""
    anew = ("scan_layers", "remat")  # fields that trade it for memory
    model = t.model.clone(**{name: False for name in anew if hasattr(t.model, name)})

    def loss(params, x, key):
        return log_prob(model, params, x, None, key, train=True)[0].sum()

    x = jnp.zeros((t.config.batch_size, *model.shape), jnp.int32)
    args = jax.eval_shape(lambda: t.state.params), x, jax.random.key(0)
    return count_flops(jax.make_jaxpr(jax.grad(loss))(*args).jaxpr)[0]


def _device(notes):
    """Adds what the device is, and the most of its memory that was taken."""
    device = jax.local_devices()[0]
    notes["device"] = device.device_kind
    taken = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    notes["peak memory, GB"] = round(taken / 1e9, 2)


def train_on_device(
    model: str,
    shape: Any,
    num_values: int,
    fields: Any,
    batch_size: int,
    precision: str,
    steps: int,
) -> Contender:
    """Many steps in one dispatch, on the accelerator."""
    t = _Training(model, shape, num_values, fields, batch_size, precision)
    feed = make_feed(t.data, t.config, False, sharding.make_mesh())
    notes: dict[str, Any] = {}

    def turn():
        t.state, values = train_steps(*t.args(feed, steps))
        notes["bits/dim"] = float(jax.device_get(values)["train/bpd"][-1])
        t.step += steps
        _device(notes)

    params = num_params(t.state.params)
    return Contender(turn, steps, params, _model_flops(t), notes)


def sample_on_device(
    model: str,
    shape: Any,
    num_values: int,
    fields: Any,
    batch_size: int,
    precision: str,
) -> Contender:
    """A batch of samples, on the accelerator."""
    cls = load_model(model).Model
    given: dict[str, Any] = dict(shape=tuple(shape), num_values=num_values)
    module = cls(**given, precision=precision, **fields)
    params = jax.jit(lambda: init_params(module, jax.random.key(0)))()
    draw, notes = _draws(module, params, batch_size), dict[str, Any]()

    def turn():
        draw()
        _device(notes)

    return Contender(turn, 1, num_params(params), notes=notes)


def _draws(model, params, batch_size):
    """A function that draws a batch, with other noise each time."""
    apply = jax.jit(
        lambda params, key: model.apply(
            {"params": params}, batch_size, rngs={"sample": key}, method="sample"
        )
    )
    count = iter(range(10**9))
    return lambda: apply(params, jax.random.key(next(count))).block_until_ready()


def sample(
    model: str, shape: Any, num_values: int, fields: Any, batch_size: int
) -> Contender:
    """Cached sampling; on 8 x 8 pixels it is checked against the whole network."""
    cls = load_model(model).Model
    module = cls(shape=tuple(shape), num_values=num_values, **fields)
    params = jax.jit(lambda: init_params(module, jax.random.key(0)))()
    small = subject(cls, tuple(fields.items()), "image", "perturbed")
    checks = [str(m) for m in structure.cache(small) if not m.passed]
    if checks:
        raise SystemExit(f"{model}: {checks[0]}")
    notes = {"cached samples equal to full recomputation": "all"}
    turn = _draws(module, params, batch_size)
    return Contender(turn, batch_size, num_params(params), notes=notes)


def sample_flow(
    model: str, shape: Any, inversion: str, batch_size: int = 16
) -> Contender:
    """Samples of an autoregressive flow whose parameters are not the initial ones."""
    cls = load_model(model).Model
    module = cls(shape=tuple(shape), num_values=256, inversion=inversion)
    params = parameters(module, "perturbed")
    turn = _draws(module, params, batch_size)
    return Contender(turn, batch_size, num_params(params))


def _loss(function, size):
    rng = np.random.default_rng(SEED)
    out = jnp.asarray(rng.standard_normal((*LOSS_SHAPE[:3], size)), jnp.float32)
    x = jnp.asarray(rng.integers(0, NUM_VALUES, LOSS_SHAPE), jnp.int32)
    both = jax.jit(jax.value_and_grad(lambda out: -function(out, x).mean()))
    return lambda: jax.block_until_ready(both(out))


def mixture_loss() -> Contender:
    """Value and gradient, and the largest error of the log-mass of a bin."""
    size = likelihood.mixture_channels(MIXTURES, LOSS_SHAPE[3])
    turn = _loss(
        lambda out, x: likelihood.discretized_logistic_mixture_log_prob(
            out, x, NUM_VALUES
        ),
        size,
    )
    from errors import largest_error

    def log_mass(mean, log_scale, x):
        found = likelihood.discretized_logistic_log_prob(
            jnp.asarray(mean), jnp.asarray(log_scale), jnp.asarray(x), NUM_VALUES
        )
        return np.asarray(found)

    return Contender(turn, notes={"largest error, nats": largest_error(log_mass)})


def softmax_loss() -> Contender:
    """Value and gradient of a table over the values."""

    def log_px(out, x):
        logits = out.reshape(*x.shape, NUM_VALUES)
        return likelihood.categorical_log_prob(logits, x)

    return Contender(_loss(log_px, NUM_VALUES * LOSS_SHAPE[3]))


def compile_step(
    model: str, shape: Any, num_values: int, fields: Any, batch_size: int
) -> Contender:
    """Traces and compiles a dispatch of training anew, without the persistent cache."""
    t = _Training(model, shape, num_values, fields, batch_size)
    feed = make_feed(t.data, t.config, False, sharding.make_mesh())
    notes: dict[str, Any] = {}
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or it would stay in use, as it was before

    def turn():
        jax.clear_caches()
        compiled = train_steps.lower(*t.args(feed, 4)).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        notes["temporary memory, MB"] = round(memory / 1e6, 1)

    return Contender(turn, params=num_params(t.state.params), notes=notes)
