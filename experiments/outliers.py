r"""Outlier detection by a trained run: which scores tell outliers from inliers.

  python -m experiments.outliers --inlier=runs/fashion --outliers=mnist,noise \
      --background=runs/fashion-mutated --data_dir=DATA
  python -m experiments.outliers --inlier=runs/fashion --reverse=runs/mnist
  python -m experiments.outliers --inlier=runs/photos --rank=FOLDER --scores=complexity

A background run is trained as the run itself, with --augmentation=mutate:0.2. Scores are
fitted on the inlier's own train (or valid) split alone; higher means more outlying.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments import launcher, outcome
from gm.errors import InputError, check_whole

FLAGS = flags.FLAGS
flags.DEFINE_string("inlier", None, "directory of the run whose data are no outliers")
flags.DEFINE_list(
    "outliers",
    ["constants", "noise", "shuffled", "inverted"],
    "made of test examples: constants, noise, shuffled, inverted, illegal (puzzles); or "
    "data sets (their test split), or files:PATH (all of it)",
)
flags.DEFINE_string("reverse", None, "another run: each one's data are outliers too")
flags.DEFINE_list("background", [], "runs on mutated data: of --inlier, of --reverse")
flags.DEFINE_list("ensemble", [], "more runs on the same data, such as other seeds")
flags.DEFINE_string("rank", None, "a folder of images to rank instead")
flags.DEFINE_list(
    "scores",
    [],
    "of likelihood, typicality, typicality_group, likelihood_ratio, complexity, waic, "
    "dose, dose_svm, likelihood_regret, gradient_norm, lid; the first one ranks "
    "(default: all that the models allow, of which the last three, with a gradient or "
    "more for each example, take by far the longest)",
)
flags.DEFINE_integer("num_examples", 1000, "of each set, and to fit scores on")
flags.DEFINE_integer("group_size", 10, "examples that typicality_group judges together")
flags.DEFINE_enum("fit_split", "train", ["train", "valid"], "what scores are fitted on")
flags.DEFINE_integer("num_importance_samples", 1, "where a likelihood is not exact")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_integer("seed", 0, "of the choice of examples and the bootstrap")
launcher.define_data_dir()
flags.adopt_module_key_flags(launcher)

_NAMED = ("outliers", "reverse", "background", "ensemble", "scores", "num_examples",
          "group_size", "fit_split", "num_importance_samples", "checkpoint",
          "seed")  # fmt: skip
_SHEET, _LISTED = 400, 20  # images on a contact sheet, lines that are printed


def _load(path: str, flag: str) -> Any:
    """A trained run without a condition, of which outliers would have none."""
    from gm import trained

    found = trained.load(path, FLAGS.checkpoint, flag=flag)
    if found.model.cond is not None:
        raise InputError(
            f"--{flag}={path}: the run is conditional ({found.model.cond.label}), and "
            "outliers have no condition; give an unconditional run"
        )
    return found


def _beside(flag: str, inlier: Any, inliers: list[Any]) -> list[Any]:
    """The runs of --background or --ensemble that are of the inlier's data."""
    from gm.outliers import Fitted

    chosen = []
    for path in FLAGS[flag].value or ():
        found = _load(path, flag)
        of = [i for i in inliers if _of_same_data(found, i)]
        if not of:
            raise InputError(
                f"--{flag}={path}: trained on {found.config.dataset} "
                f"{found.data['shape']}; give a run on that of the inlier, "
                f"{inlier.config.dataset} {inlier.data['shape']}"
            )
        if flag == "background" and not found.config.train.mutation_rate:
            raise InputError(
                f"--background={path}: trained as any other run; give one that was "
                "trained with --augmentation=mutate:RATE, such as mutate:0.2"
            )
        if found.run.path.samefile(inlier.run.path):
            raise InputError(f"--{flag}={path}: is the --inlier itself; give another")
        if inlier in of:
            chosen.append(Fitted(found.model, found.params))
    return chosen


def _of_same_data(one: Any, other: Any) -> bool:
    same = ("shape", "num_values", "preprocessing", "symbols")
    return one.config.dataset == other.config.dataset and all(
        one.data[name] == other.data[name] for name in same
    )


def _models(inlier: Any, inliers: list[Any]) -> Any:
    """The models that the scores may ask."""
    from gm.evaluate import check_importance_samples
    from gm.outliers import Fitted, Models

    check_importance_samples(inlier.model, FLAGS.num_importance_samples)
    background = _beside("background", inlier, inliers)
    if len(background) > 1:
        raise InputError(
            f"--background={','.join(FLAGS.background)}: {len(background)} runs on "
            f"{inlier.config.dataset}; give one for each data set"
        )
    return Models(
        Fitted(inlier.model, inlier.params),
        background[0] if background else None,
        tuple(_beside("ensemble", inlier, inliers)),
        FLAGS.num_importance_samples,
        FLAGS.group_size,
    )


def _about(inlier: Any, models: Any) -> dict[str, Any]:
    """What a row says of how the scores came about."""
    exact = inlier.model.estimate.value == "exact"
    return {
        "estimate": inlier.model.estimate.value,
        "num_importance_samples": 1 if exact else models.num_importance_samples,
        "background": FLAGS.background if models.background else [],
        "ensemble": FLAGS.ensemble if models.ensemble else [],
        "fit_split": FLAGS.fit_split,
        "group_size": models.group_size,
        "seed": FLAGS.seed,
    }


def _title(inlier: Any, row: dict[str, Any], task: str) -> str:
    """One line: which model, what its likelihood is, what the scores are fitted on."""
    kind, draws = row["estimate"], row["num_importance_samples"]
    kind += "" if kind == "exact" else f", {draws} draw{'s' * (draws > 1)} each"
    fit = f"fitted on {row['sizes']['fit']} of {row['fit_split']}"
    return (
        f"{task} of {inlier.config.dataset} by {inlier.config.model} "
        f"({inlier.checkpoint}; likelihood: {kind}), {fit}"
    )


def _check_groups(given: dict[str, Any]) -> None:
    """InputError for a set of fewer examples than a group has."""
    for name, x in given.items():
        if len(x) < FLAGS.group_size:
            raise InputError(
                f"--group_size={FLAGS.group_size}: {name} has {len(x)} examples; give "
                f"at most as many"
            )


def _compare(inlier: Any, inliers: list[Any], wanted: list[str]) -> None:
    """Prints and writes how well each score tells each set of outliers from inliers."""
    from gm import outliers
    from gm.outliers import picture, report, sets
    from gm.rundir import write_whole
    from gm.writer import Progress

    models, count = _models(inlier, inliers), FLAGS.num_examples
    dataset = launcher.load_dataset(inlier)
    outliers.choose(models, FLAGS.scores)  # a mistake is told before any work
    x = sets.take(dataset.test, count, FLAGS.seed)
    fit = sets.take(dataset.split(FLAGS.fit_split), count, FLAGS.seed)
    data_dir = FLAGS.data_dir or inlier.config.data_dir
    labels = sets.labels(wanted)
    given = {
        labels[name]: sets.outliers(
            name, dataset, x, data_dir=data_dir, seed=FLAGS.seed
        )
        for name in wanted
    }
    if "typicality_group" in FLAGS.scores:
        _check_groups({"the inlier's test split": x, **given})
    progress = Progress("scoring", len(outliers.SCORES) * (len(given) + 1))
    found = outliers.compare(
        models, fit, x, given, FLAGS.scores, seed=FLAGS.seed, progress=progress.update
    )
    progress.close()
    sizes = {"fit": len(fit), "inlier": len(x)} | {k: len(v) for k, v in given.items()}
    row = _about(inlier, models) | {"sizes": sizes} | report.to_row(found)
    title = _title(inlier, row, f"outliers against {len(x)} test examples")
    path = outcome.write_application(
        inlier, outcome.stem("outliers", _NAMED), row, picture.histograms(found, title)
    )
    tables = report.tables(found)
    notes = "".join(f"{k}: left out, {why}\n" for k, why in found.left_out.items())
    write_whole(Path(f"{path}.md"), "\n\n".join([title, *tables, notes]).encode())
    print(f"{title}\n\n{tables[0]}\n\n{notes}{path}.md, .json, .png\n")


def _rank(inlier: Any) -> None:
    """Prints and writes the images of a folder, the most outlying first."""
    import numpy as np

    from gm import outliers
    from gm.outliers import sets
    from gm.writer import Progress, image_grid

    models = _models(inlier, [inlier])
    dataset = launcher.load_dataset(inlier)
    chosen, _ = outliers.choose(models, FLAGS.scores)
    names = [name for name, how in chosen.items() if not how.of_groups]
    if not FLAGS.scores:  # that which most often works
        names.sort(key=lambda name: name != "complexity")
    if not names:
        raise InputError(f"--scores={','.join(FLAGS.scores)}: ranks no single images")
    paths, x = sets.read_images(FLAGS.rank, dataset)
    fit = sets.take(dataset.split(FLAGS.fit_split), FLAGS.num_examples, FLAGS.seed)
    progress = Progress("scoring", len(names))
    found, left_out = outliers.score(
        models, fit, {"images": x}, names, progress=progress.update
    )
    progress.close()
    scores = {name: values["images"] for name, values in found.items()}
    order = np.argsort(-np.nan_to_num(scores[names[0]], nan=np.inf), kind="stable")
    ranking = [
        {"path": str(paths[i].relative_to(Path(FLAGS.rank).expanduser()))}
        | {k: float(v[i]) if np.isfinite(v[i]) else None for k, v in scores.items()}
        for i in order
    ]
    sizes = {"fit": len(fit), "images": len(x)}
    row = _about(inlier, models) | {"sizes": sizes, "left_out": left_out}
    shown = order[np.linspace(0, len(x) - 1, min(len(x), _SHEET)).astype(int)]
    told = [n for n in _NAMED if n not in ("outliers", "reverse", "group_size")]
    folder = outcome.short_name(str(Path(FLAGS.rank).expanduser().resolve()))
    path = outcome.write_application(
        inlier,
        outcome.stem(f"rank={folder}", told),
        row | {"folder": FLAGS.rank, "ranked_by": names[0], "ranking": ranking},
        image_grid(x[shown], inlier.model.num_values),
    )
    unit = outliers.SCORES[names[0]].unit
    print(_title(inlier, row, f"{len(x)} images ranked by {names[0]}, not as those"))
    for i, entry in enumerate(ranking[:_LISTED]):
        value = scores[names[0]][order[i]]
        print(f"{i + 1:5d}  {value:12.3f} {unit}  {entry['path']}")
    if len(ranking) > _LISTED:
        print(f"  ... {len(ranking) - _LISTED} more")
    print(f"{path}.json, .png ({len(shown)} images, the most outlying first)")


def main(argv: list[str]) -> None:
    """Compares or ranks."""
    launcher.refuse_arguments(argv)
    if not FLAGS.inlier:
        raise InputError("--inlier is required: the directory of a trained run")
    check_whole(2, num_examples=FLAGS.num_examples)
    for name in ("group_size", "num_importance_samples"):
        check_whole(1, **{name: getattr(FLAGS, name)})
    check_whole(0, seed=FLAGS.seed)
    if "typicality_group" in FLAGS.scores and FLAGS.group_size > FLAGS.num_examples:
        raise InputError(
            f"--group_size={FLAGS.group_size}: typicality_group needs as many examples; "
            f"give --num_examples={FLAGS.group_size} or more"
        )
    inlier = _load(FLAGS.inlier, "inlier")
    if FLAGS.rank and (FLAGS["outliers"].present or FLAGS.reverse):
        raise InputError(f"--rank={FLAGS.rank}: leave it or --outliers, --reverse out")
    if FLAGS.rank:
        _rank(inlier)
        return
    if not FLAGS.reverse:
        if not FLAGS.outliers:
            raise InputError("--outliers is empty: give sets, such as noise,mnist")
        _compare(inlier, [inlier], FLAGS.outliers)
        return
    other = _load(FLAGS.reverse, "reverse")
    if _of_same_data(inlier, other):
        raise InputError(
            f"--reverse={FLAGS.reverse}: trained on the inlier's own data, "
            f"{inlier.config.dataset}; give a run on others"
        )
    pair = [inlier, other]
    for one, against in (pair, pair[::-1]):
        wanted = [against.config.dataset, *FLAGS.outliers]
        _compare(one, pair, [s for s in wanted if s != one.config.dataset])


if __name__ == "__main__":
    launcher.run(main)
