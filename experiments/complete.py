"""Completes half-seen examples with a trained run: a row of numbers and a picture.

  python -m experiments.complete --workdir=runs/made --mask=bottom
  python -m experiments.complete --workdir=runs/cube --mask=random:0.5 --num_examples=32

Draws from p(x_missing | x_observed) by the most exact method that the model allows, and
says which. In the picture each row is an example: what is seen of it, its completions,
and the original.
"""

from typing import Any

from absl import flags

from experiments import launcher, outcome
from gm.errors import InputError, check_seed

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a trained run")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which examples")
flags.DEFINE_string(
    "mask",
    None,
    "what is hidden: left, right, top, bottom, box, random:0.5, or a FILE of the "
    "examples' shape (.npy of booleans, True: hidden; or an image, white: hidden)",
)
flags.DEFINE_integer("num_examples", 16, "how many, spread over the split")
flags.DEFINE_integer("num_completions", 4, "of each example")
flags.DEFINE_integer("num_particles", None, "per completion (default: the method's)")
flags.DEFINE_integer("num_steps", None, "of a Markov chain (default: the method's)")
flags.DEFINE_integer("seed", 0, "of the noise, and of the pixels of random:P")
launcher.define_data_dir()
flags.adopt_module_key_flags(launcher)

_SIGNS = {"exact": "", "upper": "<= ", "lower": ">= ", "neither": "about "}
_SAID = {
    "exact": "exact",
    "upper": "an upper bound in expectation",
    "lower": "a lower bound in expectation",
    "neither": "an estimate, the difference of two bounds",
}


def _examples(found: Any) -> tuple[Any, Any, Any]:
    """The data set of the run, and (x, cond) of examples spread over the split."""
    import numpy as np

    dataset, split = launcher.load_split(found, FLAGS.split)
    if not 1 <= FLAGS.num_examples <= len(split):
        raise InputError(
            f"--num_examples={FLAGS.num_examples}: give 1 to {len(split)}, the number "
            f"of examples of {dataset.name} {FLAGS.split}"
        )
    numbers = np.arange(FLAGS.num_examples) * len(split) // FLAGS.num_examples
    x, cond = split.batch(numbers)
    return dataset, x, cond if found.model.cond else None


def _numbers(result: Any, x: Any, missing: Any, end: int | None) -> dict[str, Any]:
    """The row of the metric: of the hidden symbols of the true examples.

    Of documents also of their hidden characters, the ends included: padding costs nothing.
    """
    import numpy as np

    from gm.complete.masks import count_characters
    from gm.likelihood import bits

    hidden = int(missing.sum())
    right = (result.x == x[:, None])[:, :, missing].mean()
    row = {
        "method": result.method,
        "exact_draws": result.exact,
        "figures": result.figures,
        "num_missing": hidden,
        "num_dims": int(missing.size),
        "symbols_as_original": float(right),
        "bound": result.bound,
    }
    mean = float(result.nats.mean())
    error = result.nats.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else None
    if end is not None:
        characters = count_characters(x, missing, end)
        row["num_missing_characters"] = characters
        row["bits_per_missing_character"] = (
            bits(float(result.nats.sum())) / characters if characters else None
        )
    return row | {
        "nats_missing": mean,
        "standard_error_nats": None if error is None else float(error),
        "bits_per_missing_dim": bits(mean) / hidden,
        "standard_error_bits_per_missing_dim": None
        if error is None
        else bits(float(error)) / hidden,
    }


def _report(row: dict[str, Any]) -> None:
    """Prints the row."""
    from gm.gap import legality_text

    figures = ", ".join(f"{k} {v:.3g}" for k, v in row["figures"].items())
    print(f"method: {row['method']}{f' ({figures})' if figures else ''}")
    hidden, dims = row["num_missing"], row["num_dims"]
    error = row["standard_error_bits_per_missing_dim"]
    shown = "" if error is None else f" ± {error:.4f}"
    print(
        f"{hidden} of {dims} symbols hidden: {_SIGNS[row['bound']]}"
        f"{row['bits_per_missing_dim']:.4f}{shown} bits per missing symbol "
        f"({_SAID[row['bound']]}; {row['num_examples']} examples)"
    )
    if row.get("num_missing_characters"):
        print(
            f"without padding: {_SIGNS[row['bound']]}"
            f"{row['bits_per_missing_character']:.4f} bits per missing character, of "
            f"{row['num_missing_characters']} in all"
        )
    if "legal" in row:
        print(legality_text(row, "completions"))


def _picture(x: Any, drawn: Any, missing: Any, num_values: int) -> Any:
    """A row for each example: observed, completions, original.

    Hidden pixels are blue, and a cube's hidden stickers grey.
    """
    import numpy as np

    from gm.data import puzzles
    from gm.writer import image_grid

    tiles = np.concatenate([x[:, None], drawn, x[:, None]], axis=1)
    hidden = np.zeros(tiles.shape, bool)
    hidden[:, 0] = missing
    columns = tiles.shape[1]
    tiles, hidden = (a.reshape(-1, *x.shape[1:]) for a in (tiles, hidden))
    if x.ndim == 2:
        return image_grid(puzzles.nets(tiles, hidden), 256, columns)
    levels = tiles.astype(np.int64) * 255 // (num_values - 1)
    return image_grid(np.where(hidden, (70, 110, 170), levels), 256, columns)


def _lines(x: Any, drawn: Any, missing: Any, data: dict[str, Any]) -> list[str]:
    """The same as text; a hidden symbol is shown as _, the padding of documents not."""
    import numpy as np

    symbols, documents = data["symbols"], data.get("end") is not None

    def text(values, hidden=None):
        shown = [symbols[v] if symbols else str(v) for v in values]
        if hidden is not None:
            shown = ["_" if h else s for s, h in zip(shown, hidden, strict=True)]
        joined = "".join(shown) if symbols or np.max(values) < 10 else " ".join(shown)
        return (joined.rstrip("\n") if documents else joined).replace("\n", "\\n")

    lines = []
    for truth, completions in zip(x, drawn, strict=True):
        lines += [f"observed   {text(truth, missing)}"]
        lines += [f"completed  {text(c)}" for c in completions]
        lines += [f"original   {text(truth)}", ""]
    return lines


def main(argv: list[str]) -> None:
    """Completes, writes and prints."""
    launcher.refuse_arguments(argv)
    for name in ("workdir", "mask"):
        if not getattr(FLAGS, name):
            raise InputError(f"--{name} is required; see --help")
    check_seed(FLAGS.seed)

    from gm import complete, trained
    from gm.complete.method import LOG_PX_DRAWS
    from gm.data.puzzles import SIZES
    from gm.evaluate import check_importance_samples
    from gm.gap import legality
    from gm.writer import Progress

    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    model = found.model
    missing = complete.parse_mask(FLAGS.mask, model.shape, FLAGS.seed)
    names = ("num_completions", "num_particles", "num_steps")
    budget = complete.Budget(**{name: getattr(FLAGS, name) for name in names})
    method = complete.method_for(model, missing, budget)
    dataset, x, cond = _examples(found)
    progress = Progress("completing", len(x))
    result = complete.complete(
        model,
        found.params,
        x,
        cond,
        missing,
        budget,
        seed=FLAGS.seed,
        progress=lambda done: progress.update(done, method.name),
    )
    progress.close()
    row = {"split": FLAGS.split, "mask": FLAGS.mask, "seed": FLAGS.seed}
    row |= {"num_examples": len(x), "num_completions": budget.num_completions}
    row |= {"num_particles": method.num_particles, "num_steps": method.num_steps}
    draws = check_importance_samples(model, LOG_PX_DRAWS)  # of log P(x)
    row |= {"estimate": model.estimate.value, "num_importance_samples": draws}
    row |= _numbers(result, x, missing, found.data.get("end"))
    if dataset.support is not None:  # how many completions can occur
        every = result.x.reshape(-1, *dataset.shape)
        row |= legality(dataset.support.facts(every))
    _report(row)
    picture = None
    if len(model.shape) == 3 or dataset.name in SIZES:
        picture = _picture(x, result.x, missing, model.num_values)
    if len(model.shape) != 3:
        lines = _lines(x, result.x, missing, found.data)
        print("\n".join(lines[: 4 * (budget.num_completions + 3)]))
        row["lines"] = lines
    path = outcome.write_application(
        found,
        outcome.stem(
            f"complete-{FLAGS.split}-{outcome.short_name(FLAGS.mask)}",
            (*names, "num_examples", "seed", "checkpoint"),
        ),
        row,
        picture,
    )
    print(f"{path}.json{' and .png' if picture else ''}")


if __name__ == "__main__":
    launcher.run(main)
