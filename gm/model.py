"""The contract that a model fulfils, and how a model is found by its name.

A model is one file with `Model` (a Flax linen module, a subclass of one of the
families) and `TINY` (keyword arguments for tests and smoke runs). Its dataclass fields
are its configuration; there is no registry.
"""

import importlib
import math
import pkgutil
import sysconfig
import traceback
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.data.dataset import Dataset
from gm.errors import InputError, did_you_mean
from gm.fields import fields
from gm.spec import CondSpec, Estimate


class LikelihoodModel(nn.Module):
    """A probability mass function over integers: what every model is.

    Subclasses define `setup` and, through their family or by themselves,

      log_prob(x [B, *shape] integers, cond=None, *, train=False)
          -> (log_px float32[B] nats, terms); sum(terms.values()) == log_px
      sample(num_samples, cond=None, *, temperature=1.0) -> integers [N, *shape]

    Randomness comes from the rng streams `sample` and `dropout`. An example's value
    never depends on its neighbours in the batch. A temperature other than 1 leaves the
    likelihood model.
    """

    shape: tuple[int, ...]
    num_values: int
    cond: CondSpec | None = None
    precision: str = "float32"  # of activations; parameters, likelihoods: float32

    estimate: ClassVar[Estimate]
    family: ClassVar[str] = ""  # autoregressive, flow or latent-variable
    takes_cond: ClassVar[bool] = True  # False: a model of p(x) alone
    # Fields that change how a number is computed, not the parameters: `evaluate --set`.
    evaluation_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def num_dims(self) -> int:
        """D, the number of symbols of an example."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype that the network computes in."""
        return jnp.dtype(self.precision)

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) in nats, as `estimate` says, and the terms that it is the sum of."""
        raise TypeError(f"{type(self).__name__} defines no log_prob")

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws integers [num_samples, *shape]."""
        raise TypeError(f"{type(self).__name__} defines no sample")


def model_names() -> list[str]:
    """Names of the models that come with gm."""
    package = importlib.import_module("gm.models")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def load_model(name: str) -> types.ModuleType:
    """Imports the file of a model: `vae` is gm.models.vae, others your own modules.

    Raises:
      InputError: no such module, it cannot be imported, or its `Model` is not a
        LikelihoodModel.
    """
    names = model_names()
    path = f"gm.models.{name}" if name in names else name
    try:
        module = importlib.import_module(path)
    except Exception as error:
        where = _raised_in(error)
        if where:
            what = " ".join(str(error).split())[:200]
            raise InputError(
                f"--model={name}: {where}: {type(error).__name__}: {what}"
            ) from error
        if name.endswith(".py"):
            raise InputError(
                f"--model={name}: give the import path of a file, not its name, such as "
                f"--model={name.removesuffix('.py').lstrip('./').replace('/', '.')}"
            ) from None
        raise InputError(
            f"--model={name}: no such model{did_you_mean(name, names)} "
            f"(one of {', '.join(names)}, or the import path of your own file)"
        ) from None
    end = "end the file with Model = YourClass"
    if not hasattr(module, "Model"):
        raise InputError(f"--model={name}: {path} has no Model; {end}")
    cls = module.Model
    if not isinstance(cls, type) or not issubclass(cls, LikelihoodModel):
        what = cls.__name__ if isinstance(cls, type) else repr(cls)[:80]
        wanted = "a subclass of gm.model.LikelihoodModel"
        raise InputError(f"--model={name}: Model is {what}, not {wanted}; {end}")
    if cls.log_prob is LikelihoodModel.log_prob:
        raise InputError(
            f"--model={name}: {cls.__name__} defines no log_prob; "
            "inherit it from a family or define it"
        )
    return module


def _raised_in(error: Exception) -> str:
    """file:line at which an import failed; "" if no line of any file had been run."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)[2:]  # after import_module
    inside = [f for f in frames if not f.filename.startswith("<frozen ")]
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    own = [f for f in inside if not f.filename.startswith(libraries)]
    return next((f"{f.filename}:{f.lineno}" for f in (own or inside)[::-1]), "")


def build(
    name: str,
    dataset: Dataset,
    settings: Mapping[str, Any] | None = None,
    *,
    conditional: bool = False,
    precision: str = "float32",
) -> LikelihoodModel:
    """Makes the module that models a data set.

    Args:
      name: as for `load_model`.
      dataset: gives shape, number of values and the condition.
      settings: the model's own fields.
      conditional: whether to condition on what the data set offers.
      precision: "float32" or "bfloat16".

    Raises:
      InputError: unknown model or a configuration that the model refuses.
    """
    cls = load_model(name).Model
    if conditional and dataset.cond is None:
        raise InputError(
            f"--conditional: the data set {dataset.name} has nothing to condition on"
        )
    if conditional and not cls.takes_cond:
        raise InputError(
            f"--conditional: {cls.__name__} takes no condition (takes_cond = False)"
        )
    model = cls(
        shape=dataset.shape,
        num_values=dataset.num_values,
        cond=dataset.cond if conditional else None,
        precision=precision,
        **ending(cls, dataset.end),
        **(settings or {}),
    )
    check_fields(model, settings or {})
    return model


def ending(cls: type, end: int | None) -> dict[str, Any]:
    """The field that tells a model where documents end, if it can be told."""
    return {"end": end} if hasattr(cls, "end") else {}


def check_fields(model: LikelihoodModel, settings: Mapping[str, Any]) -> None:
    """Refuses settings of which no network can be made, such as width=0.

    Args:
      model: with these settings, and perhaps other fields that are sound.
      settings: what --set gave.

    Raises:
      InputError: the model refuses them, cannot be traced, or has empty parameters.
    """
    name = type(model).__name__
    error = _fault(model)
    if error is None:
        return
    if isinstance(error, InputError) or not settings:
        raise error  # without settings the model itself is broken: its traceback helps
    zeros = _blamed(model, settings)
    if zeros:
        told = " ".join(f"--set={k}=0" for k in zeros)
        raise InputError(
            f"{told}: {name} cannot be built so; give 1 or more"
        ) from error
    told = ", ".join(f"--set={k}={v}" for k, v in settings.items())
    what = " ".join(str(error).split())[:200]
    raise InputError(
        f"{told}: {name} cannot be built so ({type(error).__name__}: {what})"
    ) from error


def _fault(model):
    """Why a model has no parameters, or empty ones: an exception, or None."""
    try:
        params = param_shapes(model)
    except Exception as error:
        return error
    if all(leaf.size for leaf in jax.tree.leaves(params)):
        return None
    return ValueError("some of its parameters would be empty")


def _blamed(model, settings):
    """The fields set to 0 that are why: with their defaults the model can be built."""
    own = fields(type(model))
    zeros = [k for k, v in settings.items() if type(v) is int and v == 0 and k in own]
    whole = model.clone(**{k: own[k].default for k in zeros})
    if not zeros or _fault(whole):
        return []
    # One alone, or else only all together.
    return [k for k in zeros if _fault(whole.clone(**{k: 0}))] or zeros


def example(model: LikelihoodModel, batch_size: int = 1) -> tuple[Any, Any]:
    """Zeros of the shape and type of a batch (x, cond)."""
    x = jnp.zeros((batch_size, *model.shape), jnp.int32)
    if model.cond is None:
        return x, None
    if model.cond.kind == "class":
        return x, jnp.zeros((batch_size,), jnp.int32)
    if model.cond.kind == "image":
        return x, jnp.zeros((batch_size, *model.cond.shape), jnp.int32)
    return x, jnp.zeros((batch_size, model.cond.size), jnp.float32)


def check_examples(
    model: LikelihoodModel, x: np.ndarray, cond: np.ndarray | None, done: str
) -> None:
    """Refuses what a model has no probability for.

    Args:
      model: has a shape, a number of values and perhaps a condition.
      x: examples, integers [N, *shape].
      cond: [N, ...] or None.
      done: what cannot be done with them, such as "compressed".

    Raises:
      InputError: another type or shape, a value out of range, or another condition.
    """
    if x.dtype.kind not in "uib" or x.shape[1:] != model.shape or not len(x):
        raise InputError(
            f"{x.dtype} {x.shape} cannot be {done}: the run models integers "
            f"[N, {', '.join(map(str, model.shape))}]"
        )
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= model.num_values:
        raise InputError(
            f"values from {low} to {high} cannot be {done}: the run models "
            f"0 to {model.num_values - 1}"
        )
    check_conditions(model, cond, len(x))


def check_conditions(model: LikelihoodModel, cond: Any, count: int) -> None:
    """InputError unless `cond` is what the model needs for `count` examples."""
    spec = model.cond
    if spec is None:
        if cond is not None:
            raise InputError("the run is unconditional: give no condition")
        return
    told = f"the run's condition is {spec.label}: give one for each of {count} examples"
    if cond is None:
        raise InputError(told)
    cond = np.asarray(cond)
    own = {"class": (), "real": (spec.size,), "image": spec.shape}[spec.kind]
    kinds = "fiu" if spec.kind == "real" else "iu"
    if cond.dtype.kind not in kinds or cond.shape != (count, *own):
        raise InputError(f"{told}, {[count, *own]}, not {cond.dtype} {cond.shape}")
    if spec.kind == "real":
        good = np.isfinite(cond).all() or spec.optional
    else:
        least = spec.size + spec.optional if spec.kind == "class" else spec.num_values
        good = not cond.size or (cond.min() >= 0 and cond.max() < least)
    if not good:
        raise InputError(f"{told}; these are from {cond.min()} to {cond.max()}")


def init_params(model: LikelihoodModel, key: jax.Array) -> Any:
    """Initial parameters: a pytree of float32 arrays."""
    params_key, sample_key, dropout_key = jax.random.split(key, 3)
    rngs = {"params": params_key, "sample": sample_key, "dropout": dropout_key}
    return model.init(rngs, *example(model), method="log_prob")["params"]


def param_shapes(model: LikelihoodModel) -> Any:
    """Shapes and types of the parameters; nothing is computed."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def count_params(model: LikelihoodModel) -> int:
    """The number of parameters; nothing is computed."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))


def log_prob(
    model: LikelihoodModel,
    params: Any,
    x: jax.Array,
    cond: jax.Array | None,
    key: jax.Array,
    *,
    train: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`model.log_prob` as a pure function of parameters and a key."""
    sample_key, dropout_key = jax.random.split(key)
    rngs = {"sample": sample_key, "dropout": dropout_key}
    value: Any = model.apply(
        {"params": params}, x, cond, train=train, rngs=rngs, method="log_prob"
    )
    return value
