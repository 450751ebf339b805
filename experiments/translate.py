r"""Translates images with a trained run, and says how well and at how many bits.

  python -m experiments.train --conditional --model=pixelcnn \
      --dataset=translate:superres:2:digits --workdir=runs/up --evaluate=test
  python -m experiments.translate --workdir=runs/up

With a run of the sources (--dataset=source:superres:2:digits) as --source_run the bits
of whole images are written as a result row, which `compare` ranks with unconditional ones.

  python -m experiments.train --conditional --model=glow --dataset=domains:solids \
      --workdir=runs/domains
  python -m experiments.translate --workdir=runs/domains --unpaired
"""

from typing import Any

from absl import flags

from experiments import launcher, outcome
from gm.errors import InputError, check_seed, check_whole

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a run on translate:TASK:NAME")
flags.DEFINE_string("source_run", None, "directory of a run on source:TASK:NAME")
flags.DEFINE_bool("unpaired", False, "from each of a flow's two domains to the other")
flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which examples")
flags.DEFINE_integer(
    "num_examples", 16, "images to translate (unpaired: in the picture)"
)
flags.DEFINE_integer("num_outputs", 4, "translations of each")
flags.DEFINE_float("temperature", 1.0, "other than 1 leaves the likelihood model")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_integer("num_importance_samples", 1, "where bits are still to be computed")
flags.DEFINE_integer("seed", 0, "of the examples that are taken, and of the noise")
launcher.define_data_dir()
flags.adopt_module_key_flags(launcher)


def _check_flags() -> None:
    if not FLAGS.workdir:
        raise InputError("--workdir is required: the directory of a trained run")
    from gm.generate import check_outside

    check_whole(1, num_examples=FLAGS.num_examples, num_outputs=FLAGS.num_outputs)
    check_outside({"temperature": FLAGS.temperature})
    check_seed(FLAGS.seed)
    for name in ("source_run", "temperature", "num_outputs"):
        if FLAGS.unpaired and FLAGS[name].present:
            raise InputError(f"--{name}: is for pairs; leave it or --unpaired out")


def _nats(found: Any, dataset: Any, x: Any, cond: Any) -> tuple[Any, int, str]:
    """(nats, draws, of what): of the run's result row, or else of these examples."""
    import numpy as np

    from gm.data import ArraySplit
    from gm.evaluate import check_importance_samples, evaluate_nats
    from gm.trained import own_row

    have = own_row(found, dataset, FLAGS.split)
    if have is not None:
        row, nats = have
        return nats, row["num_importance_samples"], f"results/{FLAGS.split}.json"
    draws = check_importance_samples(found.model, FLAGS.num_importance_samples)
    nats, _ = evaluate_nats(
        found.model,
        found.params,
        ArraySplit(x, cond),
        np.arange(len(x)),
        num_importance_samples=draws,
    )
    return nats, draws, "these examples"


def _bits(found: Any, nats: Any) -> dict[str, Any]:
    """Mean bits of images given their condition, with the standard error."""
    import numpy as np

    from gm.likelihood import bits

    per_dim = bits(1.0) / found.model.num_dims
    spread = float(nats.std(ddof=1) / np.sqrt(len(nats))) if len(nats) > 1 else None
    return {
        "bits_per_dim": float(nats.mean()) * per_dim,
        "bits_per_object": bits(float(nats.mean())),
        "standard_error_bits_per_dim": None if spread is None else spread * per_dim,
        "num_examples": len(nats),
    }


def _as_bytes(x: Any, num_values: int, shape: tuple[int, ...]) -> Any:
    """Integers [N, h, w, c] as 256 levels of the size and channels of `shape`."""
    import numpy as np

    for axis in (1, 2):  # coarse pixels become blocks, of fine ones every n-th is shown
        side, wanted = x.shape[axis], shape[axis - 1]
        x = np.take(x, np.arange(wanted) * side // wanted, axis=axis)
    if x.shape[3] != shape[2]:
        x = np.repeat(x.mean(3, keepdims=True).astype(int), shape[2], axis=3)
    return x.astype(int) * 255 // (num_values - 1)


def _picture(columns: list[Any]) -> Any:
    """Columns [N, H, W, C] of 256 levels side by side, one row for each example."""
    import numpy as np

    from gm.writer import image_grid

    rows = np.stack(columns, axis=1)
    return image_grid(rows.reshape(-1, *rows.shape[2:]), 256, columns=len(columns))


def _stem(*names: str) -> str:
    """The name of the outcome: the split, and what differs from the defaults."""
    names = (*names, "temperature", "seed", "num_importance_samples", "checkpoint")
    kind = "unpaired" if FLAGS.unpaired else "translate"
    return outcome.stem(f"{kind}-{FLAGS.split}", names)


def _check_paired(model: Any) -> None:
    """InputError unless the model is conditioned on an image."""
    if model.cond is None or model.cond.kind != "image":
        label = (
            f"its condition is {model.cond.label}" if model.cond else "unconditional"
        )
        raise InputError(
            f"--workdir={FLAGS.workdir}: {label}; translate takes a run that was trained "
            "with --conditional on --dataset=translate:TASK:NAME"
        )


def _paired(found: Any, dataset: Any) -> None:
    """Draws outputs, judges them, and writes the row and the picture."""
    import numpy as np

    from gm import translate
    from gm.data.translated import find_task

    model, split = found.model, dataset.split(FLAGS.split)
    count = min(FLAGS.num_examples, len(split))
    chosen = np.random.default_rng(FLAGS.seed).permutation(len(split))[:count]
    y, s = split.batch(np.sort(chosen))
    y_hat = translate.outputs(
        model,
        found.params,
        s,
        count=FLAGS.num_outputs,
        seed=FLAGS.seed,
        temperature=FLAGS.temperature,
    )
    task, near = find_task(dataset), translate.nearest(dataset.train, s, FLAGS.seed)
    nats, draws, of = _nats(found, dataset, y, s)
    row = {
        "task": model.cond.names[0],
        "split": FLAGS.split,
        "num_examples": count,
        "num_outputs": FLAGS.num_outputs,
        "temperature": FLAGS.temperature,
        "seed": FLAGS.seed,
        "conditional_bits": _bits(found, nats)
        | {"estimate": model.estimate.value, "num_importance_samples": draws, "of": of},
        "consistency": None,
        "leaked_mass": None,
        "outputs": translate.errors(y_hat, y),
        "nearest_training_pair": translate.errors(near[None], y),
    }
    if task is not None and task.checkable:
        row["consistency"] = translate.consistency(task, y_hat, s)
        leaked = translate.leaked_mass(model, found.params, task, s)
        if leaked is not None:
            row["leaked_mass"] = {"mean": float(leaked.mean()), "how": "enumerated"}
        elif FLAGS.temperature == 1:  # else the draws say nothing of the model
            mean = 1 - row["consistency"]["images"]
            row["leaked_mass"] = {"mean": mean, "how": "1 - consistency of the draws"}
    columns = [_as_bytes(s, model.cond.num_values, model.shape)]
    columns += [_as_bytes(x, model.num_values, model.shape) for x in (*y_hat, y)]
    stem = _stem("num_examples", "num_outputs")
    path = outcome.write_application(found, stem, row, _picture(columns))
    _print_paired(row, model.num_values)
    print(f"source, {FLAGS.num_outputs} translations, truth: {path}.png, {path}.json")


def _print_paired(row: dict[str, Any], num_values: int) -> None:
    b = row["conditional_bits"]
    how = b["estimate"] if b["estimate"] == "exact" else f"{b['estimate']}, bound"
    bound = "" if b["estimate"] == "exact" else "<= "
    print(
        f"{row['task']}: {bound}{b['bits_per_dim']:.4f} bits/dim given the source ({how}, "
        f"{b['num_importance_samples']} draw(s); {b['num_examples']} examples, {b['of']})"
    )
    if row["temperature"] != 1:
        print(
            f"  outputs are not of the model itself: temperature {row['temperature']:g}"
        )
    if row["consistency"]:
        c, leaked = row["consistency"], row["leaked_mass"]
        lost = f"; leaked mass {leaked['mean']:.4f} ({leaked['how']})" if leaked else ""
        print(
            f"  g(output) = source: {100 * c['pixels']:.2f} % of its pixels, "
            f"{100 * c['images']:.1f} % of {c['num_draws']} images{lost}"
        )
    e, near = row["outputs"], row["nearest_training_pair"]
    print(
        f"  mean absolute error, of {num_values} values: {e['mean_error']:.3f}, best of "
        f"{row['num_outputs']} {e['best_error']:.3f}; nearest training pair "
        f"{near['mean_error']:.3f}; outputs of a source differ by {e['diversity']:.3f}"
    )


def _whole_images(found: Any, dataset: Any) -> None:
    """Writes and prints the bits of source and image together."""
    from gm import tables, trained, translate
    from gm.data.translated import images_name
    from gm.evaluate import provenance, write_result
    from gm.results import unit_name

    source = trained.load(FLAGS.source_run, flag="source_run")
    wanted = "source:" + found.config.dataset.partition(":")[2]
    given, config = source.config, found.config
    if (given.dataset, given.resolution) != (wanted, config.resolution):
        raise InputError(
            f"--source_run={FLAGS.source_run}: trained on {given.dataset} at resolution "
            f"{given.resolution}; give a run on {wanted} at {config.resolution}"
        )
    sources = launcher.load_dataset(source)
    row, nats = translate.whole_images(found, source, dataset, sources, FLAGS.split)
    row |= {"resolution": config.resolution, "source_run": str(source.run.path)}
    stem = f"whole-{FLAGS.split}"
    if FLAGS.checkpoint != "best":
        stem += f"-{FLAGS.checkpoint}"
    path = write_result(found.run.results, stem, row | provenance(), nats)
    print(
        f"whole images of {images_name(dataset.name)}, bits(source) + bits(image | "
        f"source): {tables.value_text(row)} {unit_name(row)}, over {len(nats)} examples "
        f"({path})"
    )


def _unpaired(found: Any, dataset: Any) -> None:
    """Translates a split between the two domains; writes the row and the picture."""
    import numpy as np

    from gm import unpaired

    unpaired.check_flow(found.model)
    model, split = found.model, dataset.split(FLAGS.split)
    x, domain = split.batch(np.arange(len(split)))
    names, counts = model.cond.names or ("0", "1"), np.bincount(domain, minlength=2)
    if counts.min() < 2:
        raise InputError(
            f"--split={FLAGS.split}: {counts[0]} images of {names[0]} and {counts[1]} of "
            f"{names[1]}; some of both are needed"
        )
    partners = split.partners() if hasattr(split, "partners") else None
    moved, cycle = unpaired.translate(model, found.params, x, domain, seed=FLAGS.seed)
    nats, draws, of = _nats(found, dataset, x, domain)
    worst = cycle.max((1, 2, 3))
    held = np.isfinite(worst)
    if not held.any():
        raise InputError(
            f"--workdir={FLAGS.workdir}: the flow's inverse overflows for every image; "
            "train it for longer"
        )
    row: dict[str, Any] = {
        "split": FLAGS.split,
        "seed": FLAGS.seed,
        "cycle_error": {
            "max": float(worst[held].max()),
            "mean": float(cycle[held].mean()),
            "images_above_1e-3": float((worst > 1e-3).mean()),
            "images_that_overflow": int((~held).sum()),
        },
        "bits": {
            "estimate": model.estimate.value,
            "num_importance_samples": draws,
            "of": of,
        },
        "domains": {},
    }
    columns, shown = [], min(FLAGS.num_examples, *counts)
    for a in (0, 1):
        here = np.flatnonzero(domain == a)
        row["domains"][names[a]] = _bits(found, nats[here])
        columns += [x[here[:shown]], moved[here[:shown]]]
        if partners is not None:
            true = x[partners[here]]
            given = (x[here], moved[here], true, unpaired.all_images(dataset, 1 - a))
            row["domains"][names[a]] |= unpaired.judge(*given)
            columns.append(true[:shown])
    picture = _picture([_as_bytes(c, model.num_values, model.shape) for c in columns])
    path = outcome.write_application(found, _stem("num_examples"), row, picture)
    _print_unpaired(row)
    true = ", true partner" if partners is not None else ""
    print(f"image, translation{true}, for both domains: {path}.png, {path}.json")


def _print_unpaired(row: dict[str, Any]) -> None:
    c, b = row["cycle_error"], row["bits"]
    print(
        f"there and back again: off by {c['mean']:.2g} in the mean, {c['max']:.2g} at "
        f"most (y in [-1, 1)); {100 * c['images_above_1e-3']:.1f} % of images have a "
        "pixel off by more than 0.001"
    )
    if c["images_that_overflow"]:
        print(
            f"  {c['images_that_overflow']} images are too unlikely in the other domain "
            "for its inverse, which overflows: black, and not in the mean and the most"
        )
    for name, d in row["domains"].items():
        error = d["standard_error_bits_per_dim"]
        print(
            f"  {name}: <= {d['bits_per_dim']:.4f} ± {error:.4f} bits/dim "
            f"({b['estimate']}, {b['num_importance_samples']} draw(s)), "
            f"{d['num_examples']} images"
        )
        if "match_rate" in d:
            print(
                f"    of {d['candidates']} the nearest is its own partner: "
                f"{100 * d['match_rate']:.1f} % (copies "
                f"{100 * d['match_rate_of_copies']:.1f} %, chance "
                f"{100 * d['match_rate_of_chance']:.1f} %); mean absolute error "
                f"{d['mean_error']:.2f} (copies {d['mean_error_of_copies']:.2f})"
            )


def main(argv: list[str]) -> None:
    """Translates."""
    launcher.refuse_arguments(argv)
    _check_flags()
    from gm import trained

    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    dataset = launcher.load_split(found, FLAGS.split)[0]
    if FLAGS.unpaired:
        _unpaired(found, dataset)
        return
    _check_paired(found.model)
    if FLAGS.source_run:  # first, so that a mistake is told before anything is written
        _whole_images(found, dataset)
    _paired(found, dataset)


if __name__ == "__main__":
    launcher.run(main)
