"""Samples of a trained model, and the conditions that are asked for.

The noise of a sample is a function of (seed, its number) alone: neither its neighbours
nor the batch size change it, and two samples of one number differ by their conditions
only.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import sharding
from gm.errors import InputError, check_seed, check_whole, did_you_mean
from gm.model import LikelihoodModel
from gm.spec import CondSpec

# What leaves the model, where each of them does not, and what may be given.
OUTSIDE = {"temperature": 1.0, "top_p": 1.0, "guidance": 0.0}
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("a number above 0", lambda v: 0 < v < math.inf),
    "top_p": ("a number above 0, 1 at most", lambda v: 0 < v <= 1),
    "guidance": ("0 or more", lambda v: 0 <= v < math.inf),
}


def check_outside(options: Mapping[str, Any]) -> None:
    """InputError for a temperature, nucleus or guidance that cannot be meant."""
    for name, value in options.items():
        told, allows = _ALLOWED.get(name, ("", lambda v: True))
        if told and not (isinstance(value, numbers.Real) and allows(value)):
            raise InputError(f"--{name}={value}: give {told}")


def sampling_options(model: LikelihoodModel) -> set[str]:
    """What the model's `sample` can be asked for, such as temperature or guidance."""
    return set(inspect.signature(type(model).sample).parameters)


def check_options(model: LikelihoodModel, options: Mapping[str, Any]) -> None:
    """InputError for what the model's `sample` has no way to do, or cannot be meant."""
    able = sampling_options(model) - {"self", "num_samples", "cond", "prefix"}
    for name, value in options.items():
        if name not in able:
            known = ", ".join(f"--{n}" for n in sorted(able))
            text = " ".join(str(value).split())[:40]
            raise InputError(
                f"--{name}={text}: not defined for {type(model).__name__}, a model of "
                f"the {model.family} family; it has {known}"
            )
    check_outside(options)
    if options.get("guidance") and not (model.cond and model.cond.optional):
        raise InputError(
            f"--guidance={options['guidance']}: needs a run that was also trained "
            "without its condition (train --conditional --cond_drop_rate=0.1)"
        )


@functools.partial(jax.jit, static_argnames=("model", "options", "mesh"))
def _draw(model, params, key, numbers, cond, prefix, options, mesh):
    params = sharding.gather(mesh, params)

    def one(number, cond, prefix):
        given: dict[str, Any] = dict(options)
        if prefix is not None:
            given["prefix"] = prefix[None]
        cond = None if cond is None else cond[None]
        rngs = {"sample": jax.random.fold_in(key, number)}
        x = model.apply(
            {"params": params}, 1, cond, **given, rngs=rngs, method="sample"
        )
        return x[0]

    return sharding.gather(mesh, jax.vmap(one)(numbers, cond, prefix))


def draw_batches(
    model: LikelihoodModel,
    params: Any,
    count: int,
    cond: np.ndarray | None = None,
    *,
    numbers: np.ndarray | None = None,
    prefix: np.ndarray | None = None,
    batch_size: int = 250,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    **options: float,
) -> Iterator[np.ndarray]:
    """Draws samples, a batch at a time.

    Args:
      model, params: what is sampled.
      count: N.
      cond: a condition of each sample, [N, ...]; None for an unconditional model.
      numbers: int [N], of the noise; None: 0 to N - 1.
      prefix: [P] integers that the first symbols of every sample are held to.
      batch_size: samples at a time.
      seed: of the noise.
      mesh: of devices that share each batch; None: one device draws it.
      options: of the model's `sample`, such as temperature.

    Yields:
      int32 [n, *shape], N of them in all.

    Raises:
      InputError: a number of samples, a batch or a seed that cannot be.
    """
    check_whole(1, num_samples=count, batch_size=batch_size)
    check_seed(seed)
    key = jax.random.key(seed)
    numbers = np.arange(count) if numbers is None else numbers
    batch_size = min(batch_size, count)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
        params, key = sharding.place(mesh, params), sharding.replicate(mesh, key)
    settings = tuple(sorted(options.items()))
    for start in range(0, count, batch_size):
        # The last batch is filled up: one shape, one compilation.
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        given = None if cond is None else cond[rows]
        held = None if prefix is None else np.tile(prefix, (len(rows), 1))
        batch = (numbers[rows], given, held)
        if mesh is None:
            batch = jax.tree.map(jnp.asarray, batch)
        else:
            batch = sharding.split(mesh, batch)
        x = _draw(model, params, key, *batch, settings, mesh)
        yield np.asarray(x)[: count - start]


def draw(
    *args: Any, progress: Callable[[int], None] | None = None, **options: Any
) -> Any:
    """As `draw_batches`, in one array; `progress` is called with how many are done."""
    parts: list[np.ndarray] = []
    for part in draw_batches(*args, **options):
        parts.append(part)
        if progress is not None:
            progress(sum(map(len, parts)))
    return np.concatenate(parts)


def as_lines(x: np.ndarray, symbols: str | None, unit: str) -> list[str]:
    """Samples [N, L] as text: documents up to their end; numbers where there are none.

    Args:
      x: integers.
      symbols: symbols[i] is the character of value i, or None.
      unit: of the data set; "object" is of documents, where it has symbols.
    """
    if not symbols:
        return [" ".join(map(str, row)) for row in x]
    if unit == "object":
        from gm.data.texts import decode

        return decode(x, symbols)
    return ["".join(symbols[v] for v in row) for row in x]


def encode_prompt(text: str, symbols: str, room: int, end: int | None) -> np.ndarray:
    """The integers [P] that a text begins with.

    Args:
      text: what is asked for.
      symbols: of the run; symbols[i] is the character of value i.
      room: symbols of an example.
      end: the value that ends a document, or None.

    Raises:
      InputError: a character that the run does not know, or too many.
    """
    told = f"--prompt={text!r}"
    for char in text:
        if char not in symbols:
            raise InputError(
                f"{told}: {char!r} is not one of the {len(symbols)} characters of the "
                f"run: {symbols!r}"
            )
        if end is not None and char == symbols[end]:
            raise InputError(f"{told}: {char!r} would end the text; leave it out")
    if len(text) >= room:
        raise InputError(
            f"{told}: {len(text)} characters; the run has texts of {room}, so give less"
        )
    return np.asarray([symbols.index(c) for c in text], np.int32)


def parse_conditions(spec: CondSpec, text: str) -> list[tuple[Any, Any]]:
    """Reads conditions: 'A;B' is two of them, 'A..B' all from one to the other.

    Args:
      spec: of the run.
      text: each a class by name or number; or coordinates in their order, or by name
        (`width=0.5,height=3/16`; one that is not named is 0, if it can be).

    Returns:
      For each (first, last): equal, but for 'A..B'. int32 [] or float32 [size].

    Raises:
      InputError: unknown or out of range; says what would be right.
    """
    rows = []
    for item in text.split(";"):
        ends = [_parse(spec, part.strip(), text) for part in item.split("..")]
        if len(ends) > 2:
            raise InputError(f"--cond={text}: A..B has two ends, {item!r} more")
        if len(ends) == 2 and spec.kind == "class":
            raise InputError(
                f"--cond={text}: there is nothing between two classes; separate them by ;"
            )
        rows.append((ends[0], ends[-1]))
    return rows


def _parse(spec, item, text):
    return (_label if spec.kind == "class" else _point)(spec, item, text)


def _label(spec, item, text):
    names = list(spec.names)
    label = -1
    if item in names:
        label = names.index(item)
    elif item.isdecimal() and len(item) < 10:
        label = int(item)
    if not 0 <= label < spec.size:
        told = ", ".join(names) if names else f"0 to {spec.size - 1}"
        raise InputError(f"--cond={text}: {item!r} is no class; give one of {told}")
    return np.int32(label)


def _number(item, text):
    top, slash, below = item.partition("/")
    try:  # no Fraction: that of 1e9999999 has as many digits
        number = float(top) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"--cond={text}: {item.strip()!r} is no number; give such as 0.25 or 4/16"
        )
    return number


def _point(spec, item, text):
    """Coordinates float32 [size], in their order or by name, within their ranges."""
    names = spec.names or tuple(map(str, range(spec.size)))
    ranges = dict(zip(names, zip(spec.low, spec.high, strict=True), strict=True))
    told = ", ".join(f"{n} ({a:g} to {b:g})" for n, (a, b) in ranges.items())
    values = {}
    parts = [part.strip() for part in item.split(",")]
    if "=" in item:
        for part in parts:
            name, _, number = (p.strip() for p in part.partition("="))
            if name not in ranges:
                hint = did_you_mean(name, names)
                raise InputError(
                    f"--cond={text}: no condition is called {name!r}{hint}; give {told}"
                )
            if name in values:
                raise InputError(f"--cond={text}: {name} is given twice")
            values[name] = _number(number, text)
        for name, (low, high) in ranges.items():
            if name not in values and not low <= 0 <= high:
                raise InputError(f"--cond={text}: {name} is missing; give {told}")
            values.setdefault(name, 0.0)
    elif len(parts) != spec.size:
        raise InputError(f"--cond={text}: give {spec.size} numbers: {told}")
    else:
        values = {n: _number(p, text) for n, p in zip(names, parts, strict=True)}
    for name, (low, high) in ranges.items():
        if not np.float32(low) <= np.float32(values[name]) <= np.float32(high):
            raise InputError(
                f"--cond={text}: {name} is {values[name]:g}; give {low:g} to {high:g}"
            )
    return np.asarray([values[n] for n in names], np.float32)


def lay_out(
    rows: list[tuple[Any, Any]], columns: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Conditions [R columns, ...] of a grid with a row for each, and numbers of noise.

    A row from one condition to another has equal steps and one noise; other rows have as
    many noises as columns, the same in each row.
    """
    steps = np.linspace(0.0, 1.0, columns, dtype=np.float32)
    cond, numbers = [], []
    for index, (first, last) in enumerate(rows):
        moves = not np.array_equal(first, last)
        along = steps if moves else np.zeros_like(steps)
        change = np.multiply.outer(along, np.asarray(last) - first)
        cond.append((first + change).astype(np.asarray(first).dtype))
        numbers.append(np.full(columns, index) if moves else np.arange(columns))
    return np.concatenate(cond), np.concatenate(numbers)
