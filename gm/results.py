"""Result rows: reading them, which may be ranked together, and which is better."""

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm import paired
from gm.data.containers import read_npz
from gm.errors import InputError
from gm.likelihood import bits
from gm.rows import Row, check_row
from gm.rundir import nearest_run, read_json

# Rows are ranked together only where all of these are equal.
COMPARABLE = (
    "split_sha256",
    "num_values",
    "shape",
    "conditioning",
    "unit",
    "augmentation",
)


def read_rows(paths: Iterable[str], *, may_be_empty: bool = False) -> list[Row]:
    """Reads the result rows under run directories or directories of them.

    Raises:
      InputError: a path without any row, unless that may be.
    """
    paths = list(paths)
    # A run that is named twice counts once, unless it is held against itself.
    itself = len(paths) == 2 and Path(paths[0]).resolve() == Path(paths[1]).resolve()
    files: dict[Any, tuple[Path, str]] = {}
    for number, path in enumerate(paths):
        found = sorted(Path(path).glob("**/results/*.json"))
        if not found and not may_be_empty:
            if not Path(path).is_dir():
                told = f"no such directory{nearest_run(Path(path))}"
            else:
                told = "no results/*.json below it; run `evaluate` first"
            raise InputError(f"{path}: {told}")
        for file in found:
            key = (file.resolve(), number if itself else 0)
            files.setdefault(key, (file, str(path)))
    rows = []
    for file, path in files.values():
        row = read_json(file)
        check_row(row, file)
        where = {"run": str(file.parent.parent), "file": str(file), "path": path}
        rows.append({"augmentation": "none"} | row | where)
    return rows


def read_nats(row: Row) -> np.ndarray | None:
    """Nats per example, float64 [N], of a row that was read; None if not kept.

    Raises:
      InputError: a file that is not that of the row.
    """
    if "file" not in row:
        return None
    path = Path(row["file"]).with_suffix(".nats.npy")
    if not path.exists():
        return None
    try:
        nats = np.array(read_npz(path)["x"])
    except (InputError, OSError):
        nats = np.empty(0)
    if (
        nats.dtype.kind != "f"
        or nats.shape != (row["num_examples"],)
        or not np.isclose(nats.mean(), row["nats"])
    ):
        raise InputError(f"{path}: not the nats of {row['file']}; run `evaluate` again")
    return nats


def differing_fields(a: Row, b: Row) -> list[str]:
    """Names of the fields that forbid ranking two rows together.

    With them the preprocessing where it differs, since it may be why the bytes do.
    """
    names = [name for name in COMPARABLE if a.get(name) != b.get(name)]
    if names and a.get("preprocessing") != b.get("preprocessing"):
        names.append("preprocessing")
    return names


def explain(a: Row, b: Row) -> str:
    """How the fields that forbid ranking differ: 'conditioning is X, not Y, ...'."""
    return ", ".join(
        f"{n} is {_short(a.get(n))}, not {_short(b.get(n))}"
        for n in differing_fields(a, b)
    )


def _short(value):
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text


def _key(row):
    return json.dumps([row.get(n) for n in COMPARABLE])


def group_rows(rows: Sequence[Row]) -> list[tuple[str, list[Row], list[Row]]]:
    """Sorts rows into tables.

    Returns:
      (title, ranked, apart) for every data set and split: `ranked` has the best first,
      and each row of `apart` says in "apart" which fields keep it from being ranked.
    """
    tables = []
    titles = sorted({(r["dataset"], r["split"]) for r in rows})
    for dataset, split in titles:
        here = [r for r in rows if (r["dataset"], r["split"]) == (dataset, split)]
        keys = Counter(map(_key, here))
        most = max(keys, key=lambda k: keys[k])
        ranked = [r for r in here if _key(r) == most]
        ranked.sort(key=lambda r: r["nats"])
        apart = [
            r | {"apart": explain(r, ranked[0])}
            for r in sorted(here, key=lambda r: r["nats"])
            if _key(r) != most
        ]
        tables.append((f"{dataset}, {split} split", ranked, apart))
    return tables


def incomparable(rows: Sequence[Row]) -> str:
    """Why two paths cannot be compared: no row of one meets one of the other's.

    Returns:
      What keeps them apart; "" where they can be, or where other than two were given.
    """
    paths = list(dict.fromkeys(r["path"] for r in rows))
    if len(paths) != 2:
        return ""
    a, b = ([r for r in rows if r["path"] == path] for path in paths)
    if {_key(r) for r in a} & {_key(r) for r in b}:
        return ""
    # Of all pairs the one that differs least says most.
    x, y = min(
        ((x, y) for x in a for y in b), key=lambda p: len(differing_fields(p[0], p[1]))
    )
    return f"{paths[1]} cannot be compared with {paths[0]}: {explain(y, x)}"


def unit_name(row: Row) -> str:
    """What people read of this row: 'bits/dim', 'bits/char' or 'bits/object'."""
    return f"bits/{row['unit']}"


def in_unit(row: Row, nats: float) -> float:
    """Nats per example in the row's unit."""
    return (
        bits(nats) if row["unit"] == "object" else bits(nats) / math.prod(row["shape"])
    )


def below_floor(row: Row) -> bool:
    """Whether a row beats the entropy by more than its error: impossible but for a bug."""
    floor = row["entropy_floor_nats"]
    if floor is None:
        return False
    error = row["standard_error_nats"] or 0.0
    return not row["nats"] >= floor - 4 * error - 1e-5 * max(1.0, floor)


_REMAINING = 4  # times the last gain of a k-curve that the bound may still fall

# Contenders: runs that differ in nothing but the seed.

_NO_SETTING = ("seed", "log_every", "save_every")


def configuration(row: Row) -> dict[str, Any]:
    """What besides the seed tells runs of a model apart, flat."""
    training = row.get("training", {})
    return (
        dict(row.get("settings", {}))
        | {k: v for k, v in training.items() if k not in _NO_SETTING}
        | {k: row.get(k) for k in ("precision", "num_importance_samples", "init_from")}
        | {"checkpoint": str(row.get("checkpoint")).split(",")[0]}
    )


@dataclasses.dataclass(frozen=True)
class Contender:
    """Runs of one model and configuration on one split, one for each seed."""

    label: str  # the model, and what tells it from others of the same model
    rows: list[Row]

    @property
    def nats(self) -> float:
        """Mean over the runs."""
        return statistics.mean(r["nats"] for r in self.rows)

    @property
    def spread(self) -> float:
        """Standard deviation over the runs, in nats; 0 for one."""
        values = [r["nats"] for r in self.rows]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of `nats`: over examples, which the runs share, and over seeds."""
        errors = [r["standard_error_nats"] or 0.0 for r in self.rows]
        seeds = self.spread / math.sqrt(len(self.rows))
        return math.hypot(statistics.mean(errors), seeds)


def contenders(ranked: Sequence[Row]) -> list[Contender]:
    """Gathers the rows of a table by configuration, the best first."""
    groups: dict[str, list[Row]] = {}
    for row in ranked:
        key = json.dumps([row["model"], configuration(row)], sort_keys=True)
        # A second run of the same seed is no second seed: it stands by itself.
        while row.get("seed") in [r.get("seed") for r in groups.get(key, [])]:
            key += " again"
        groups.setdefault(key, []).append(row)
    found = []
    for rows in groups.values():
        model = rows[0]["model"]
        others = [
            configuration(g[0]) for g in groups.values() if g[0]["model"] == model
        ]
        mine, settings = configuration(rows[0]), rows[0].get("settings", {})
        apart = [
            f"{name}={value}"
            for name, value in mine.items()
            if any(o.get(name) != value for o in others if name in {**settings, **o})
        ]
        found.append(Contender(" ".join([model, *apart]), rows))
    labels = Counter(c.label for c in found)
    for i, c in enumerate(found):  # a run again, or its copy: told by where it lies
        if labels[c.label] > 1:
            found[i] = Contender(f"{c.label} ({c.rows[0]['run']})", c.rows)
    return sorted(found, key=lambda c: c.nats)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a contender compares with the best of its table."""

    kind: str  # "better", "tie", "open" or "unpaired", said of the best
    difference: paired.Difference | None  # contender minus best, nats
    reason: str = ""


def _claim(best: Contender, other: Contender) -> tuple[str, str]:
    """Whether a difference of reported numbers is one of the models: (kind, reason)."""
    if other.rows[0]["estimate"] == "exact":
        return "better", ""
    sides = [r.get("interval_nats") for r in other.rows]
    if all(sides):
        low = statistics.mean(s["low"] for s in sides if s)
        if low > best.nats:
            return "better", f"below the interval of {other.label}"
        return "open", "its interval reaches below"
    curves = [r["k_curve"] for r in other.rows if len(r.get("k_curve", [])) > 1]
    if len(curves) == len(other.rows):
        gain = statistics.mean(c[-2]["nats"] - c[-1]["nats"] for c in curves)
        told = f"its last step of k gained {bits(gain):.3f} bits"
        # The curve may fall as far again, and more: only a flat end says much.
        if other.nats - best.nats > _REMAINING * gain:
            return "better", told
        return "open", told
    if best.rows[0]["estimate"] == "exact":
        return "open", "a bound: evaluate it with --k_curve or --interval"
    return "better", "by its bound; nothing is known of the models' own values"


def verdicts(found: Sequence[Contender]) -> list[Verdict | None]:
    """Compares every contender with the first, by paired differences.

    Ties are told after Holm's correction for the number of comparisons. A bound below
    an exact value is better than it; an exact value below a bound is better only where
    it is below the bound's interval, or by far more than its k-curve still fell.

    Returns:
      a verdict per contender; None for the best.
    """
    best, others = found[0], found[1:]
    ours = [read_nats(r) for r in best.rows]
    differences: list[paired.Difference | None] = []
    for other in others:
        theirs = [read_nats(r) for r in other.rows]
        a, b = ([x for x in side if x is not None] for side in (theirs, ours))
        whole = len(a) == len(theirs) and len(b) == len(ours)
        differences.append(paired.difference(a, b) if whole else None)
    p_values = iter(paired.holm([d.p_value for d in differences if d]))
    result: list[Verdict | None] = [None]
    for other, d in zip(others, differences, strict=True):
        if d is None:
            result.append(Verdict("unpaired", None, "nats per example are missing"))
        elif next(p_values) > 1 - paired.LEVEL:
            result.append(Verdict("tie", d))
        else:
            kind, reason = _claim(best, other)
            result.append(Verdict(kind, d, reason))
    return result
