"""Learning curves and bits as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.results import Contender, Row, contenders, group_rows, in_unit, unit_name
from gm.rundir import write_whole
from gm.writer import read_metrics

_INSIDE = 8  # names at most that a legend has room for beside the curves
_STYLES = ("-", "--", ":")


def _figure(names: int) -> tuple[Any, Any]:
    """A figure that is high enough for so many names, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (7, max(4.2, 0.8 + 0.21 * names))
    if names > _INSIDE:
        size = (9, size[1])
    figure, axes = plt.subplots(figsize=size, dpi=130, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(figure: Any, axes: Any, names: int, **options: Any) -> None:
    """Names the curves, beside the axes where they are many."""
    if names > _INSIDE:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    else:
        axes.legend(**{"frameon": False, **options})


def _look(i: int) -> dict[str, str]:
    """Of thirty contenders none is drawn as another."""
    return dict(color=f"C{i % 10}", ls=_STYLES[i // 10 % len(_STYLES)])


def _save(figure: Any, path: Path) -> Path:
    import io

    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_whole(path, buffer.getvalue())
    return path


def learning_curve(row: Row) -> list[dict[str, float]]:
    """What the run of a row measured on its validation split as it was trained.

    Returns:
      points of step, seconds and flops up to there, and bits in the row's unit.
    """
    metrics = read_metrics(Path(row["run"]) / "metrics.jsonl")
    scale = math.prod(row["shape"]) if row["unit"] == "object" else 1
    flops = row.get("train_flops", 0.0) / max(row.get("step", 0), 1)
    return [
        {
            "step": m["step"],
            "seconds": m.get("time/seconds") or 0.0,
            "flops": flops * m["step"],
            "bits": m["valid/bpd"] * scale,
        }
        for m in metrics
        if m.get("valid/bpd")
    ]


def shown_top(values: Sequence[float]) -> float | None:
    """Where an axis of learning curves ends: at where models end, and how they got there.

    Early values are far off. None for values that are all the same.
    """
    ordered = sorted(values)
    top = ordered[int(0.9 * (len(ordered) - 1))]
    return top + 0.3 * (top - ordered[0]) if top > ordered[0] else None


def _learning_curves(title: str, found: Sequence[Contender], path: Path) -> Path | None:
    curves = [[learning_curve(row) for row in c.rows] for c in found]
    values = [p["bits"] for runs in curves for points in runs for p in points]
    if not values:
        return None
    figure, axes = _figure(len(found))
    for i, (contender, runs) in enumerate(zip(found, curves, strict=True)):
        label: str | None = contender.label
        for points in filter(None, runs):
            steps, bits = ([p[name] for p in points] for name in ("step", "bits"))
            axes.plot(steps, bits, label=label, marker=".", markersize=4, **_look(i))
            label = None  # one name for all seeds
    example = found[0].rows[0]
    floor = example["entropy_floor_nats"]
    if floor:
        axes.axhline(in_unit(example, floor), color="black", ls="--", label="entropy")
    axes.set_ylim(top=shown_top(values))
    axes.set(xlabel="step", ylabel=f"validation {unit_name(example)}", title=title)
    _legend(figure, axes, len(found))
    return _save(figure, path)


def _bits(title: str, found: Sequence[Contender], path: Path) -> Path:
    example = found[0].rows[0]
    figure, axes = _figure(len(found))
    values = [in_unit(example, c.nats) for c in found]
    errors = [2 * in_unit(example, c.standard_error) for c in found]
    bounds = [c.rows[0]["estimate"] != "exact" for c in found]
    labels = [c.label + " (bound)" * b for c, b in zip(found, bounds, strict=True)]
    places = range(len(found))
    axes.errorbar(values, places, xerr=errors, fmt="o", capsize=3)
    axes.set_yticks(places, labels)
    axes.set_ylim(len(found) - 0.5, -0.5)
    floor = example["entropy_floor_nats"]
    if floor:
        axes.axvline(in_unit(example, floor), color="black", ls="--", label="entropy")
        axes.legend(frameon=False)
    axes.set(xlabel=f"{unit_name(example)}, ± 2 standard errors", title=title)
    return _save(figure, path)


def _k_curves(title: str, found: Sequence[Contender], path: Path) -> Path | None:
    """Bits against importance samples, with exact models as levels."""
    if not any(r.get("k_curve") for c in found for r in c.rows):
        return None
    figure, axes = _figure(len(found))
    for i, contender in enumerate(found):
        look, label = _look(i), contender.label
        for n, row in enumerate(contender.rows):
            name = None if n else label
            if row["estimate"] == "exact":
                level = in_unit(row, row["nats"])
                told = name and f"{name} (exact)"
                axes.axhline(level, lw=1, alpha=0.6, label=told, **look)
            points = row.get("k_curve", [])
            if points:
                values = [in_unit(row, p["nats"]) for p in points]
                ks = [p["k"] for p in points]
                axes.plot(ks, values, marker=".", label=name, **look)
            sides = row.get("interval_nats")
            if sides:
                low, high = (in_unit(row, sides[side]) for side in ("low", "high"))
                axes.axhspan(low, high, color=look["color"], alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="importance samples k (band: bounds from both sides)",
        ylabel=unit_name(found[0].rows[0]),
        title=title,
    )
    _legend(figure, axes, len(found), frameon=True, framealpha=0.9, edgecolor="none")
    return _save(figure, path)


def write_plots(rows: Sequence[Row], directory: str) -> list[Path]:
    """Writes two or three PNGs per table into a directory and returns their paths."""
    out = Path(directory)
    paths = []
    for title, ranked, _ in group_rows(rows):
        found = contenders(ranked)
        stem = "".join(c if c.isalnum() else "_" for c in title)
        made = (
            _learning_curves(title, found, out / f"{stem}_curves.png"),
            _bits(title, found, out / f"{stem}_bits.png"),
            _k_curves(title, found, out / f"{stem}_k_curves.png"),
        )
        paths += [path for path in made if path]
    return paths
