r"""Draws from a trained run: a PNG grid of images or cubes, or texts, one a line.

  python -m experiments.sample --workdir=runs/vae --num_samples=64
  python -m experiments.sample --workdir=runs/mnist --cond="0;1;2" --guidance=1
  python -m experiments.sample --workdir=runs/solids \
      --cond="width=3/16,height=5/16,depth=4/16..width=9/16,height=5/16,depth=4/16"
  python -m experiments.sample --workdir=runs/quotes --prompt="The best " --top_p=0.9

Conditions apart by ; have a row each, and A..B is a row from one to the other with the
same noise. Temperature, nucleus and guidance leave the model: the file's name says so.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments import launcher, outcome
from gm.errors import InputError, check_seed, check_whole

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a trained run")
flags.DEFINE_integer(
    "num_samples", None, "how many (default: 64, or 8 for each of several conditions)"
)
flags.DEFINE_float("temperature", 1.0, "other than 1 leaves the model")
flags.DEFINE_float("top_p", 1.0, "nucleus of autoregressive models; below 1 leaves it")
flags.DEFINE_float(
    "guidance", 0.0, "away from what has no condition; other than 0 leaves the model"
)
flags.DEFINE_string("prompt", None, "how each text begins")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_integer("seed", 0, "of the noise")
flags.DEFINE_integer("batch_size", 250, "samples at a time")
flags.DEFINE_string(
    "cond",
    None,
    "class, or numbers (by name: width=0.5,height=3/16); A;B for rows, A..B between",
)
flags.DEFINE_string("output", None, "default: RUN/samples/step_N.png or .txt")
flags.DEFINE_multi_string(
    "set", [], "field=value that changes how it draws, such as inversion=jacobi"
)
launcher.define_data_dir()
launcher.define_mesh_flags()
flags.adopt_module_key_flags(launcher)


def _check_flags() -> None:
    """Refuses values that cannot be meant, before anything is loaded."""
    if not FLAGS.workdir:
        raise InputError("--workdir is required: the directory of a trained run")
    from gm.generate import OUTSIDE, check_outside

    check_whole(1, batch_size=FLAGS.batch_size)
    if FLAGS.num_samples is not None:
        check_whole(1, num_samples=FLAGS.num_samples)
    check_outside({name: FLAGS[name].value for name in OUTSIDE})
    check_seed(FLAGS.seed)


def _options(model: Any) -> dict[str, float]:
    """What leaves the model, as asked for; refuses what the model has no way to do."""
    from gm.generate import OUTSIDE, check_options

    asked: dict[str, Any]
    asked = {k: FLAGS[k].value for k, v in OUTSIDE.items() if FLAGS[k].value != v}
    check_options(model, asked)
    return asked


def _conditions(found: Any) -> tuple[Any, Any, int, int | None]:
    """(conditions, numbers of the noise, how many samples, columns of the grid)."""
    import numpy as np

    from gm.generate import lay_out, parse_conditions

    spec, text, count = found.model.cond, FLAGS.cond, FLAGS.num_samples
    if spec is None and text is not None:
        raise InputError(f"--cond={text}: the run is unconditional")
    if text is not None and spec.kind == "image":
        raise InputError(
            f"--cond={text}: the run's condition is an image; leave it out, or see "
            "experiments.translate"
        )
    if text is not None:
        rows = parse_conditions(spec, text)
        several = len(rows) > 1 or not np.array_equal(*rows[0])
        columns = count or (8 * len(rows) if several else 64)
        if columns % len(rows):
            raise InputError(
                f"--num_samples={count}: {len(rows)} conditions have a row each; give a "
                f"multiple of {len(rows)}"
            )
        columns //= len(rows)
        if columns < 2 and not all(np.array_equal(*row) for row in rows):
            raise InputError(
                f"--num_samples={count}: a row of A..B shows both ends; give "
                f"{2 * len(rows)} or more"
            )
        cond, numbers = lay_out(rows, columns)
        return cond, numbers, len(cond), columns if several else None
    count = count or 64
    if spec is None:
        return None, None, count, None
    if spec.kind == "class":
        return (np.arange(count) % spec.size).astype(np.int32), None, count, None
    valid: Any = launcher.load_split(found, "valid")[1]  # as in the data
    return valid.batch(np.arange(count) % len(valid))[1], None, count, None


def _prefix(found: Any) -> Any:
    """The prompt as integers; refuses one where no text can be begun."""
    from gm.generate import encode_prompt, sampling_options

    if FLAGS.prompt is None:
        return None
    symbols, model = found.data["symbols"], found.model
    if symbols is None:
        raise InputError(f"--prompt={FLAGS.prompt!r}: the run is not of text")
    if "prefix" not in sampling_options(model):
        raise InputError(
            f"--prompt={FLAGS.prompt!r}: {type(model).__name__} does not write from left "
            "to right; give a run of an autoregressive model"
        )
    return encode_prompt(FLAGS.prompt, symbols, model.num_dims, found.data.get("end"))


def _output(found: Any, image: bool) -> Path:
    """Where samples go; the default name holds what was asked for."""
    if FLAGS.output:
        return Path(FLAGS.output)
    from gm.generate import OUTSIDE

    names = ("seed", *OUTSIDE, "cond", "prompt", "set")
    stem = outcome.stem(f"step_{found.meta['step']}", names)
    return found.run.path / "samples" / f"{stem}{'.png' if image else '.txt'}"


def main(argv: list[str]) -> None:
    """Draws and writes, a batch at a time."""
    launcher.refuse_arguments(argv)
    _check_flags()
    import numpy as np

    from gm import gap, generate, trained
    from gm.data import puzzles, texts
    from gm.rundir import write_whole
    from gm.writer import Progress, image_grid

    mesh = launcher.make_mesh()
    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    found = launcher.with_fields(found, FLAGS.set)
    model = found.model
    options, prefix = _options(model), _prefix(found)
    cond, numbers, count, columns = _conditions(found)
    image = len(model.shape) == 3
    output = _output(found, image)
    columns = columns or int(np.ceil(np.sqrt(count)))
    progress = Progress("sampling", count)
    x = np.zeros((0, *model.shape), np.int32)
    for part in generate.draw_batches(
        model,
        found.params,
        count,
        cond,
        numbers=numbers,
        prefix=prefix,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        mesh=mesh,
        **options,
    ):
        x = np.concatenate([x, part])
        if image:
            picture = image_grid(x, model.num_values, columns)
            outcome.write_picture(output, picture)
        else:
            lines = generate.as_lines(x, found.data["symbols"], found.data["unit"])
            write_whole(output, ("\n".join(lines) + "\n").encode())
        progress.update(len(x), str(output))
    progress.close()
    if not image:
        print("\n".join(lines[:8]))
    if found.config.dataset in puzzles.SIZES:
        net = output.with_name(f"{output.stem}-unfolded.png")
        outcome.write_picture(net, image_grid(puzzles.nets(x), 256, columns))
        print(f"the same, unfolded: {net}")
        print(gap.legality_text(gap.legality(puzzles.invariants(x)), "them"))
    if found.data["symbols"] and found.data.get("end") is not None:
        full = int(texts.is_full(x, found.data["end"]).sum())
        if full:
            print(
                f"{full} of {count} texts fill all the {model.num_dims - 1} characters "
                "there is room for, and may be cut off"
            )
    told = ", ".join(f"{name} {value:g}" for name, value in options.items())
    outside = f" (not of the model itself: {told})" if told else ""
    print(f"{count} samples{outside}: {output}")


if __name__ == "__main__":
    launcher.run(main)
