"""Draws from a trained run: a PNG grid of images, or lines of text.

python -m experiments.sample --workdir=runs/vae --num_samples=64
"""

from pathlib import Path

from absl import flags

from experiments import launcher
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a trained run")
flags.DEFINE_integer("num_samples", 64, "how many")
flags.DEFINE_float("temperature", 1.0, "other than 1 leaves the likelihood model")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_integer("seed", 0, "of the noise")
flags.DEFINE_string("cond", None, "class label, or numbers separated by commas")
flags.DEFINE_string("output", None, "default: RUN/samples/step_N.png or .txt")


def _parse_cond(model, config, text, count):
    """The condition of `count` samples: from the text, or spread over its range."""
    import numpy as np

    spec = model.cond
    if spec is None:
        if text is not None:
            raise InputError(f"--cond={text}: the run is unconditional")
        return None
    if spec.kind == "class":
        if text is None:
            return (np.arange(count) % spec.size).astype(np.int32)
        names = list(spec.names)
        label = (
            names.index(text)
            if text in names
            else int(text)
            if text.isdecimal()
            else -1
        )
        if not 0 <= label < spec.size:
            told = ", ".join(names) if names else f"0 to {spec.size - 1}"
            raise InputError(f"--cond={text}: give one of {told}")
        return np.full(count, label, np.int32)
    if spec.kind == "image" and text is not None:
        raise InputError(
            f"--cond={text}: the run's condition is an image; leave it out, or see "
            "experiments.translate"
        )
    low, high = np.asarray(spec.low), np.asarray(spec.high)
    if text is None:  # as in the data
        from gm import data

        dataset = data.load(
            config.dataset, resolution=config.resolution, data_dir=config.data_dir
        )
        return dataset.valid.batch(np.arange(count) % len(dataset.valid))[1]
    try:
        values = np.asarray([float(v) for v in text.split(",")])
    except ValueError:
        values = np.empty(0)
    if len(values) != spec.size or not ((values >= low) & (values <= high)).all():
        told = ", ".join(
            f"{n} ({a:g} to {b:g})"
            for n, a, b in zip(spec.names, spec.low, spec.high, strict=True)
        )
        raise InputError(f"--cond={text}: give {spec.size} numbers: {told}")
    return np.tile(values.astype(np.float32), (count, 1))


def main(argv: list[str]) -> None:
    """Draws and writes."""
    launcher.refuse_arguments(argv)
    if not FLAGS.workdir:
        raise InputError("--workdir is required: the directory of a trained run")
    if FLAGS.num_samples < 1:
        raise InputError(f"--num_samples={FLAGS.num_samples}: give 1 or more")
    if not 0 < FLAGS.temperature < float("inf"):
        raise InputError(f"--temperature={FLAGS.temperature}: give a number above 0")
    import jax
    import numpy as np

    from gm import trained
    from gm.rundir import write_whole
    from gm.writer import image_grid

    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    model = found.model
    cond = _parse_cond(model, found.config, FLAGS.cond, FLAGS.num_samples)

    @jax.jit
    def draw(params, key, cond):
        return model.apply(
            {"params": params},
            FLAGS.num_samples,
            cond,
            temperature=FLAGS.temperature,
            rngs={"sample": key},
            method="sample",
        )

    x = np.asarray(draw(found.params, jax.random.key(FLAGS.seed), cond))
    image = len(model.shape) == 3
    stem = f"step_{found.meta['step']}"
    for name in ("seed", "temperature", "cond"):  # what was asked for, if anything
        if FLAGS[name].present:
            stem += f"_{name}={FLAGS[name].value}".replace("/", "_")
    default = found.run.path / "samples" / stem
    output = Path(FLAGS.output or f"{default}{'.png' if image else '.txt'}")
    if image:
        import io

        buffer = io.BytesIO()
        image_grid(x, model.num_values).save(buffer, format="PNG")
        write_whole(output, buffer.getvalue())
    else:
        symbols = found.data["symbols"]
        lines = (
            ["".join(symbols[v] for v in row).split("\n")[0] for row in x]
            if (symbols and found.data["unit"] == "object")
            else ["".join(symbols[v] for v in row) for row in x]
            if symbols
            else [" ".join(map(str, row)) for row in x]
        )
        write_whole(output, ("\n".join(lines) + "\n").encode())
        print("\n".join(lines[:8]))
    print(f"{FLAGS.num_samples} samples: {output}")


if __name__ == "__main__":
    launcher.run(main)
