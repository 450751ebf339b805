"""The one maximum-likelihood step, the same for every model."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gm import sharding
from gm.config import TrainConfig
from gm.likelihood import bits_per_dim
from gm.model import LikelihoodModel, init_params, log_prob
from gm.nn.conditioning import drop

# Apart from the numbers that a model's own keys are split by.
_FLIP, _MUTATE, _DROP = 0xF11B, 0x3A7E, 0xD309


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes."""

    step: jax.Array  # int32: updates tried
    params: Any
    ema_params: Any
    opt_state: Any
    key: jax.Array  # never changes; noise is fold_in(key, step)
    skipped: jax.Array  # int32: updates left out because they were not finite
    skipped_in_a_row: jax.Array  # int32
    rollbacks: jax.Array  # int32: enters the data order and the noise


def learning_rate_schedule(config: TrainConfig) -> Callable[[Any], Any]:
    """Linear warm-up, then constant or half a cosine down to zero."""
    warmup = min(config.warmup_steps, config.num_steps)
    rise = optax.linear_schedule(
        config.learning_rate / (warmup + 1), config.learning_rate, warmup
    )
    if config.schedule == "constant":
        rest = optax.constant_schedule(config.learning_rate)
    else:
        steps = max(config.num_steps - warmup, 1)
        rest = optax.cosine_decay_schedule(config.learning_rate, steps)
    return optax.join_schedules([rise, rest], [warmup])


def _keep(ok: jax.Array, new: Any, old: Any) -> Any:
    """The new tree if ok, else the old one."""
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _clip(max_norm: float) -> optax.GradientTransformation:
    """As optax.clip_by_global_norm; by a factor, not by a division for each entry."""

    def update(grads, _):
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor, grads)

    return optax.stateless(update)


def _adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """optax.scale_by_adam, whose moments stay as they were unless `ok`.

    The update is made of the moments that were kept: made of others, XLA would copy both
    moments of every parameter in each step.
    """

    def update(grads, state, params=None, *, ok, **_):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        state = _keep(ok, optax.ScaleByAdamState(count, mu, nu), state)
        mu_hat = optax.tree.bias_correction(state.mu, b1, count)
        nu_hat = optax.tree.bias_correction(state.nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, state

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam().init, update)


def _scheduled(
    rate: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    """optax.scale_by_learning_rate, whose count stays as it was unless `ok`."""
    inner = optax.scale_by_learning_rate(rate)

    def update(updates, state, params=None, *, ok, **_):
        updates, new = inner.update(updates, state, params)
        return updates, _keep(ok, new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW on clipped gradients; biases and gains do not decay.

    Its `update` takes `ok`: whether the gradients are finite, and its state may change.
    """

    def decays(params):  # also of layers in a loop, where they have an axis more
        return jax.tree.map_with_path(
            lambda path, p: p.ndim > 1 and path[-1].key not in ("bias", "scale"), params
        )

    adamw = optax.chain(
        _adam(),
        optax.add_decayed_weights(config.weight_decay, decays),
        _scheduled(learning_rate_schedule(config)),
    )
    return optax.chain(_clip(config.clip_norm), adamw)


def init_state(
    model: LikelihoodModel, optimizer: optax.GradientTransformationExtraArgs, seed: int
) -> TrainState:
    """The state before the first step."""
    params = init_params(model, jax.random.key(seed))

    def zero():  # a buffer each, since the state is donated
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=jax.random.fold_in(jax.random.key(seed), 1),
        skipped=zero(),
        skipped_in_a_row=zero(),
        rollbacks=zero(),
    )


def _is_product(primitive, *_, **__):
    return primitive.name in ("dot_general", "conv_general_dilated")


def _saving_memory(loss, config, mesh):
    """The same loss, of which less is kept from the forward to the backward pass.

    --remat keeps what matrix products and convolutions gave; the rest is computed anew.
    Parameters that are split are gathered anew.
    """
    policies = jax.checkpoint_policies
    if config.remat:
        return jax.checkpoint(loss, policy=_is_product)
    if mesh is not None and mesh.shape.get("fsdp", 1) > 1:
        anew = policies.save_anything_except_these_names(sharding.GATHERED)
        return jax.checkpoint(loss, policy=anew)
    return loss


def _gradient(model, config, mesh, params, batch, key):
    """Mean bits/dim over the batch, its gradient, and mean terms."""
    accumulate = config.accumulate

    def loss(params, part, key):
        params = sharding.gather(mesh, params)
        x, cond = part
        log_px, terms = log_prob(model, params, x, cond, key, train=True)
        means = {f"train/bpd/{k}": -jnp.mean(v) for k, v in terms.items()}
        means = jax.tree.map(lambda v: bits_per_dim(v, model.num_dims), means)
        return bits_per_dim(-jnp.mean(log_px), model.num_dims), means

    grad = jax.value_and_grad(_saving_memory(loss, config, mesh), has_aux=True)
    if accumulate == 1:
        return grad(params, batch, key)
    parts = jax.tree.map(lambda a: a.reshape(accumulate, -1, *a.shape[1:]), batch)
    parts = sharding.by_rows(mesh, parts, axis=1)

    def body(total, part):
        index, part = part
        value, grads = grad(params, part, jax.random.fold_in(key, index))
        value = (value, sharding.scatter(mesh, grads))
        return jax.tree.map(jnp.add, total, value), None

    shapes = jax.eval_shape(grad, params, jax.tree.map(lambda a: a[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(accumulate), parts))
    return jax.tree.map(lambda t: t / accumulate, total)


def _flip(key, x):
    """Mirrors images [B, H, W, C] left to right, each with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(x), 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)


def _mutate(key, x, rate, num_values):
    """Draws each symbol anew with a probability: uniformly, so that it may stay.

    What such a model learns is the background of a likelihood ratio: Ren et al. (2019),
    section 3.
    """
    where, what = jax.random.split(key)
    drawn = jax.random.randint(what, x.shape, 0, num_values).astype(x.dtype)
    return jnp.where(jax.random.bernoulli(where, rate, x.shape), drawn, x)


def _augment(config, key, x, num_values):
    """The examples of a batch as the step is to see them."""
    if config.augmentation == "flip":
        return _flip(jax.random.fold_in(key, _FLIP), x)
    if config.mutation_rate:
        key = jax.random.fold_in(key, _MUTATE)
        return _mutate(key, x, config.mutation_rate, num_values)
    return x


def train_step(
    model: LikelihoodModel,
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    state: TrainState,
    batch: tuple[jax.Array, jax.Array | None],
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on a batch (x [B, *shape], cond): nothing model-specific, ever.

    An update whose loss or gradient is not finite is left out and counted. On a mesh of
    several devices each of them sees its part of the batch.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.rollbacks), state.step)
    batch = (_augment(config, key, batch[0], model.num_values), batch[1])
    if config.cond_drop_rate and model.cond is not None and batch[1] is not None:
        drop_key = jax.random.fold_in(key, _DROP)
        batch = (batch[0], drop(drop_key, model.cond, batch[1], config.cond_drop_rate))
    batch = sharding.by_rows(mesh, batch)
    (bpd, terms), grads = _gradient(model, config, mesh, state.params, batch, key)
    grads = sharding.scatter(mesh, grads)
    grad_norm = optax.tree.norm(grads)
    ok = jnp.isfinite(bpd) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, ok=ok)
    params = _keep(ok, optax.apply_updates(state.params, updates), state.params)
    # The EMA forgets the initial parameters quickly: its decay warms up.
    decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.ema_params, params)
    bad = 1 - ok.astype(jnp.int32)
    state = state.replace(
        step=state.step + 1,
        params=params,
        ema_params=_keep(ok, ema, state.ema_params),
        opt_state=opt_state,
        skipped=state.skipped + bad,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
    )
    metrics = {"train/bpd": bpd, "grad_norm": grad_norm, **terms}
    return sharding.scatter(mesh, state), sharding.gather(mesh, metrics)


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimizer", "config", "draw", "mesh"),
    donate_argnames=("state",),
)
def train_steps(
    model: LikelihoodModel,
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    draw: Callable[[Any, Any], tuple[jax.Array, jax.Array | None]],
    state: TrainState,
    data: Any,
    xs: Any,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Several steps in one dispatch: a scan over `xs`, with batches draw(data, x)."""

    def body(state, x):
        return train_step(model, optimizer, config, state, draw(data, x), mesh)

    return jax.lax.scan(body, state, xs)
