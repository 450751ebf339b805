"""Judges the samples of a trained run against a split, and the run as a classifier.

  python -m experiments.judge --workdir=runs/digits
  python -m experiments.judge --workdir=runs/mnist --num_samples=1000 --num_bayes=200

Prints the measures beside their floor (training examples in the place of samples), and
writes them with a picture to RUN/applications: samples beside the training images that
are nearest to them. The samples are of the model itself: no temperature, no guidance.
"""

from typing import Any

from absl import flags

from experiments import launcher, outcome
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a trained run")
flags.DEFINE_enum("split", "test", ["valid", "test"], "what samples are compared with")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_integer("num_samples", 1000, "how many, at most as many as the split has")
flags.DEFINE_integer(
    "num_bayes",
    200,
    "examples that a conditional model classifies (64 at most by dimensions); 0: none",
)
flags.DEFINE_integer("num_importance_samples", 1, "draws for each of these")
flags.DEFINE_integer("batch_size", 250, "samples at a time")
flags.DEFINE_integer("seed", 0, "of samples, classifier and permutations")
launcher.define_data_dir()
flags.adopt_module_key_flags(launcher)

_NAMES = {
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "mmd2": "MMD^2",
    "mmd2_p": "its p-value",
}


def _features(found: dict[str, Any], split: str) -> str:
    from gm.tables import markdown

    tables = []
    for space, sides in found.items():
        values = [
            [_NAMES[n], *(f"{sides[side][n]:.4g}" for side in ("samples", "floor"))]
            for n in _NAMES
        ]
        tables.append(markdown([space, "samples", "training (floor)"], values))
    return "\n\n".join(tables) + "\n"


def _classifier(found: dict[str, Any], split: str) -> str:
    told = (
        f"classifier {found['digest']}: {found['accuracy_real']:.1%} of {split} right"
    )
    own = found["accuracy_samples"]
    return told + ("" if own is None else f"; {own:.1%} of samples are as asked for")


def _memorisation(found: dict[str, Any], split: str) -> str:
    return (
        f"nearest training image: {found['nearest_train']:.4g} from samples, "
        f"{found['nearest_train_test']:.4g} from {split} (medians); a sample is nearer "
        f"with probability {found['nearer_than_test']:.3f} ± "
        f"{found['nearer_than_test_standard_error']:.3f}; copies {found['copies']:.2%}, "
        f"of {split} {found['copies_test']:.2%}"
    )


def _bayes(found: dict[str, Any], split: str) -> str:
    exact = found["bits_gained_bound"] == "exact"
    about, of = ("", "") if exact else ("about ", ", a difference of two bounds")
    what = "the class tells"
    who = f"as a classifier of {found['count']}"
    if found["kind"] == "real":
        what = "the dimensions tell"
        who += f" by the dimensions of {found['num_conditions']}"
    return (
        f"{who} ({found['estimate']}, {found['num_importance_samples']} draws): "
        f"{found['accuracy']:.1%} ± {found['accuracy_standard_error']:.1%} right, "
        f"calibration error {found['calibration_error']:.3f}; {what} {about}"
        f"{found['bits_gained']:.2f} ± {found['bits_gained_standard_error']:.2f} bits of "
        f"x{of} (of {found['bits_of_condition']:.2f} that there are among these)"
    )


def _support(found: dict[str, Any], split: str) -> str:
    from gm.gap import legality_text

    told = legality_text(found, "samples")
    if "agrees" in found:
        told += f"; {found['agrees']:.1%} are nearest to what was asked for"
    return told


def _texts(found: dict[str, Any], split: str) -> str:
    lines = [f"  {text}" for text in found["examples"]]
    for name, side in (("samples", found["samples"]), (split, found["real"])):
        told = f"{name}: {side['count']} {found['of']}"
        if side["count"]:
            told += (
                f", {side['in_train']:.1%} ± {side['in_train_standard_error']:.1%} of "
                f"them in the training text, {side['distinct']} different; mean length "
                f"{side['mean_length']:.1f}"
            )
        if "full" in side:
            told += (
                f"; {side['full']:.1%} fill all the room there is (and may be cut off)"
            )
        lines.append(told)
    return "\n".join(lines)


_SAID = {
    "features": _features,
    "classifier": _classifier,
    "memorisation": _memorisation,
    "bayes": _bayes,
    "support": _support,
    "texts": _texts,
}


def _check_flags() -> None:
    """Refuses values that cannot be meant, before anything is loaded."""
    if not FLAGS.workdir:
        raise InputError("--workdir is required: the directory of a trained run")
    for name, least in (("batch_size", 1), ("num_bayes", 0), ("seed", 0)):
        value: Any = FLAGS[name].value
        if value < least:
            raise InputError(f"--{name}={value}: give {least} or more")
    if FLAGS.num_bayes == 1:
        raise InputError(
            "--num_bayes=1: of one there is no spread; give 0, or 2 or more"
        )


def main(argv: list[str]) -> None:
    """Judges one run."""
    launcher.refuse_arguments(argv)
    _check_flags()
    from gm import evaluate, judge, trained
    from gm.writer import Progress

    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    config, model = found.config, found.model
    evaluate.check_importance_samples(model, FLAGS.num_importance_samples)
    dataset, split = launcher.load_split(found, FLAGS.split)
    progress = Progress("sampling", min(FLAGS.num_samples, len(split)))
    sets = judge.gather(
        model,
        found.params,
        dataset,
        split,
        FLAGS.num_samples,
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
        progress=lambda done: progress.update(done, "samples"),
    )
    progress.close()
    progress = Progress("classifying", FLAGS.num_bayes)
    row = judge.judge(
        model,
        found.params,
        dataset,
        sets,
        seed=FLAGS.seed,
        num_bayes=FLAGS.num_bayes,
        draws=FLAGS.num_importance_samples,
        progress=lambda done: progress.update(done, "examples"),
    )
    progress.close()
    image = len(model.shape) == 3
    picture = judge.picture(sets, model.num_values) if image else None
    names = ("checkpoint", "seed", "num_bayes", "num_importance_samples")
    stem = outcome.stem(f"judge-{FLAGS.split}-n={FLAGS.num_samples}", names)
    about = {"split": FLAGS.split, "seed": FLAGS.seed}
    path = outcome.write_application(found, stem, about | row, picture)
    for name, say in _SAID.items():
        if name in row:
            print(say(row[name], FLAGS.split))
    count = row["num_samples"]
    print(f"{count} samples of {config.model} ({found.checkpoint}): {path}.json")


if __name__ == "__main__":
    launcher.run(main)
