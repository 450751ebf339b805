r"""Evaluates a trained run on every example of a split, once, and writes the row.

  python -m experiments.evaluate --workdir=runs/vae --split=test \
      --num_importance_samples=64
  python -m experiments.evaluate --workdir=runs/vae --num_importance_samples=64 \
      --k_curve --interval --bit_map
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import launcher, outcome
from gm.errors import InputError, check_seed, check_whole

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this launcher; `train --evaluate` brings its own."""
    flags.DEFINE_string("workdir", None, "directory of a trained run")
    flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which examples")
    flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
    flags.DEFINE_integer(
        "num_importance_samples", 1, "draws per example (not for ELBOs)"
    )
    flags.DEFINE_bool(
        "k_curve", False, "also the bound at 1, 2, 4, ... importance samples"
    )
    flags.DEFINE_bool(
        "interval", False, "also a bound from the other side (16 times the draws)"
    )
    flags.DEFINE_bool(
        "bit_map", False, "also the mean bits of each pixel, for `compare --html`"
    )
    flags.DEFINE_integer(
        "num_samples", 1000, "samples to judge where what is possible is known; 0: none"
    )
    flags.DEFINE_integer("batch_size", 100, "examples at a time")
    flags.DEFINE_integer("seed", 0, "of the evaluation's noise")
    flags.DEFINE_string("dataset", None, "another data set than the one trained on")
    flags.DEFINE_multi_string(
        "set", [], "field=value that changes how the number is computed, not the model"
    )
    launcher.define_data_dir()
    launcher.define_mesh_flags(processes=True)
    flags.adopt_module_key_flags(launcher)


def _load_dataset(trained, name, data_dir):
    """The data set of the run, or another one that the model can score."""
    from gm import data
    from gm.trained import read_dataset

    if not name:
        return read_dataset(trained, data_dir)
    config = trained.config
    dataset = data.load(
        name, resolution=config.resolution, data_dir=data_dir or config.data_dir
    )
    dataset = data.encode_like(dataset, trained.data["symbols"])
    model = trained.model
    if dataset.shape != model.shape or dataset.num_values > model.num_values:
        raise InputError(
            f"--dataset={dataset.name}: {dataset.shape} of {dataset.num_values} values; "
            f"the run models {model.shape} of {model.num_values}"
        )
    own_cond = model.cond and dataclasses.replace(model.cond, optional=False)
    theirs = dataset.cond.label if dataset.cond else "none"
    if model.cond is not None and (not dataset.cond or dataset.cond != own_cond):
        raise InputError(
            f"--dataset={dataset.name}: its condition is {theirs}; the run needs its own, "
            f"{model.cond.label}"
        )
    return dataset


def _bit_map(trained, split, batch_size, seed):
    """(what, nats of each pixel), or InputError where the model does not tell."""
    from gm.bit_map import bit_map

    model = trained.model
    found = bit_map(model, trained.params, split, batch_size=batch_size, seed=seed)
    if found is None:
        raise InputError(
            f"--bit_map: {type(model).__name__} does not tell what single pixels cost "
            "(autoregressive models in raster order do, and decoders of pixels)"
        )
    return found


def evaluate_run(
    workdir: str,
    *,
    split: str,
    num_importance_samples: int = 1,
    k_curve: bool = False,
    interval: bool = False,
    bit_map: bool = False,
    num_samples: int = 1000,
    batch_size: int = 100,
    checkpoint: str = "best",
    seed: int = 0,
    dataset: str | None = None,
    data_dir: str | None = None,
    fields: Sequence[str] = (),
    mesh: Any = None,
) -> None:
    """Evaluates and writes results/<split>.json and .nats.npy; prints the number."""
    from gm import evaluate, gap, tables, trained
    from gm.data import Fresh
    from gm.results import below_floor, unit_name
    from gm.sharding import is_primary
    from gm.writer import Progress

    check_seed(seed)
    check_whole(0, num_samples=num_samples)
    check_whole(1, batch_size=batch_size)
    found = launcher.with_fields(trained.load(workdir, checkpoint), fields)
    evaluate.check_importance_samples(found.model, num_importance_samples)
    data = _load_dataset(found, dataset, data_dir)
    examples = data.split(split)
    total = 0 if isinstance(examples, Fresh) else len(examples)
    pixels = _bit_map(found, examples, batch_size, seed) if bit_map and total else None
    label = f"evaluating {found.run.path.name}"
    progress = Progress(label, total, shown=is_primary())
    row, nats = evaluate.evaluate(
        found.model,
        found.params,
        data,
        split,
        num_importance_samples=num_importance_samples,
        k_curve=k_curve,
        interval=interval,
        batch_size=batch_size,
        seed=seed,
        progress=lambda done, mean: progress.update(done, f"{mean:.3f} nats"),
        mesh=mesh,
    )
    progress.close()
    if not is_primary():
        return
    if num_samples and data.support:
        cond = examples.batch(np.arange(len(examples)))[1] if found.model.cond else None
        row["samples"] = gap.check_samples(
            found.model, found.params, data, cond, count=num_samples
        )
    config = found.config
    training = dataclasses.asdict(config.train)
    meta = {k: v for k, v in found.meta.items() if k not in ("digests", "valid_nats")}
    row = (
        {"model": config.model, "settings": config.settings}
        | {"resolution": config.resolution, "init_from": config.init_from}
        | row
        | meta
        | {"seed": training.pop("seed"), "ema": config.train.ema_decay}
        | {"augmentation": training.pop("augmentation"), "training": training}
        | {"precision": config.precision, "checkpoint": found.checkpoint}
        | evaluate.provenance()
    )
    stem = split if dataset is None else f"{outcome.safe_name(data.name)}-{split}"
    if checkpoint != "best":
        stem += f"-{checkpoint}"
    stem += "".join(f"-{outcome.safe_name(pair)}" for pair in fields)
    if pixels is not None:
        row["bit_map"] = pixels[0]
    more = {} if pixels is None else {"map": pixels[1]}
    path = evaluate.write_result(found.run.results, stem, row, nats, **more)
    unit = unit_name(row)
    print(
        f"{data.name} {split}: {tables.value_text(row)} {unit}, {tables.nats_text(row)} "
        f"nats, over {len(nats)} examples ({found.checkpoint}; {path})"
    )
    for text in tables.details(row):
        print(text)
    if below_floor(row):
        raise InputError(tables.bug_text(row))


def main(argv: list[str]) -> None:
    """Evaluates one run."""
    launcher.refuse_arguments(argv)
    if not FLAGS.workdir:
        raise InputError("--workdir is required: the directory of a trained run")
    evaluate_run(
        FLAGS.workdir,
        split=FLAGS.split,
        num_importance_samples=FLAGS.num_importance_samples,
        k_curve=FLAGS.k_curve,
        interval=FLAGS.interval,
        bit_map=FLAGS.bit_map,
        num_samples=FLAGS.num_samples,
        batch_size=FLAGS.batch_size,
        checkpoint=FLAGS.checkpoint,
        seed=FLAGS.seed,
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        fields=FLAGS.set,
        mesh=launcher.make_mesh(),
    )


if __name__ == "__main__":
    define_flags()
    launcher.run(main)
