"""What is audited, where, and what a check says of it.

A check is given a subject: a distribution on a space, with `log_prob` and `sample` as
functions of a key, and, if it is a gm model, the methods that its family declares. It
yields measured figures, each with the largest value that passes.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import model as gm_model
from gm import train
from gm.autoregressive import AutoregressiveModel
from gm.config import TrainConfig
from gm.flow import FlowModel
from gm.latent import LatentModel, SampledLatents
from gm.model import LikelihoodModel
from gm.spec import CondSpec, Estimate

MAX_STATES = 20_000  # of a space that is enumerated
MANY = 64  # examples, above which running takes longer than compiling


@dataclasses.dataclass(frozen=True)
class Space:
    """Where a distribution lives: integers of a shape, given a condition."""

    shape: tuple[int, ...]
    num_values: int
    cond: CondSpec | None = None

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        given = f" given {self.cond.label}" if self.cond else ""
        return f"{size} of {self.num_values}{given}"

    @property
    def num_states(self) -> int:
        """How many different x there are."""
        return self.num_values ** math.prod(self.shape)

    def states(self) -> np.ndarray:
        """Every x, int32 [num_states, *shape]; ValueError above MAX_STATES."""
        if self.num_states > MAX_STATES:
            raise ValueError(f"{self} has too many states to enumerate")
        dims = math.prod(self.shape)
        grid = itertools.product(range(self.num_values), repeat=dims)
        return np.asarray(list(grid), np.int32).reshape(-1, *self.shape)

    def conditions(self) -> np.ndarray | None:
        """Every class; four random images; of real coordinates both ends, the middle
        and a random point.
        """
        if self.cond is None:
            return None
        if self.cond.kind == "class":
            return np.arange(self.cond.size, dtype=np.int32)
        if self.cond.kind == "image":
            rng, shape = np.random.default_rng(0), (4, *self.cond.shape)
            return rng.integers(0, self.cond.num_values, shape, np.int32)
        low, high = np.asarray(self.cond.low), np.asarray(self.cond.high)
        u = np.random.default_rng(0).random(self.cond.size)
        points = [low, high, (low + high) / 2, low + u * (high - low)]
        return np.asarray(points, np.float32)

    def batch(self, size: int, seed: int = 0) -> tuple[jax.Array, jax.Array | None]:
        """Random x [size, *shape] and, where there is one, a condition for each."""
        rng = np.random.default_rng(seed)
        x = rng.integers(0, self.num_values, (size, *self.shape), np.int32)
        cond = self.conditions()
        if cond is None:
            return jnp.asarray(x), None
        return jnp.asarray(x), jnp.asarray(cond[np.arange(size) % len(cond)])


CLASSES = CondSpec("class", 3)
REALS = CondSpec("real", 2, ("a", "b"), (0.0, -1.0), (1.0, 5.0))
# All but "image" and "colour" can be enumerated; these have what only larger shapes
# have: convolutions, several scales, and every channel of a pixel.
SPACES = {
    "pixels": Space((2, 2, 1), 3),
    "sequence": Space((4,), 3, CLASSES),
    "binary": Space((6,), 2),
    "grey": Space((1, 1, 1), 256),
    "colours": Space((1, 1, 2), 40, CLASSES),
    "image": Space((8, 8, 1), 4),
    "colour": Space((4, 4, 3), 256, CLASSES),
    "vector": Space((6,), 3, REALS),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A figure: it passes if it is at most `limit`; NaN does not."""

    what: str
    value: float
    limit: float
    where: str = ""  # the subject's name

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limit."""
        return bool(self.value <= self.limit)

    @property
    def severity(self) -> float:
        """How bad: above 1 (or infinite) where it fails; the largest one is shown."""
        if not math.isfinite(self.value) or (not self.passed and self.limit <= 0):
            return math.inf
        return self.value / self.limit if self.limit > 0 else 0.0

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.what} {self.value:.3g} (limit {self.limit:.2g})"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a check found: "pass", "fail", or "skip" where it does not apply."""

    check: str
    status: str
    figure: str

    def __str__(self) -> str:
        return f"{self.check}: {self.status}: {self.figure}"


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A distribution to examine.

    log_prob(x [B, *shape], cond, key) -> nats [B], what `estimate` says of log P(x);
    sample(key, n, cond) -> integers [n, *shape]. `model` and `params` are None for a
    plain pair of functions.
    """

    name: str
    space: Space
    estimate: Estimate
    log_prob: Callable[..., Any]
    sample: Callable[..., Any] | None
    model: Any = None  # a LikelihoodModel
    params: Any = None

    def has(self, *methods: str) -> bool:
        """Whether the model defines all of these methods."""
        return defines(type(self.model), *methods)

    def terms(self, x: jax.Array, cond: Any, key: jax.Array) -> dict[str, jax.Array]:
        """The terms that log_prob is the sum of, each nats [B]."""
        return jitted_log_prob(self.model, self.params, x, cond, key)[1]

    def call(self, method: str, *args: Any, key: jax.Array | None = None) -> Any:
        """A method of the model, jitted once for all parameters."""
        apply = _jitted(_apply, "model", "method")
        return apply(self.model, method, self.params, args, key)


def defines(cls: type, *methods: str) -> bool:
    """Whether a class defines all of these, beyond what a family declares."""
    declared_by = (AutoregressiveModel, FlowModel, LatentModel, SampledLatents)
    bases = (LikelihoodModel, *declared_by)
    declared = [getattr(base, m, None) for m in methods for base in bases]
    found = [getattr(cls, m, None) for m in methods]
    return all(f is not None and f not in declared for f in found)


def quick_jit(
    function: Callable[..., Any], *static: str, quick: bool = True
) -> Callable[..., Any]:
    """jax.jit that compiles in a third of the time, for what is run a few times."""
    options = None
    if (
        jax.default_backend() == "cpu"
    ):  # as well as ever otherwise, whatever XLA_FLAGS say
        options = {"xla_backend_optimization_level": 0 if quick else 3}
    jitted: Callable[..., Any] = jax.jit(
        function, static_argnames=static, compiler_options=options
    )
    return jitted


_jitted = functools.cache(quick_jit)


def _apply(model, method, params, args, key):
    rngs = None if key is None else {"sample": key}
    return model.apply({"params": params}, *args, rngs=rngs, method=method)


def jitted_log_prob(
    model: LikelihoodModel, params: Any, x: jax.Array, cond: Any, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`gm.model.log_prob`, compiled once for a model and a shape."""
    # What is exact is asked once for many examples, what is drawn again and again.
    quick = model.estimate is Estimate.EXACT or len(x) <= MANY
    log_prob = _jitted(gm_model.log_prob, "model", quick=quick)
    found: tuple[jax.Array, dict[str, jax.Array]] = log_prob(
        model, params, x, cond, key
    )
    return found


def _log_prob(*args):
    return jitted_log_prob(*args)[0]


def _draw(model, num_samples, params, key, cond):
    rngs = {"sample": key}
    return model.apply(
        {"params": params}, num_samples, cond, rngs=rngs, method="sample"
    )


def _sample(model, params, key, num_samples, cond):
    draw = _jitted(_draw, "model", "num_samples", quick=num_samples <= MANY)
    return draw(model, num_samples, params, key, cond)


# How far the parameters lie from the initial ones; zero-initialised layers hide bugs.
_NOISE = {"initial": 0.0, "perturbed": 0.1, "large": 1.0}


@functools.lru_cache(maxsize=64)
def parameters(model: LikelihoodModel, kind: str) -> Any:
    """Parameters: "initial", or not special: "perturbed", "large", or "trained"."""
    if kind == "trained":
        return fitting(model)()
    init = _jitted(gm_model.init_params, "model")
    leaves, tree = jax.tree.flatten(init(model, jax.random.key(0)))
    rng = np.random.default_rng(1)
    noise = [_NOISE[kind] * rng.standard_normal(leaf.shape) for leaf in leaves]
    noisy = [np.asarray(p + n, np.float32) for p, n in zip(leaves, noise, strict=True)]
    return jax.device_put(jax.tree.unflatten(tree, noisy))


def training_data(space: Space, size: int = 64) -> tuple[jax.Array, jax.Array | None]:
    """Four patterns, each symbol replaced with probability 0.2: (x, cond) to learn."""
    rng = np.random.default_rng(2)
    x, cond = space.batch(size)
    patterns = rng.integers(0, space.num_values, (4, *space.shape), np.int32)
    kept = rng.random(x.shape) > 0.2
    return jnp.where(kept, patterns[np.arange(size) % 4], x), cond


@functools.lru_cache(maxsize=64)
def fitting(model: LikelihoodModel, num_steps: int = 40) -> Callable[[], Any]:
    """A compiled function: parameters after gm's own training on data with structure."""
    config = TrainConfig(learning_rate=0.02, warmup_steps=0, schedule="constant")
    optimizer = train.make_optimizer(config)
    data = training_data(Space(model.shape, model.num_values, model.cond))

    def fit():
        def body(state, _):
            return train.train_step(model, optimizer, config, state, data)

        state = train.init_state(model, optimizer, 0)
        return jax.lax.scan(body, state, length=num_steps)[0].params

    return quick_jit(fit)


def space_for(cls: Any, name: str) -> Space:
    """One of SPACES, without its condition where the class takes none."""
    space = SPACES[name]
    return space if cls.takes_cond else dataclasses.replace(space, cond=None)


@functools.lru_cache(maxsize=64)
def subject(cls: Any, settings: tuple, space: str, kind: str) -> Subject:
    """A model of a class on one of SPACES, with parameters of some kind.

    Raises:
      InputError: the model refuses the space.
    """
    where = space_for(cls, space)
    model = cls(
        shape=where.shape,
        num_values=where.num_values,
        cond=where.cond,
        **dict(settings),
    )
    params = parameters(model, kind)
    return Subject(
        f"{where}, {kind}",
        where,
        model.estimate,
        functools.partial(_log_prob, model, params),
        functools.partial(_sample, model, params),
        model,
        params,
    )
