"""A trained run, read back: the model, its parameters and what they were fitted to."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoint import Checkpoints, flatten, unflatten
from gm.commands import field_text, set_flags
from gm.config import RunConfig
from gm.data.dataset import Dataset, Fresh, identify
from gm.errors import InputError
from gm.fields import parse_settings
from gm.model import LikelihoodModel, ending, load_model, param_shapes
from gm.results import read_nats
from gm.rundir import RunDirectory, read_json
from gm.spec import CondSpec
from gm.weights import read_weights


def describe(dataset: Dataset, conditional: bool) -> dict[str, Any]:
    """What config.json keeps of a data set: enough to rebuild the model without it."""
    return {
        "shape": list(dataset.shape),
        "num_values": dataset.num_values,
        "unit": dataset.unit,
        "preprocessing": dataset.preprocessing,
        "symbols": dataset.symbols,
        "end": dataset.end,
        "cond": dataset.cond.to_json() if conditional and dataset.cond else None,
    }


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_description(data: Any) -> bool:
    """Whether a JSON value may be what `describe` kept: a run may come from elsewhere."""
    if not (isinstance(data, dict) and {"shape", "num_values", "cond"} <= data.keys()):
        return False
    shape = data["shape"]
    if not (isinstance(shape, list) and shape):
        return False
    try:
        cond = _cond_of(data)
    except (TypeError, ValueError, AttributeError):
        return False
    sizes = [*shape, data["num_values"], *([] if cond is None else [cond.size])]
    return all(map(_is_size, sizes))


def _cond_of(data: dict[str, Any]) -> CondSpec | None:
    cond = data["cond"]
    return None if cond is None else CondSpec(**{k: _tuple(v) for k, v in cond.items()})


def own_file(directory: Path, model: str) -> Path:
    """Where `export` puts the code of a model that is no part of gm."""
    return directory.joinpath(*model.split(".")).with_suffix(".py")


def _is_set(cls: type, name: str, value: Any) -> bool:
    """Whether --set could have given this value to a field of a model."""
    try:
        return parse_settings(cls, {name: field_text(value)})[name] == _tuple(value)
    except InputError:
        return False


def rebuild_model(config: RunConfig, data: dict[str, Any]) -> LikelihoodModel:
    """The module of a run from its configuration and what `describe` kept."""
    cls = load_model(config.model).Model
    return cls(
        shape=tuple(data["shape"]),
        num_values=data["num_values"],
        cond=_cond_of(data),
        precision=config.precision,
        **ending(cls, data.get("end")),
        **{k: _tuple(v) for k, v in config.settings.items()},
    )


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `load` returns."""

    config: RunConfig
    data: dict[str, Any]  # what `describe` kept of the data set
    model: LikelihoodModel
    params: Any  # the averaged (EMA) parameters
    checkpoint: str  # such as "best, step 500"
    meta: dict[str, Any]  # step, train_seconds, examples_seen, train_flops, ...
    run: RunDirectory


def load(
    path: str | os.PathLike, checkpoint: str = "best", *, flag: str = "workdir"
) -> Trained:
    """Reads a run directory, or one that `export` made of it.

    Args:
      path: the --workdir of a training run.
      checkpoint: "best" by validation, "latest", or a step number that was kept.
      flag: that the path was given by, for messages.

    Raises:
      InputError: no run there, or no sound checkpoint.
    """
    run = RunDirectory.open_to_read(path, flag)
    values = run.config()
    file = run.path / "config.json"
    config = RunConfig.from_json(values, file)
    data: Any = values.get("data")
    try:
        cls = load_model(config.model).Model
    except InputError as error:
        own = own_file(run.path, config.model)
        if not own.exists():
            raise
        raise InputError(
            f"{error}; {own} is it: read it, and put {run.path} into PYTHONPATH"
        ) from None
    strange = [
        f"settings.{n}" for n, v in config.settings.items() if not _is_set(cls, n, v)
    ]
    strange += [] if _is_description(data) else ["data"]
    strange += [] if config.precision in ("float32", "bfloat16") else ["precision"]
    if strange:
        told = ", ".join(strange)
        raise InputError(f"{file}: not that of a run ({told}), or of another gm")
    model = rebuild_model(config, data)
    like = param_shapes(model)
    if run.weights.exists():
        label, params, meta = read_weights(run.weights, like)
        if checkpoint not in ("best", label):
            raise InputError(
                f"--checkpoint={checkpoint}: an exported run has but one ({label}); "
                "leave it out"
            )
        return Trained(config, data, model, params, label, meta, run)
    if "trained_in" in values:
        raise InputError(
            f"{run.weights}: is missing; copy all of the exported directory"
        )
    kind, step = checkpoint, None
    if checkpoint not in ("best", "latest"):
        if not (checkpoint.isdecimal() and len(checkpoint) < 20):
            raise InputError(
                f"--checkpoint={checkpoint}: give best, latest or a step number"
            )
        kind, step = "latest", int(checkpoint)
    directory = run.checkpoints / kind
    if not directory.is_dir():
        raise InputError(f"--{flag}={path}: no checkpoint yet; let the training run")
    store = Checkpoints(directory, writable=False)
    found = store.restore(step=step)
    store.close()
    if found is None:
        raise InputError(
            f"--{flag}={path}: no sound {kind} checkpoint; start its training command "
            f"again{', or give --checkpoint=latest' if kind == 'best' else ''}"
        )
    step, flat, meta = found
    params = store.select(flat, "ema_params", like, step)
    return Trained(config, data, model, params, f"{kind}, step {step}", meta, run)


def read_dataset(found: Trained, data_dir: str | None = None) -> Dataset:
    """The data set of a run, read again.

    Raises:
      InputError: it is no more what the run was trained on.
    """
    from gm import data

    config = found.config
    dataset = data.load(
        config.dataset,
        resolution=config.resolution,
        data_dir=data_dir or config.data_dir,
    )
    check_same_data(found, dataset)
    return dataset


def check_same_data(found: Trained, dataset: Dataset) -> None:
    """InputError unless a data set, read again, is of what the run was trained on."""
    now = describe(dataset, conditional=False)
    told = {
        "preprocessing": "preprocessing is",
        "symbols": "symbols are",
        "shape": "shape is",
        "num_values": "number of values is",
    }
    for name, what in told.items():
        if now[name] != found.data.get(name):
            raise InputError(
                f"{dataset.name}: the {what} now {now[name]!r}, the run was trained "
                f"with {found.data.get(name)!r}"
            )
    own = found.model.cond and dataclasses.replace(found.model.cond, optional=False)
    if own is not None and dataset.cond != own:
        label = dataset.cond.label if dataset.cond else "none"
        raise InputError(
            f"{dataset.name}: the condition is now {label}, the run was trained with "
            f"{own.label}"
        )


def initial_params(path: str, model: LikelihoodModel) -> Any:
    """The parameters of another run, or of an exported one, to begin a training with.

    Raises:
      InputError: no run there, or one with other parameters than the model's.
    """
    found = load(path, flag="init_from")
    like = param_shapes(model)
    try:
        return unflatten(like, flatten(found.params), f"--init_from={path}")
    except InputError as error:
        own = found.config
        told = " ".join([f"--model={own.model}", *set_flags(own.settings)])
        raise InputError(f"{error}; it was trained with {told}") from None


def own_row(
    found: Trained, dataset: Dataset, split: str
) -> tuple[dict[str, Any], np.ndarray] | None:
    """The result row that a run has of a split, if it is of these parameters and examples.

    Returns:
      (row, nats of each example float64 [N] in the split's own order), or None.
    """
    path, examples = found.run.results / f"{split}.json", dataset.split(split)
    if isinstance(examples, Fresh) or not path.exists():
        return None
    row = read_json(path)
    sha256, order = identify(dataset, examples)
    if (row.get("checkpoint"), row.get("split_sha256")) != (found.checkpoint, sha256):
        return None
    in_order = read_nats(row | {"file": str(path)})
    if in_order is None:
        return None
    nats = np.empty(len(order))
    nats[order] = in_order
    return row, nats
