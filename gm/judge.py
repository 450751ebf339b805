"""How good the samples of a trained run are: every measure that its data allow.

Samples are compared with as many examples of a split, under the conditions of those
examples; beside each figure stands its floor, that of training examples in the place of
samples. (The features were fitted to training examples, the floor's among them.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gm import classify, gap, generate, quality
from gm.data import texts
from gm.data.dataset import Dataset, Fresh, Split, WindowSplit
from gm.errors import InputError
from gm.evaluate import check_importance_samples
from gm.model import LikelihoodModel
from gm.spec import Estimate

MAX_TRAIN = 60_000  # training examples among which the nearest is sought
MAX_SAMPLES = 10_000  # distances of all pairs are held in memory
MAX_CONDITIONS = 64  # so many squared is how often a model is asked
_FEWEST = 10  # more than the neighbours that are counted


@dataclasses.dataclass(frozen=True)
class Sets:
    """What is compared: N samples, N real and N training examples."""

    samples: np.ndarray
    real: np.ndarray
    floor: np.ndarray  # training examples
    cond: np.ndarray | None  # of samples and real examples
    labels: np.ndarray | None  # of real examples, where there are any
    train: np.ndarray | None  # all of them, or MAX_TRAIN; None: drawn anew at each step
    train_labels: np.ndarray | None


def gather(
    model: LikelihoodModel,
    params: Any,
    dataset: Dataset,
    split: Split,
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int], None] | None = None,
) -> Sets:
    """Draws samples under the conditions of random examples of a split.

    Raises:
      InputError: too few examples, in the split or asked for; or too many.
    """
    if not _FEWEST <= count <= MAX_SAMPLES:
        raise InputError(f"--num_samples={count}: give {_FEWEST} to {MAX_SAMPLES}")
    count = min(count, len(split))
    if count < _FEWEST:
        raise InputError(
            f"{dataset.name}: {count} examples are too few to compare with"
        )
    rng = np.random.default_rng(seed)
    real, cond = split.batch(np.sort(rng.permutation(len(split))[:count]))
    given = cond if model.cond is not None else None
    x = generate.draw(
        model,
        params,
        count,
        given,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    classes = dataset.cond is not None and dataset.cond.kind == "class"
    labels = cond if classes else None
    if isinstance(dataset.train, Fresh):
        floor = np.asarray(dataset.train.draw(jax.random.key(seed), count)[0])
        return Sets(x, real, floor, given, labels, None, None)
    order = rng.permutation(len(dataset.train))[:MAX_TRAIN]
    train, known = dataset.train.batch(np.sort(order))
    if len(train) < count:
        raise InputError(
            f"--num_samples={count}: the floor needs as many training examples; there "
            f"are {len(train)}, so give less"
        )
    floor = train[rng.permutation(len(train))[:count]]
    return Sets(x, real, floor, given, labels, train, known if classes else None)


def judge(
    model: LikelihoodModel,
    params: Any,
    dataset: Dataset,
    sets: Sets,
    *,
    seed: int = 0,
    num_bayes: int = 0,
    draws: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """All measures that the data allow, as JSON values.

    Args:
      model, params, dataset: what is judged.
      sets: what `gather` gave.
      seed: of classifier, permutations and noise.
      num_bayes: real examples that the model classifies itself; 0: none. By dimensions
        MAX_CONDITIONS at most, each among the dimensions of all.
      draws: importance weights for each of them.
      progress: called with how many of them are done.

    Returns:
      num_samples; features: per space, the measures of `quality.compare`, of samples and
      of the floor; memorisation; classifier; bayes; support; texts.
    """
    row: dict[str, Any] = {"num_samples": len(sets.samples)}
    if len(model.shape) == 3:
        row |= _images(dataset, sets, seed)
    if dataset.support is not None:
        row["support"] = gap.judge_samples(sets.samples, dataset, sets.cond)
    if dataset.symbols is not None:
        row["texts"] = _texts(dataset, sets)
    if num_bayes and model.cond is not None and model.cond.kind != "image":
        told = _bayes(model, params, sets, num_bayes, draws, seed, progress)
        row |= {"bayes": told} if told else {}
    if len(row) == 1:
        raise InputError(
            f"--workdir: of {dataset.name} there is nothing to judge: no images, no text "
            "and no known support"
        )
    return row


def _bayes(model, params, sets, count, draws, seed, progress):
    """The model as a classifier: of all classes, or of the examples' own dimensions."""
    draws = check_importance_samples(model, draws)
    if model.cond.kind == "class":
        if sets.train_labels is None:
            return None
        candidates, labels = (
            np.arange(model.cond.size, dtype=np.int32),
            sets.cond[:count],
        )
        log_pc = classify.log_class_frequencies(sets.train_labels, model.cond.size)
    else:
        own = sets.cond[: min(count, MAX_CONDITIONS)]
        candidates, labels, counts = np.unique(
            own, axis=0, return_inverse=True, return_counts=True
        )
        labels, log_pc = labels.reshape(-1), np.log(counts / len(own))
    x = sets.real[: len(labels)]
    log_px = classify.cond_log_probs(
        model, params, x, candidates, draws=draws, seed=seed, progress=progress
    )
    exact = model.estimate is Estimate.EXACT
    return classify.bayes_classifier(log_px, np.asarray(labels), log_pc) | {
        "count": len(x),
        "kind": model.cond.kind,
        "num_conditions": len(candidates),
        "estimate": model.estimate.value,
        "num_importance_samples": draws,
        # Else it is the difference of two bounds.
        "bits_gained_bound": "exact" if exact else "neither",
    }


def _images(dataset, sets, seed):
    """Measures in two spaces of features, memorisation, and the classes of samples."""

    def flat(x):
        return x.reshape(len(x), -1).astype(np.float64)

    pixels = quality.pca(
        flat(sets.floor if sets.train is None else sets.train), seed=seed
    )
    spaces = {f"pca_{pixels.n_components_}": lambda x: pixels.transform(flat(x))}
    found: dict[str, Any] = {}
    if sets.train is not None and sets.train_labels is not None:
        classifier = classify.fit_classifier(
            sets.train, sets.train_labels, dataset.num_values, seed=seed
        )
        spaces["classifier"] = lambda x: classifier(x)[1]
        accuracy = np.mean(classifier(sets.real)[0] == sets.labels)
        found["classifier"] = {
            "digest": classifier.digest,
            "accuracy_real": float(accuracy),
            "accuracy_samples": None
            if sets.cond is None
            else float(np.mean(classifier(sets.samples)[0] == sets.cond)),
        }
    found["features"] = {}
    for name, features in spaces.items():
        real = features(sets.real)
        found["features"][name] = {
            "samples": quality.compare(features(sets.samples), real, seed),
            "floor": quality.compare(features(sets.floor), real, seed),
        }
    if sets.train is not None:
        parts = (flat(x) for x in (sets.samples, sets.real, sets.train))
        found["memorisation"] = quality.memorisation(*parts)
    return found


def _texts(dataset, sets):
    """How new generated texts are, and how long, beside real ones.

    Of running text it is the whole sentences that are counted.
    """
    symbols, documents = dataset.symbols, dataset.unit == "object"

    def pieces(x):
        if documents:
            return texts.decode(x, symbols)
        windows = ("".join(symbols[v] for v in row) for row in x)
        return [s for window in windows for s in texts.sentences(window)]

    train = sets.train
    if isinstance(dataset.train, WindowSplit):
        train = dataset.train.sequence[None]  # all of it, each sentence once
    known = [] if train is None else pieces(train)
    found: dict[str, Any] = {"of": "texts" if documents else "sentences"}
    for name, x in (("samples", sets.samples), ("real", sets.real)):
        found[name] = texts.novelty(pieces(x), known)
        if documents:
            full = texts.is_full(x, symbols.index(texts.END))
            found[name]["full"] = float(full.mean())
    return found | {"examples": pieces(sets.samples)[:10]}


def picture(sets: Sets, num_values: int, columns: int = 8) -> Any:
    """Samples on the left; on the right the training image nearest to each.

    With classes there is a row for each (16 at most); else eight rows. Where training
    draws anew, the right shows the real images whose conditions were asked for.
    """
    from gm.writer import image_grid

    classes = sets.cond is not None and np.asarray(sets.cond).ndim == 1
    rows: list[np.ndarray] = []
    if classes:
        for label in np.unique(np.asarray(sets.cond))[:16]:
            rows.append(np.flatnonzero(sets.cond == label)[:columns])
    else:
        count = min(len(sets.samples) // columns, 8)
        rows = list(np.arange(max(count, 1) * columns).reshape(-1, columns))
        rows = [row[row < len(sets.samples)] for row in rows]
    chosen = np.concatenate(rows)
    beside = sets.real[chosen]
    if sets.train is not None:
        flat = [x.reshape(len(x), -1) for x in (sets.samples[chosen], sets.train)]
        which = quality.nearest(*(x.astype(np.float64) for x in flat))[1]
        beside = sets.train[which]
    blank = np.full(sets.samples.shape[1:], num_values // 2, np.int64)
    tiles, start = [], 0
    for row in rows:
        stop = start + len(row)
        fill = [blank] * (columns - len(row))
        left, right = sets.samples[row], beside[start:stop]
        tiles += [*left, *fill, blank, *right, *fill]
        start = stop
    return image_grid(np.stack(tiles), num_values, 2 * columns + 1)
