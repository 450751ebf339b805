"""Histograms of scores, inliers against outliers."""

import io
from typing import Any

import numpy as np

from gm.outliers import INLIER, SCORES, Comparison

SHOWN = 6  # panels at most
# The raw likelihood first, then the repairs in the order of how often they win.
_ORDER = ("likelihood", "complexity", "likelihood_ratio", "dose", "likelihood_regret",
          "lid", "typicality", "gradient_norm", "waic", "dose_svm")  # fmt: skip


def edges(values: dict[str, np.ndarray]) -> np.ndarray:
    """Edges of bins that show the inliers: their range, and twice that on either side.

    Sets farther away fall into the last bins; nearer ones end the bins earlier.
    """
    finite = {name: v[np.isfinite(v)] for name, v in values.items()}
    ends = [np.quantile(v, (0.01, 0.99)) for v in finite.values() if len(v)]
    low, high = np.min(ends, axis=0)[0], np.max(ends, axis=0)[1]
    if len(finite[INLIER]):
        first, last = np.quantile(finite[INLIER], (0.01, 0.99))
        reach = 2 * (last - first)
        if reach > 0:
            low, high = max(low, first - reach), min(high, last + reach)
    return np.linspace(low, high if high > low else low + 1, 61)


def histograms(found: Comparison, title: str) -> Any:
    """A PIL image with a panel for each of the best-known scores that are there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    names = [name for name in _ORDER if name in found.scores][:SHOWN]
    names = names or list(found.scores)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(6.5 * columns, 3.2 * rows),
        dpi=100,
        layout="constrained",
        squeeze=False,
    )
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(panels.flat, names, strict=False):
        _panel(axes, name, found)
    figure.suptitle(title, fontsize="medium", wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return Image.open(buffer)


def _panel(axes, name, found):
    """One score: the density of each set; beyond the bins is put into the last ones."""
    values = found.scores[name]
    bins = edges(values)
    for i, (where, score) in enumerate(values.items()):
        label = where
        if where != INLIER:
            auroc = found.measures[name][where]["auroc"].value
            label = f"{where}: {auroc:.3f}"
        score = np.nan_to_num(score, nan=bins[-1], posinf=bins[-1], neginf=bins[0])
        axes.hist(
            np.clip(score, bins[0], bins[-1]),
            bins,
            weights=np.full(len(score), 1 / len(score)),
            histtype="stepfilled" if where == INLIER else "step",
            color="0.75" if where == INLIER else f"C{i - 1}",
            label=label,
            lw=1.5,
        )
    unit = SCORES[name].unit
    axes.set_xlabel(f"{name} ({unit})" if unit else name)
    axes.set_yscale("log")
    axes.set_ylabel("part of the set")
    axes.spines[["top", "right"]].set_visible(False)
    beside = dict(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.legend(fontsize="small", title="AUROC", title_fontsize="small", **beside)
